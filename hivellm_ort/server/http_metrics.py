"""What HTTP adds to the manager's metrics."""

from __future__ import annotations

from collections import Counter

from hivellm_ort.observability.exposition import MetricFamily, prometheus_text
from hivellm_ort.observability.histogram import Histogram

__all__ = ["HttpMetrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class HttpMetrics:
    """Counts requests. For one event loop.

    Attributes:
        in_progress: requests that are being answered.
        full: requests that found the queue full.
    """

    def __init__(self) -> None:
        self.in_progress = self.full = 0
        self._requests: Counter[tuple[str, ...]] = Counter()
        self._seconds = Histogram(_SECONDS)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that has ended.

        Args:
            method: of HTTP.
            route: the path as the application has it; empty for none of its own.
            status: of the response; 499 where the client went away before it.
            seconds: to the end of the response.
        """
        self._requests[method, route or "none", str(status)] += 1
        self._seconds.observe(seconds)

    def prometheus(self) -> str:
        """Everything in Prometheus' text format, to be put after the manager's."""
        return prometheus_text(self.families())

    def families(self) -> list[MetricFamily]:
        """Everything, by metric."""
        return [
            MetricFamily(
                "http_requests_total",
                "counter",
                "Requests that ended, by method, route and status; 499 where the client went away.",
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
                "Requests that found the queue full.",
                (),
                {(): self.full},
            ),
        ]
