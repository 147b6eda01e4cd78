"""The text that Prometheus reads, read by Prometheus' own parser."""

from __future__ import annotations

import pytest
from event_samples import ONE_OF_EACH, finished
from hypothesis import given
from hypothesis import strategies as st

from hivellm_ort.observability import Metrics

parser = pytest.importorskip("prometheus_client.parser", reason="prometheus_client is not installed")


def filled() -> Metrics:
    """Metrics that were told one event of each type."""
    metrics = Metrics()
    for event in ONE_OF_EACH:
        metrics(event)
    return metrics


def families(text: str) -> dict[str, object]:
    """What Prometheus' parser makes of a text, by name."""
    return {family.name: family for family in parser.text_string_to_metric_families(text)}


def test_parser_reads_what_the_snapshot_says() -> None:
    """Every value of the snapshot is a sample of the text, and there is no other."""
    metrics = filled()
    samples = {
        (sample.name.removeprefix("hivellm_ort_"), tuple(sample.labels.values())): sample.value
        for family in parser.text_string_to_metric_families(metrics.prometheus())
        for sample in family.samples
    }
    expected: dict[tuple[str, tuple[str, ...]], float] = {}
    for name, value in metrics.snapshot().items():
        if not isinstance(value, dict):
            expected[name, ()] = value
        elif "buckets" in value:
            expected |= {(f"{name}_bucket", (bound,)): count for bound, count in value["buckets"].items()}
            expected |= {(f"{name}_sum", ()): value["sum"], (f"{name}_count", ()): value["count"]}
        else:
            for label, below in value.items():
                branches = below.items() if isinstance(below, dict) else [(None, below)]
                expected |= {(name, (label, *([last] if last else []))): count for last, count in branches}
    assert expected == samples


def test_names_and_types() -> None:
    """Names have the prefix and base units; counters, and only they, end in _total; all are described."""
    kinds = set()
    for family in parser.text_string_to_metric_families(filled().prometheus()):
        kinds.add(family.type)
        assert family.name.startswith("hivellm_ort_")
        assert family.documentation
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total"), sample.name
    assert {"counter", "gauge", "histogram"} == kinds


def test_lines_of_a_histogram() -> None:
    """Buckets are cumulative, end with +Inf, and are followed by sum and count."""
    lines = [line for line in filled().prometheus().splitlines() if "batch_rows" in line]
    assert "# HELP hivellm_ort_batch_rows Rows in use in a forward pass." == lines[0]
    assert "# TYPE hivellm_ort_batch_rows histogram" == lines[1]
    assert [
        'hivellm_ort_batch_rows_bucket{le="1.0"} 0',
        'hivellm_ort_batch_rows_bucket{le="2.0"} 0',
        'hivellm_ort_batch_rows_bucket{le="3.0"} 1',
    ] == lines[2:5]
    assert [
        'hivellm_ort_batch_rows_bucket{le="+Inf"} 1',
        "hivellm_ort_batch_rows_sum 3.0",
        "hivellm_ort_batch_rows_count 1",
    ] == lines[-3:]


def test_text_without_events() -> None:
    """Before the first event the text is complete and parses."""
    text = Metrics().prometheus()
    assert text.endswith("\n")
    assert 24 == len(families(text))


def test_hostile_names_stay_inside_their_quotes() -> None:
    """A name with quotes, backslashes and line breaks forges no sample."""
    metrics = Metrics()
    metrics(finished('a"} 1\nevil_total{x="\\'))
    text = metrics.prometheus()
    assert (
        r'hivellm_ort_requests_total{expert="a\"} 1\nevil_total{x=\"\\",finish_reason="eos"} 1'
        in text.splitlines()
    )


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_name_survives(name: str) -> None:
    """Whatever an expert is called, the parser reads that name."""
    metrics = Metrics()
    metrics(finished(name))
    family = families(metrics.prometheus())["hivellm_ort_requests"]
    assert [{"expert": name, "finish_reason": "eos"}] == [sample.labels for sample in family.samples]  # type: ignore[attr-defined]


def test_half_a_surrogate_pair_can_be_sent() -> None:
    """A name that is no valid Unicode does not break the page."""
    metrics = Metrics()
    metrics(finished("a\ud800b"))
    assert b'expert="a?b"' in metrics.prometheus().encode("utf-8")
