"""Writes metrics in Prometheus' text format 0.0.4 and as JSON types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from hivellm_ort.observability.histogram import HistogramSnapshot

__all__ = ["PROMETHEUS_CONTENT_TYPE", "MetricFamily", "json_values", "merged", "prometheus_text"]

PROMETHEUS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Content type of `Metrics.prometheus()`, for HTTP responses."""

_PREFIX = "hivellm_ort_"


@dataclass(frozen=True)
class MetricFamily:
    """A metric with a value for each combination of its labels.

    Attributes:
        name: Its name without the package's prefix.
        kind: Its type in Prometheus.
        description: A sentence for people.
        labels: Names of its labels.
        samples: Values by label values.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...]
    samples: Mapping[tuple[str, ...], float | HistogramSnapshot]


def merged(label: str, sources: Mapping[str, Iterable[MetricFamily]]) -> list[MetricFamily]:
    """Return the metrics of several sources as one list, with one more label that names the source.

    Args:
        label: Name of the label. It comes first.
        sources: The metrics of each source, by the value of the label.
    """
    found: dict[str, MetricFamily] = {}
    for source, families in sources.items():
        for family in families:
            earlier = found.get(family.name)
            samples = {} if earlier is None else dict(earlier.samples)
            samples.update({(source, *values): reading for values, reading in family.samples.items()})
            found[family.name] = replace(family, labels=(label, *family.labels), samples=samples)
    return list(found.values())


def prometheus_text(families: Iterable[MetricFamily]) -> str:
    """Return the text for a scraper, one line per sample."""
    return "".join(f"{line}\n" for family in families for line in _lines(family))


def json_values(families: Iterable[MetricFamily]) -> dict[str, Any]:
    """Return values by metric name. Metrics with labels have one level of dictionaries per label."""
    return {family.name: _tree(family) for family in families}


def _lines(family: MetricFamily) -> Iterator[str]:
    name = _PREFIX + family.name
    yield f"# HELP {name} {_escape(family.description)}"
    yield f"# TYPE {name} {family.kind}"
    for values, reading in family.samples.items():
        labels = dict(zip(family.labels, values, strict=True))
        if isinstance(reading, HistogramSnapshot):
            for bound, count in reading.cumulative:
                yield _sample(f"{name}_bucket", {**labels, "le": _number(bound)}, count)
            yield _sample(f"{name}_sum", labels, reading.sum)
            yield _sample(f"{name}_count", labels, reading.count)
        else:
            yield _sample(name, labels, reading)


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    pairs = ",".join(f'{label}="{_escape_value(text)}"' for label, text in labels.items())
    return f"{name}{{{pairs}}} {_number(value)}" if pairs else f"{name} {_number(value)}"


def _number(value: float) -> str:
    return "+Inf" if value == float("inf") else repr(value)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _escape_value(text: str) -> str:
    # Half a surrogate pair cannot be sent as UTF-8.
    sound = text.encode("utf-8", "replace").decode("utf-8")
    return _escape(sound).replace('"', '\\"')


def _tree(family: MetricFamily) -> Any:
    if not family.labels:
        return _plain(family.samples[()])
    tree: dict[str, Any] = {}
    for values, reading in family.samples.items():
        branch = tree
        for value in values[:-1]:
            branch = branch.setdefault(value, {})
        branch[values[-1]] = _plain(reading)
    return tree


def _plain(reading: float | HistogramSnapshot) -> Any:
    if not isinstance(reading, HistogramSnapshot):
        return reading
    return {
        "count": reading.count,
        "sum": reading.sum,
        "buckets": {_number(bound): count for bound, count in reading.cumulative},
        "p50": reading.percentile(0.50),
        "p95": reading.percentile(0.95),
        "p99": reading.percentile(0.99),
    }
