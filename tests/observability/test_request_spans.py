"""OpenTelemetry spans: what they say, what they never say, and that nobody needs them."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from event_samples import result

from hivellm_ort.errors import GrammarError
from hivellm_ort.observability import start_request, tracing

trace = pytest.importorskip("opentelemetry.trace", reason="opentelemetry-api is not installed")
sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="opentelemetry-sdk is not installed")
export = pytest.importorskip("opentelemetry.sdk.trace.export", reason="opentelemetry-sdk is not installed")
memory = pytest.importorskip(
    "opentelemetry.sdk.trace.export.in_memory_span_exporter", reason="opentelemetry-sdk is not installed"
)


@pytest.fixture(autouse=True)
def _fresh_tracing() -> Iterator[None]:
    """What is found out once is found out again."""
    tracing._tracer.cache_clear()
    tracing._report_failure.cache_clear()
    yield
    tracing._tracer.cache_clear()
    tracing._report_failure.cache_clear()


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An SDK that is the application's, without setting the process's own, which can be done only once."""
    provider = sdk.TracerProvider()
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return provider


@pytest.fixture
def spans(provider: Any) -> Any:
    """Where finished spans are found."""
    exporter = memory.InMemorySpanExporter()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    return exporter


def test_span_of_an_answer(spans: Any) -> None:
    """A finished request is one span with the names and attributes of the conventions."""
    sampling = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "max_tokens": 64,
        "seed": 7,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "stop": ["\n\n", ";"],
        "min_p": 0.1,
        "logit_bias": {3: 1.0},
    }
    span = start_request("sql", sampling)
    span.first_token()
    assert () == spans.get_finished_spans()
    span.end(result())
    (found,) = spans.get_finished_spans()
    assert "chat sql" == found.name
    assert trace.SpanKind.INTERNAL == found.kind
    assert "hivellm_ort" == found.instrumentation_scope.name
    assert trace.StatusCode.UNSET == found.status.status_code
    assert {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "hivellm",
        "gen_ai.request.model": "sql",
        "gen_ai.request.temperature": 0.7,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 40,
        "gen_ai.request.max_tokens": 64,
        "gen_ai.request.seed": 7,
        "gen_ai.request.presence_penalty": 0.5,
        "gen_ai.request.frequency_penalty": 0.25,
        "gen_ai.request.stop_sequences": ("\n\n", ";"),
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 8,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.response.finish_reasons": ("eos",),
    } == dict(found.attributes)
    assert ["first_token"] == [event.name for event in found.events]
    assert found.start_time <= found.events[0].timestamp <= found.end_time


def test_names_are_those_of_the_conventions(spans: Any) -> None:
    """Every `gen_ai` attribute is one that OpenTelemetry's own package knows."""
    known = pytest.importorskip(
        "opentelemetry.semconv._incubating.attributes.gen_ai_attributes",
        reason="opentelemetry-semantic-conventions is not installed",
    )
    sampling = dict.fromkeys(("temperature", "top_p", "presence_penalty", "frequency_penalty"), 0.5)
    span = start_request("sql", sampling | {"top_k": 1, "max_tokens": 2, "seed": 3, "stop": ";"}, stream=True)
    span.first_token()
    span.end(result())
    (found,) = spans.get_finished_spans()
    names = {value for value in vars(known).values() if isinstance(value, str)}
    assert set() == set(found.attributes) - names


def test_options_that_are_off_are_left_out(spans: Any) -> None:
    """None and a top_k of 0 are no settings; one stop string is a list of one; numpy's numbers are numbers."""
    sampling = {
        "temperature": np.float32(0.5),
        "seed": None,
        "top_k": 0,
        "max_tokens": np.int64(8),
        "stop": "END",
    }
    start_request("sql", sampling).end(result())
    (found,) = spans.get_finished_spans()
    prefix = "gen_ai.request."
    options = {
        key.removeprefix(prefix): value for key, value in found.attributes.items() if key.startswith(prefix)
    }
    assert {"model": "sql", "temperature": 0.5, "max_tokens": 8, "stop_sequences": ("END",)} == options


