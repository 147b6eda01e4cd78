"""The parts of a manifest: base models, their adapters, and suggested sampling."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from hivellm_ort.package.jsonfile import Node

__all__ = ["AdapterRef", "BaseModelRef", "DecodingDefaults"]

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """An adapter as the manifest describes it; `adapter_config.json` has the last word.

    Attributes:
        type: `lora`, `dora`, `ia3`, `lokr`, `adalora` or another word, in lower case; None when unset.
        r: Rank; None when unset.
        alpha: Scale times rank; None when unset.
        target_modules: Names of the adapted modules; empty when unset.
        sha256: Hex digest of the adapter file; None when unset.
        size_bytes: Size of the adapter file; None when unset.
        path: File or folder, relative to the package or to `weights/`; None when unset.
    """

    type: str | None
    r: int | None
    alpha: float | None
    target_modules: tuple[str, ...]
    sha256: str | None
    size_bytes: int | None
    path: str | None

    @classmethod
    def read(cls, node: Node, warnings: list[str]) -> AdapterRef:
        """Read one adapter; a value that cannot be meant is unset, and noted in `warnings`.

        Raises:
            ManifestError: A field has the wrong type.
        """
        kind = node.text("type")
        # Zero stands for "unset" in published manifests.
        return cls(
            type=kind.lower() if kind else None,
            r=_kept(node, "r", node.integer("r") or None, lambda value: value >= 1, warnings),
            alpha=node.number("alpha"),
            target_modules=node.texts("target_modules") or (),
            sha256=_digest(node, warnings),
            size_bytes=_kept(
                node, "size_bytes", node.integer("size_bytes") or None, lambda value: value >= 1, warnings
            ),
            path=node.text("path") or None,
        )


@dataclass(frozen=True, slots=True)
class BaseModelRef:
    """A base model that the expert was trained on.

    Attributes:
        name: As written: an identifier, or a path on the trainer's machine.
        sha256: Hex digest of the base's weights; None when unset.
        prompt_template: Name of the template of its prompts; None when unset.
        adapters: The adapters for this base.
    """

    name: str
    sha256: str | None
    prompt_template: str | None
    adapters: tuple[AdapterRef, ...]

    @classmethod
    def read(cls, node: Node, warnings: list[str], *, adapters_in: Node) -> BaseModelRef:
        """Read one base model.

        Args:
            node: The base model's object.
            warnings: Takes a sentence for each value that cannot be meant.
            adapters_in: The object that lists the adapters.

        Raises:
            ManifestError: The name is missing, or a field has the wrong type.
        """
        model = cls(
            name=node.required("name"),
            sha256=_digest(node, warnings),
            prompt_template=node.text("prompt_template") or None,
            adapters=tuple(
                AdapterRef.read(adapter, warnings) for adapter in adapters_in.children("adapters")
            ),
        )
        if not model.short_name.strip():
            node.fail("name", "ends without a name; name the base model")
        return model

    @property
    def short_name(self) -> str:
        """The last part of `name`, also of a path of POSIX or of Windows."""
        return re.split(r"[/\\]", self.name.rstrip("/\\"))[-1]


@dataclass(frozen=True, slots=True)
class DecodingDefaults:
    """`training.decoding`: how the publisher suggests to sample; None where unset.

    Attributes:
        temperature: At least 0.
        top_p: Above 0, at most 1.
        top_k: Tokens; 0 for all.
        min_p: From 0 to 1.
        stop_sequences: Texts at which to stop, as published.
        use_grammar: Whether to constrain the answer by the grammar.
        grammar_type: Free text, such as `json` or `sql-postgres`.
        grammar_file: Member that holds the grammar.
        max_new_tokens: At least 1.
        repetition_penalty: Above 0; 1 for none.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    stop_sequences: tuple[str, ...] | None = None
    use_grammar: bool | None = None
    grammar_type: str | None = None
    grammar_file: str | None = None
    max_new_tokens: int | None = None
    repetition_penalty: float | None = None

    @classmethod
    def read(cls, node: Node, warnings: list[str]) -> DecodingDefaults:
        """Read the suggestions; one out of range is unset, and noted in `warnings`.

        Raises:
            ManifestError: A field has the wrong type.
        """

        def number(key: str, accept: Callable[[float], bool]) -> float | None:
            return _kept(node, key, node.number(key), accept, warnings)

        def integer(key: str, least: int) -> int | None:
            return _kept(node, key, node.integer(key), lambda value: value >= least, warnings)

        stops = node.texts("stop_sequences")
        return cls(
            temperature=number("temperature", lambda value: value >= 0),
            top_p=number("top_p", lambda value: 0 < value <= 1),
            top_k=integer("top_k", 0),
            min_p=number("min_p", lambda value: 0 <= value <= 1),
            # An empty text would end every answer at once.
            stop_sequences=None if stops is None else tuple(stop for stop in stops if stop),
            use_grammar=node.flag("use_grammar"),
            grammar_type=node.text("grammar_type") or None,
            grammar_file=node.text("grammar_file") or None,
            max_new_tokens=integer("max_new_tokens", 1),
            repetition_penalty=number("repetition_penalty", lambda value: value > 0),
        )


def _digest(node: Node, warnings: list[str]) -> str | None:
    value = (node.text("sha256") or "").lower().removeprefix("sha256:")
    if not value:
        return None
    if not _DIGEST.match(value):
        warnings.append(f"{node.pointer('sha256')} is no SHA-256 in hex; taken as unset")
        return None
    return value


def _kept(
    node: Node, key: str, value: _Number | None, accept: Callable[[float], bool], warnings: list[str]
) -> _Number | None:
    if value is None or accept(value):
        return value
    warnings.append(f"{node.pointer(key)}: {value:g} is out of range; taken as unset")
    return None
