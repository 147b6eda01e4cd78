"""The parts of a manifest: base models, their adapters, suggested sampling, routing and constraints."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from hivellm_ort.filenames import shown
from hivellm_ort.jsonfiles.node import Node
from hivellm_ort.ranges import (
    MAX_PENALTY,
    MAX_PUBLISHED_STOPS,
    MAX_STOP_LENGTH,
    MAX_TEMPERATURE,
    MIN_PENALTY,
    MIN_TEMPERATURE,
)

__all__ = ["PROMPT_TEMPLATES", "AdapterRef", "BaseModelRef", "Constraints", "DecodingDefaults", "Routing"]

PROMPT_TEMPLATES = (
    "chatml",
    "qwen3",
    "qwen",
    "llama",
    "llama2",
    "llama3",
    "alpaca",
    "vicuna",
    "mistral",
    "phi",
    "deepseek",
    "gemma",
    "custom",
)
"""Names of prompt templates that published manifests use."""

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """An adapter as the manifest describes it. `adapter_config.json` takes precedence.

    Attributes:
        type: `lora`, `dora`, `ia3`, `lokr`, `adalora` or another word, in lower case; None when unset.
        r: Rank; None when unset.
        alpha: Scale times rank; None when unset.
        target_modules: Names of the adapted modules; empty when unset.
        sha256: Hex digest of the adapter file; None when unset.
        size_bytes: Size of the adapter file; None when unset.
        path: File or folder, relative to the package or to its folder `weights/`; None when unset.
    """

    type: str | None
    r: int | None
    alpha: float | None
    target_modules: tuple[str, ...]
    sha256: str | None
    size_bytes: int | None
    path: str | None

    @classmethod
    def read(cls, node: Node) -> AdapterRef:
        """Read one adapter."""
        kind = node.text("type")
        # Zero stands for "unset" in published manifests.
        return cls(
            type=kind.lower() if kind else None,
            r=_kept(node, "r", node.integer("r") or None, lambda value: value >= 1, "at least 1"),
            alpha=node.number("alpha"),
            target_modules=node.texts("target_modules") or (),
            sha256=_digest(node),
            size_bytes=_kept(
                node,
                "size_bytes",
                node.integer("size_bytes") or None,
                lambda value: value >= 1,
                "at least 1, or 0 for unset",
            ),
            path=node.text("path") or None,
        )


@dataclass(frozen=True, slots=True)
class BaseModelRef:
    """A base model for which the expert has adapters.

    Attributes:
        name: As written: an identifier, or a path on the machine of the training.
        sha256: Hex digest of the base's weights; None when unset.
        prompt_template: Name of the prompt template; None when unset.
        adapters: The adapters for this base.
    """

    name: str
    sha256: str | None
    prompt_template: str | None
    adapters: tuple[AdapterRef, ...]

    @classmethod
    def read(cls, node: Node, *, adapters_in: Node) -> BaseModelRef | None:
        """Read one base model; None if it has no usable name.

        Args:
            node: The base model's object.
            adapters_in: The object that lists the adapters.
        """
        model = cls(
            name=node.text("name") or "",
            sha256=_digest(node),
            prompt_template=_template(node),
            adapters=tuple(AdapterRef.read(adapter) for adapter in adapters_in.children("adapters")),
        )
        if model.short_name.strip():
            return model
        node.note("name", "no usable name; name the base model")
        return None

    @property
    def short_name(self) -> str:
        """The last part of `name`, which may be a path of POSIX or Windows."""
        return re.split(r"[/\\]", self.name.rstrip("/\\"))[-1]


@dataclass(frozen=True, slots=True)
class DecodingDefaults:
    """`training.decoding`: the sampling options that the publisher suggests; None for unset ones.

    Attributes:
        temperature: 0, or 0.0001 to 1000000.
        top_p: Above 0, at most 1.
        top_k: Tokens; 0 for all.
        min_p: From 0 to 1.
        stop_sequences: At most 64 stop strings of 1 to 1024 characters.
        use_grammar: Whether to constrain the answer with the grammar.
        grammar_type: Free text, such as `json` or `sql-postgres`.
        grammar_file: The member with the grammar.
        max_new_tokens: At least 1.
        repetition_penalty: 0.000001 to 1000000; 1 for none.
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
    def read(cls, node: Node) -> DecodingDefaults:
        """Read the section."""

        def number(key: str, accept: Callable[[float], bool], range_: str) -> float | None:
            return _kept(node, key, node.number(key), accept, range_)

        return cls(
            temperature=number(
                "temperature",
                lambda value: value == 0 or MIN_TEMPERATURE <= value <= MAX_TEMPERATURE,
                f"from {MIN_TEMPERATURE} to {MAX_TEMPERATURE:.0f}, or 0 for greedy",
            ),
            top_p=number("top_p", lambda value: 0 < value <= 1, "above 0, at most 1"),
            top_k=_at_least(node, "top_k", 0),
            min_p=number("min_p", lambda value: 0 <= value <= 1, "from 0 to 1"),
            stop_sequences=_stops(node),
            use_grammar=node.flag("use_grammar"),
            grammar_type=node.text("grammar_type") or None,
            grammar_file=node.text("grammar_file") or None,
            max_new_tokens=_at_least(node, "max_new_tokens", 1),
            repetition_penalty=number(
                "repetition_penalty",
                lambda value: MIN_PENALTY <= value <= MAX_PENALTY,
                f"from {MIN_PENALTY:f} to {MAX_PENALTY:.0f}",
            ),
        )


