"""Metrics of HTTP."""

from __future__ import annotations

from collections import Counter

from hivellm_ort.observability.exposition import MetricFamily, prometheus_text
from hivellm_ort.observability.histogram import Histogram

__all__ = ["HttpMetrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class HttpMetrics:
    """Counts requests. Use it in one event loop only.

    Attributes:
        in_progress: Requests that are being answered.
        full: Requests that were refused because the queue was full.
    """

    def __init__(self) -> None:
        self.in_progress = self.full = 0
        self._requests: Counter[tuple[str, ...]] = Counter()
        self._seconds = Histogram(_SECONDS)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that has ended.

        Args:
            method: The HTTP method.
            route: The path of the route; empty if there is no such route.
            status: The status of the response; 499 if the client disconnected before it.
            seconds: Seconds to the end of the response.
        """
        self._requests[method, route or "none", str(status)] += 1
        self._seconds.observe(seconds)

    def prometheus(self) -> str:
        """Return all metrics in Prometheus' text format. It can be appended to that of the manager."""
        return prometheus_text(self.families())

    def families(self) -> list[MetricFamily]:
        """Return all metrics."""
        return [
            MetricFamily(
                "http_requests_total",
                "counter",
                "Requests that ended, by method, route and status; 499 means that the client disconnected.",
                ("method", "route", "status"),
                self._requests,
            ),
            MetricFamily(
                "http_request_seconds",
                "histogram",
                "From a request to the end of its response.",
                (),
                {(): self._seconds.read()},
            ),
            MetricFamily(
                "http_requests_in_progress",
                "gauge",
                "Requests that are being answered.",
                (),
                {(): self.in_progress},
            ),
            MetricFamily(
                "http_queue_full_total",
                "counter",
                "Requests that were refused because the queue was full.",
                (),
                {(): self.full},
            ),
        ]
