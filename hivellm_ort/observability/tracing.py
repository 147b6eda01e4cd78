"""OpenTelemetry spans, one per request, if `opentelemetry-api` is installed.

Names and attributes are those of the semantic conventions for generative AI (the development version of 2026, after
1.37: `gen_ai.provider.name` replaces `gen_ai.system`). The kind is INTERNAL, which they allow for a model in the
same process. Prompts, answers and error messages are never recorded, because messages may quote answers.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hivellm_ort.result import InferenceResult

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

__all__ = ["RequestSpan", "start_request"]

_LOG = logging.getLogger("hivellm_ort")
_OPERATION = "chat"
_PROVIDER = "hivellm"
# Options may be numpy numbers, which span attributes may not be.
_OPTIONS = {
    "temperature": float,
    "top_p": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "max_tokens": int,
    "seed": int,
}


class RequestSpan:
    """The span of one request. Its methods may be called from any thread and never raise.

    Args:
        span: The span; None records nothing.
        stream: Whether the answer is streamed.
    """

    __slots__ = ("_begin", "_span", "_stream")

    def __init__(self, span: Span | None = None, *, stream: bool = False):
        self._span = span
        self._stream = stream
        self._begin = time.perf_counter()

    def first_token(self) -> None:
        """Record the event `first_token`."""
        if self._span is None:
            return
        try:
            if not self._span.is_recording():
                return
            self._span.add_event("first_token")
            if self._stream:
                seconds = time.perf_counter() - self._begin
                self._span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)
        except Exception:
            _report_failure()

    def end(self, outcome: InferenceResult | BaseException) -> None:
        """Record the outcome and end the span. Later calls do nothing.

        Args:
            outcome: The result or the error.
        """
        if self._span is None:
            return
        try:
            if not self._span.is_recording():
                return
            if isinstance(outcome, BaseException):
                _record_error(self._span, outcome)
            else:
                _record_result(self._span, outcome)
            self._span.end()
        except Exception:
            _report_failure()


_NOTHING = RequestSpan()


def start_request(expert: str, sampling: Mapping[str, Any], *, stream: bool = False) -> RequestSpan:
    """Start the span of a request. The current span of the calling thread becomes its parent.

    Args:
        expert: Name the expert is loaded under.
        sampling: Options by their names in `GenerateOptions`. None counts as absent.
        stream: Whether the answer is streamed.

    Returns:
        The span. It records nothing if OpenTelemetry is not installed or does not sample this request.
    """
    tracer = _tracer()
    if tracer is None:
        return _NOTHING
    try:
        span = _start(tracer, expert, sampling, stream=stream)
        return RequestSpan(span, stream=stream) if span.is_recording() else _NOTHING
    except Exception:
        _report_failure()
        return _NOTHING


@functools.cache
def _tracer() -> Tracer | None:
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    # A provider that the application sets later is used from then on.
    return trace.get_tracer("hivellm_ort")


def _start(tracer: Tracer, expert: str, sampling: Mapping[str, Any], *, stream: bool) -> Span:
    from opentelemetry.trace import SpanKind

    attributes: dict[str, str | float | bool | Sequence[str]] = {
        "gen_ai.operation.name": _OPERATION,
        "gen_ai.provider.name": _PROVIDER,
        "gen_ai.request.model": expert,
    }
    for name, convert in _OPTIONS.items():
        value = sampling.get(name)
        if value is not None:
            attributes[f"gen_ai.request.{name}"] = convert(value)
    if sampling.get("top_k"):  # 0 is off
        attributes["gen_ai.request.top_k"] = int(sampling["top_k"])
    stop = sampling.get("stop")
    if stop:
        attributes["gen_ai.request.stop_sequences"] = (stop,) if isinstance(stop, str) else tuple(stop)
    if stream:
        attributes["gen_ai.request.stream"] = True
    return tracer.start_span(f"{_OPERATION} {expert}", kind=SpanKind.INTERNAL, attributes=attributes)


def _record_result(span: Span, result: InferenceResult) -> None:
    span.set_attributes(
        {
            "gen_ai.usage.input_tokens": result.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": result.cached_tokens,
            "gen_ai.usage.output_tokens": result.completion_tokens,
            "gen_ai.response.finish_reasons": (result.finish_reason,),
        }
    )


def _record_error(span: Span, error: BaseException) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attributes({"error.type": type(error).__name__, "gen_ai.response.finish_reasons": ("error",)})
    span.set_status(StatusCode.ERROR)


@functools.cache  # once is enough: a broken span processor would fail with every request
def _report_failure() -> None:
    _LOG.exception("OpenTelemetry raised; the generation goes on, and further errors of it are not logged")