@dataclass(frozen=True, slots=True)
class Routing:
    """`routing`: the prompts for which the publisher suggests this expert.

    Attributes:
        keywords: Words and phrases of prompts for this expert.
        exclude_keywords: Words and phrases of prompts for other experts.
        router_hint: A condition on capabilities, as written, such as `database=sql OR task=text2sql`.
        priority: From 0 to 1; a higher value is preferred; None when unset.
    """

    keywords: tuple[str, ...] = ()
    exclude_keywords: tuple[str, ...] = ()
    router_hint: str | None = None
    priority: float | None = None

    @classmethod
    def read(cls, node: Node) -> Routing:
        """Read the section."""
        return cls(
            keywords=node.texts("keywords") or (),
            exclude_keywords=node.texts("exclude_keywords") or (),
            router_hint=node.text("router_hint") or None,
            priority=_kept(
                node, "priority", node.number("priority"), lambda value: 0 <= value <= 1, "from 0 to 1"
            ),
        )


@dataclass(frozen=True, slots=True)
class Constraints:
    """`constraints`: required and incompatible experts, and the order of loading.

    Attributes:
        requires: Required experts, such as `expert-sql` or `expert-sql@0.3.0`.
        incompatible_with: Experts that must not be loaded together with this one.
        load_order: Experts with a lower number are loaded first; at least 0; None when unset.
        max_chain: Most experts in a chain of requirements; at least 1; None when unset.
    """

    requires: tuple[str, ...] = ()
    incompatible_with: tuple[str, ...] = ()
    load_order: int | None = None
    max_chain: int | None = None

    @classmethod
    def read(cls, node: Node) -> Constraints:
        """Read the section."""
        return cls(
            requires=node.texts("requires") or (),
            incompatible_with=node.texts("incompatible_with") or (),
            load_order=_at_least(node, "load_order", 0),
            max_chain=_at_least(node, "max_chain", 1),
        )


def _digest(node: Node) -> str | None:
    value = (node.text("sha256") or "").lower().removeprefix("sha256:")
    if not value:
        return None
    if not _DIGEST.match(value):
        node.note("sha256", "no SHA-256 in hex, left unset; write 64 hex digits or an empty string")
        return None
    return value


def _stops(node: Node) -> tuple[str, ...] | None:
    """Return the usable stop sequences; None if absent."""
    stops = node.texts("stop_sequences", _stop_fault)
    if stops is not None and len(stops) > MAX_PUBLISHED_STOPS:
        node.note(
            "stop_sequences",
            f"{len(stops)} texts, left out after the first {MAX_PUBLISHED_STOPS}; write no more of them",
        )
        return stops[:MAX_PUBLISHED_STOPS]
    return stops


def _stop_fault(stop: str) -> str | None:
    if not stop:
        return "empty, which would end every answer at once, left out; fill it in"
    if len(stop) > MAX_STOP_LENGTH:
        return f"{len(stop)} characters are too many, left out; write at most {MAX_STOP_LENGTH}"
    return None


def _template(node: Node) -> str | None:
    name = node.text("prompt_template") or None
    if name is not None and name.lower() not in PROMPT_TEMPLATES:
        node.note("prompt_template", f"{shown(name)} is not a known template; check the spelling")
    return name


def _at_least(node: Node, key: str, least: int) -> int | None:
    return _kept(node, key, node.integer(key), lambda value: value >= least, f"at least {least}")


def _kept(
    node: Node, key: str, value: _Number | None, accept: Callable[[_Number], bool], range_: str
) -> _Number | None:
    if value is None or accept(value):
        return value
    node.note(key, f"{value:g} is out of range, left unset; write a number {range_}")
    return None
