"""ONNX Runtime inference for HiveLLM `.expert` packages, without PyTorch.

>>> from hivellm_ort import Expert
>>> expert = Expert.load("expert-sql.expert")  # doctest: +SKIP
>>> print(expert.generate("List all users").text)  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from hivellm_ort.expert import Expert
    from hivellm_ort.grammar.grammar import Grammar
    from hivellm_ort.integrity import Trust, Verdict
    from hivellm_ort.manager import ExpertInfo, ExpertManager
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

__version__ = "0.1.0"

# Imported when they are asked for: who names the package pays for what it uses. Tools that freeze applications find
# the modules by the imports above.
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

if not TYPE_CHECKING:  # a checker that saw it would take every name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
