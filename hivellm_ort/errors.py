"""Every error this package raises.

The tree, with the built-in that a leaf also is::

    ExpertError
    ├── OptionError (ValueError)        an argument or option has a forbidden value
    ├── OptionTypeError (TypeError)     an argument or option has a wrong type, or does not exist
    ├── LoadError                       a package, bundle or adapter cannot be used
    │   ├── ManifestError (ValueError)          manifest.json or decoder.json is wrong
    │   ├── IntegrityError (ValueError)         bytes differ from their digest, or the archive is unsafe
    │   ├── AdapterError (ValueError)           an adapter's config or tensors are wrong
    │   │   └── BaseMismatchError               the adapter was trained or prepared for another base
    │   └── ProviderError (RuntimeError)        no ONNX Runtime, two of them, or the device is unavailable
    ├── InferenceError                  a request cannot be answered
    │   ├── UnknownExpertError (LookupError)    no loaded expert has this name
    │   ├── ContextLengthError (ValueError)     prompt and answer do not fit the model's context
    │   ├── GrammarError (ValueError)           a grammar is wrong, or no answer can satisfy it
    │   ├── InterruptedRunError                 a forward pass was ended; its requests end as cancelled instead
    │   └── OutOfMemoryError (MemoryError)      buffers for the request cannot be allocated
    └── ExportError                     the exporter cannot make the requested export
        └── UnsupportedArchitectureError (ValueError)

A message names the fault, its place (file, manifest field, tensor) and a cure. `argument` writes the names of
arguments for messages: Python names, or flags in a shell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = [
    "AdapterError",
    "BaseMismatchError",
    "ContextLengthError",
    "ExpertError",
    "ExportError",
    "GrammarError",
    "InferenceError",
    "IntegrityError",
    "InterruptedRunError",
    "LoadError",
    "ManifestError",
    "Naming",
    "OptionError",
    "OptionTypeError",
    "OutOfMemoryError",
    "ProviderError",
    "UnknownExpertError",
    "UnsupportedArchitectureError",
    "argument",
    "arguments_named_by",
]


class ExpertError(Exception):
    """Root of all errors of this package."""


class OptionError(ExpertError, ValueError):
    """An argument or option has a forbidden value, or two of them exclude each other."""


class OptionTypeError(ExpertError, TypeError):
    """An argument or option has a value of a wrong type, or does not exist."""


class LoadError(ExpertError):
    """A package, bundle or adapter cannot be used."""


class ManifestError(LoadError, ValueError):
    """`manifest.json` or `decoder.json` is missing, malformed or contradicts itself.

    Attributes:
        pointer: JSON pointer of the field; None if the fault is not about one field.
        line: Line of the file, from 1; None if unknown.
        column: Column in that line, from 1; None as `line`.
    """

    def __init__(
        self, message: str, *, pointer: str | None = None, line: int | None = None, column: int | None = None
    ) -> None:
        super().__init__(message)
        self.pointer = pointer
        self.line = line
        self.column = column


class IntegrityError(LoadError, ValueError):
    """Bytes differ from their recorded digest, or an archive breaks a safety rule."""


class AdapterError(LoadError, ValueError):
    """An adapter's configuration or tensors are missing, malformed or not supported."""


class BaseMismatchError(AdapterError):
    """The adapter was trained or prepared for another base model."""


class ProviderError(LoadError, RuntimeError):
    """ONNX Runtime is missing, installed twice, or cannot serve the requested device."""


class InferenceError(ExpertError):
    """A request cannot be answered."""


class UnknownExpertError(InferenceError, LookupError):
    """No loaded expert has this name."""


class ContextLengthError(InferenceError, ValueError):
    """The prompt, or the prompt and the answer, exceed the model's context."""


class GrammarError(InferenceError, ValueError):
    """A grammar has a fault, exceeds a limit, or allows no further token.

    Attributes:
        line: Line of the grammar, from 1; None if unknown.
        column: Column in that line, from 1, in characters; None as `line`.
        text: The answer up to the error; empty if it had not begun.
    """

    def __init__(self, message: str, *, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.line = line
        self.column = column
        self.text = ""


class InterruptedRunError(InferenceError):
    """A forward pass was stopped because a request was cancelled or timed out. No request ends with this error.

    Attributes:
        read: Number of the row's tokens that were read in complete passes.
    """

    read = 0


class OutOfMemoryError(InferenceError, MemoryError):
    """Buffers for the request cannot be allocated."""


class ExportError(ExpertError):
    """The exporter cannot make the requested export."""


class UnsupportedArchitectureError(ExportError, ValueError):
    """The exporter does not know the base model's architecture."""


Naming = Callable[[str, str | int | None], str | None]
"""Takes an argument's name in Python and a value or None. Returns its text for messages; None for that of Python."""

_NAMING: ContextVar[Naming | None] = ContextVar("hivellm_ort.naming", default=None)


def argument(name: str, value: str | int | None = None) -> str:
    """Return an argument for a message, such as `trust='off'`, or `--trust off` in a shell.

    Args:
        name: Its name in Python.
        value: Its value; None for the name alone.
    """
    naming = _NAMING.get()
    named = naming(name, value) if naming is not None else None
    return named or (name if value is None else f"{name}={value!r}")


@contextmanager
def arguments_named_by(naming: Naming) -> Iterator[None]:
    """Let a function name the arguments while the block runs, in this thread."""
    token = _NAMING.set(naming)
    try:
        yield
    finally:
        _NAMING.reset(token)
