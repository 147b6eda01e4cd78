"""Metrics for readers: the text format 0.0.4 of Prometheus, and JSON types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from hivellm_ort.observability.histogram import HistogramReading

__all__ = ["PROMETHEUS_CONTENT_TYPE", "Family", "json_values", "merged", "prometheus_text"]

PROMETHEUS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Content type of the text, for the answer of a server."""

_PREFIX = "hivellm_ort_"


@dataclass(frozen=True)
class Family:
    """A metric with a value for each combination of its labels.

    Attributes:
        name: its name without the package's prefix.
        kind: its type in Prometheus.
        description: what it counts, in a sentence.
        labels: names of its labels.
        samples: values by label values.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...]
    samples: Mapping[tuple[str, ...], float | HistogramReading]


def merged(label: str, sources: Mapping[str, Iterable[Family]]) -> list[Family]:
    """The same metrics of several sources as one, with one more label that names the source.

    Args:
        label: name of the label; it comes first.
        sources: their metrics, by the value of the label.
    """
    found: dict[str, Family] = {}
    for source, families in sources.items():
        for family in families:
            earlier = found.get(family.name)
            samples = {} if earlier is None else dict(earlier.samples)
            samples.update({(source, *values): reading for values, reading in family.samples.items()})
            found[family.name] = replace(family, labels=(label, *family.labels), samples=samples)
    return list(found.values())


def prometheus_text(families: Iterable[Family]) -> str:
    """The text that a scraper reads, one line per sample."""
    return "".join(f"{line}\n" for family in families for line in _lines(family))


def json_values(families: Iterable[Family]) -> dict[str, Any]:
    """The values by name; those of a family with labels by label values, one level per label."""
    return {family.name: _tree(family) for family in families}


def _lines(family: Family) -> Iterator[str]:
    name = _PREFIX + family.name
    yield f"# HELP {name} {_escape(family.description)}"
    yield f"# TYPE {name} {family.kind}"
    for values, reading in family.samples.items():
        labels = dict(zip(family.labels, values, strict=True))
        if isinstance(reading, HistogramReading):
            for bound, count in reading.cumulated:
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


def _tree(family: Family) -> Any:
    if not family.labels:
        return _plain(family.samples[()])
    tree: dict[str, Any] = {}
    for values, reading in family.samples.items():
        branch = tree
        for value in values[:-1]:
            branch = branch.setdefault(value, {})
        branch[values[-1]] = _plain(reading)
    return tree


def _plain(reading: float | HistogramReading) -> Any:
    if not isinstance(reading, HistogramReading):
        return reading
    return {
        "count": reading.count,
        "sum": reading.sum,
        "buckets": {_number(bound): count for bound, count in reading.cumulated},
        "p50": reading.percentile(0.50),
        "p95": reading.percentile(0.95),
        "p99": reading.percentile(0.99),
    }
