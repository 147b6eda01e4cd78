"""ONNX Runtime inference for HiveLLM `.expert` packages, without PyTorch.

>>> from hivellm_ort import Expert
>>> expert = Expert.load("expert-sql.expert")  # doctest: +SKIP
>>> print(expert.generate("List all users").text)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hivellm_ort.errors import (
    AdapterError,
    BaseMismatchError,
    ContextLengthError,
    ExpertError,
    ExportError,
    GrammarError,
    InferenceError,
    IntegrityError,
    LoadError,
    ManifestError,
    OptionError,
    OptionTypeError,
    OutOfMemoryError,
    ProviderError,
    UnknownExpertError,
    UnsupportedArchitectureError,
)
from hivellm_ort.lazy import lazy_attributes as _lazy_attributes
from hivellm_ort.version import __version__

if TYPE_CHECKING:
    from hivellm_ort.expert import Expert
    from hivellm_ort.grammar.grammar import Grammar
    from hivellm_ort.integrity import Trust, Verdict
    from hivellm_ort.loading.options import LoadOptions
    from hivellm_ort.manager import ExpertInfo, ExpertManager
    from hivellm_ort.observability import PROMETHEUS_CONTENT_TYPE
    from hivellm_ort.options import GenerateOptions, ScoreOptions
    from hivellm_ort.package.archive import Limits
    from hivellm_ort.package.manifest import ExpertManifest
    from hivellm_ort.result import (
        AnswerScore,
        InferenceResult,
        ScoreResult,
        Timings,
        TokenLogprob,
        ToolCall,
    )
    from hivellm_ort.serving.stream import AsyncTextStream, TextStream
    from hivellm_ort.tools.parser import ArgumentsDelta, CallEnded, CallStarted, TextDelta, ToolCallParser

__all__ = [
    "PROMETHEUS_CONTENT_TYPE",
    "AdapterError",
    "AnswerScore",
    "ArgumentsDelta",
    "AsyncTextStream",
    "BaseMismatchError",
    "CallEnded",
    "CallStarted",
    "ContextLengthError",
    "Expert",
    "ExpertError",
    "ExpertInfo",
    "ExpertManager",
    "ExpertManifest",
    "ExportError",
    "GenerateOptions",
    "Grammar",
    "GrammarError",
    "InferenceError",
    "InferenceResult",
    "IntegrityError",
    "Limits",
    "LoadError",
    "LoadOptions",
    "ManifestError",
    "OptionError",
    "OptionTypeError",
    "OutOfMemoryError",
    "ProviderError",
    "ScoreOptions",
    "ScoreResult",
    "TextDelta",
    "TextStream",
    "Timings",
    "TokenLogprob",
    "ToolCall",
    "ToolCallParser",
    "Trust",
    "UnknownExpertError",
    "UnsupportedArchitectureError",
    "Verdict",
    "__version__",
]

# Imported on first use, so that `import hivellm_ort` stays fast. Tools that freeze applications find the modules by
# the imports above.
_HOMES = {
    "AnswerScore": "result",
    "ArgumentsDelta": "tools.parser",
    "AsyncTextStream": "serving.stream",
    "CallEnded": "tools.parser",
    "CallStarted": "tools.parser",
    "Expert": "expert",
    "ExpertInfo": "manager",
    "ExpertManager": "manager",
    "ExpertManifest": "package.manifest",
    "GenerateOptions": "options",
    "Grammar": "grammar.grammar",
    "InferenceResult": "result",
    "Limits": "package.archive",
    "LoadOptions": "loading.options",
    "PROMETHEUS_CONTENT_TYPE": "observability",
    "ScoreOptions": "options",
    "ScoreResult": "result",
    "TextDelta": "tools.parser",
    "TextStream": "serving.stream",
    "Timings": "result",
    "TokenLogprob": "result",
    "ToolCall": "result",
    "ToolCallParser": "tools.parser",
    "Trust": "integrity",
    "Verdict": "integrity",
}

if not TYPE_CHECKING:  # a type checker would accept every name because of it
    __getattr__ = _lazy_attributes(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
