"""ONNX Runtime inference for HiveLLM `.expert` packages, without PyTorch.

>>> from hivellm_ort import Expert
>>> expert = Expert.load("expert-sql.expert")  # doctest: +SKIP
>>> print(expert.generate("List all users").text)  # doctest: +SKIP
"""

from __future__ import annotations

from hivellm_ort.decoding.stream import TextStream
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
    OutOfMemoryError,
    ProviderError,
    UnknownExpertError,
    UnsupportedArchitectureError,
)
from hivellm_ort.expert import Expert
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.integrity import Trust, Verdict
from hivellm_ort.manager import ExpertInfo, ExpertManager
from hivellm_ort.options import GenerateOptions
from hivellm_ort.package.archive import Limits
from hivellm_ort.package.manifest import ExpertManifest
from hivellm_ort.result import InferenceResult, Timings

__all__ = [
    "AdapterError",
    "BaseMismatchError",
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
    "OutOfMemoryError",
    "ProviderError",
    "TextStream",
    "Timings",
    "Trust",
    "UnknownExpertError",
    "UnsupportedArchitectureError",
    "Verdict",
    "__version__",
]

__version__ = "0.1.0"