def test_span_of_a_stream(spans: Any) -> None:
    """A streamed answer says so, and how long its first piece took."""
    span = start_request("sql", {}, stream=True)
    span.first_token()
    span.end(result())
    (found,) = spans.get_finished_spans()
    assert found.attributes["gen_ai.request.stream"] is True
    assert 0 < found.attributes["gen_ai.response.time_to_first_chunk"] < 60


def test_span_of_an_error(spans: Any) -> None:
    """An error is told by its type; its message may quote the answer and is not told."""
    start_request("sql", {}).end(GrammarError("the answer 'secret' cannot go on"))
    (found,) = spans.get_finished_spans()
    assert "GrammarError" == found.attributes["error.type"]
    assert ("error",) == found.attributes["gen_ai.response.finish_reasons"]
    assert trace.StatusCode.ERROR == found.status.status_code
    assert "secret" not in found.to_json()


def test_no_text_is_recorded(spans: Any) -> None:
    """Neither the prompt's nor the answer's text is in the span, even where an option holds it."""
    span = start_request("sql", {"messages": [{"role": "user", "content": "secret"}], "system": "secret"})
    span.end(result(text="secret", reasoning="secret"))
    (found,) = spans.get_finished_spans()
    assert "secret" not in found.to_json()


def test_parent_is_that_of_the_submitting_thread(provider: Any, spans: Any) -> None:
    """The span belongs under the caller's, though another thread ends it."""
    with provider.get_tracer("application").start_as_current_span("handler"):
        span = start_request("sql", {})

    def work() -> None:
        with provider.get_tracer("application").start_as_current_span("worker"):
            span.first_token()
            span.end(result())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    found = {each.name: each for each in spans.get_finished_spans()}
    assert found["handler"].context.span_id == found["chat sql"].parent.span_id
    assert found["handler"].context.trace_id == found["chat sql"].context.trace_id


def test_a_span_ends_once(spans: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What comes after the end, such as a late cancellation, changes nothing and warns of nothing."""
    span = start_request("sql", {})
    span.end(result())
    span.first_token()
    span.end(RuntimeError())
    (found,) = spans.get_finished_spans()
    assert ("eos",) == found.attributes["gen_ai.response.finish_reasons"]
    assert [] == caplog.records


def test_unsampled_requests_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the application records no span, or has no SDK, every request shares one span that does nothing."""
    sampling = pytest.importorskip("opentelemetry.sdk.trace.sampling")
    provider = sdk.TracerProvider(sampler=sampling.ALWAYS_OFF)
    for get_tracer in (provider.get_tracer, trace.NoOpTracerProvider().get_tracer):
        tracing._tracer.cache_clear()
        monkeypatch.setattr(trace, "get_tracer", get_tracer)
        assert start_request("sql", {}) is start_request("json", {})


def test_broken_processors_harm_no_generation(provider: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A span processor that raises is logged once, and no request sees it."""

    class Broken(sdk.SpanProcessor):  # type: ignore[misc, name-defined]
        def on_end(self, span: object) -> None:
            raise RuntimeError("the collector is down")

    provider.add_span_processor(Broken())
    for _ in range(3):
        start_request("sql", {}).end(result())
    assert [("hivellm_ort", logging.ERROR)] == [(record.name, record.levelno) for record in caplog.records]
    assert "the collector is down" in caplog.text


def test_without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the import fails everything works, and the import is tried once."""
    tries = []

    class Finder:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "opentelemetry":
                tries.append(name)
                raise ModuleNotFoundError(name)

    for name in [name for name in sys.modules if name.split(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    for outcome in (result(), GrammarError("no")):
        span = start_request("sql", {"temperature": 0.5}, stream=True)
        span.first_token()
        span.end(outcome)
    assert ["opentelemetry"] == tries


def test_import_needs_no_opentelemetry() -> None:
    """Importing the room imports neither OpenTelemetry nor anything but the standard library."""
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from hivellm_ort.observability import start_request\n"
        "span = start_request('sql', {}); span.first_token(); span.end(RuntimeError())\n"
        "assert 'prometheus_client' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
