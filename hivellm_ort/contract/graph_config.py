"""How to run the graphs of a bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hivellm_ort.contract.fields import AGAIN, shortened, text, text_fault, whole
from hivellm_ort.jsonfiles.node import Node

__all__ = ["GraphConfig"]

_T = TypeVar("_T")

_MAX_ENTRIES = 64  # inputs, dimensions, sizes of one: more than any graph has
_MAX_SIZE = 1 << 31


@dataclass(frozen=True)
class GraphConfig:
    """The settings that a runtime needs to run the graphs. The defaults are those of target `cpu`.

    Attributes:
        cache_dtype: Type of `past_key_values.*` and `present.*`: `float32`, `float16`, `bfloat16`, or since contract
            1.6 `int8` with scales that the graph has.
        activation_dtype: Float type that the graph computes in.
        adapter_dtype: Float type of the adapter inputs. Logits are float32 everywhere.
        opsets: Version of each operator domain. `""` is ai.onnx.
        inputs: Every graph input except caches and adapters, with its shape: sizes and names of free dimensions.
        shapes: Allowed values of a dimension. A dimension that is not listed takes any value. With one value the
            graph has that number; with several it has the name.
        multi_token_append: Whether a row with a filled cache may take several tokens at once.
        cache_update: `in_place`, `past_key_values.*` and `present.*` are the same buffers; or `new_tokens`,
            `present.*` holds the S new positions only, which the runtime copies into its own buffers.
        greedy_output: Whether the graph also has the output `token_ids`, int64 [rows]: the argmax of each row.
            Since contract 1.5.
    """

    cache_dtype: str = "float32"
    activation_dtype: str = "float32"
    adapter_dtype: str = "float32"
    opsets: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"": 18, "com.microsoft": 1})
    inputs: Mapping[str, Sequence[str | int]] = dataclasses.field(
        default_factory=lambda: {
            "input_ids": ("batch_size", "sequence_length"),
            "seqlens_k": ("batch_size",),
            "total_sequence_length": (),
            "logits_rows": ("rows",),
        }
    )
    shapes: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    multi_token_append: bool = True
    cache_update: str = "in_place"
    greedy_output: bool = False

    @classmethod
    def read(cls, node: Node) -> GraphConfig:
        """Read `graph`. Missing fields have the values of `cpu`. The engine checks whether it knows the values.

        Raises:
            ManifestError: A field has another type or range.
        """
        default = cls()

        def word(key: str, otherwise: str) -> str:
            return text(node, key) if node.has(key) else otherwise

        append, greedy = node.flag("multi_token_append"), node.flag("greedy_output")
        return cls(
            cache_dtype=word("cache_dtype", default.cache_dtype),
            activation_dtype=word("activation_dtype", default.activation_dtype),
            adapter_dtype=word("adapter_dtype", default.adapter_dtype),
            opsets=_each(node, "opsets", lambda own, key: whole(own, key, 1, _MAX_SIZE)) or default.opsets,
            inputs=_each(node, "inputs", _dimensions) or default.inputs,
            shapes=_each(node, "shapes", _sizes),
            multi_token_append=default.multi_token_append if append is None else append,
            cache_update=word("cache_update", default.cache_update),
            greedy_output=default.greedy_output if greedy is None else greedy,
        )


def _each(node: Node, key: str, read: Callable[[Node, str], _T]) -> dict[str, _T]:
    """Return the fields of an object; nothing if it is absent."""
    own = node.child(key)
    names = () if own is None else own.names()
    if own is None or not names:
        return {}
    if len(names) > _MAX_ENTRIES:
        node.fail(key, f"has {len(names)} fields, {_MAX_ENTRIES} is the most; {AGAIN}")
    return {name: read(own, name) for name in names}


def _dimensions(node: Node, key: str) -> tuple[str | int, ...]:
    """Return the shape of an input."""
    return tuple(
        value if isinstance(value, str) and not text_fault(value) else _size(node, key, value)
        for value in _list(node, key)
    )


def _sizes(node: Node, key: str) -> tuple[int, ...]:
    """Return the values that a dimension may have, ascending."""
    return tuple(sorted({_size(node, key, value) for value in _list(node, key)}))


def _list(node: Node, key: str) -> list[Any]:
    values = node.values(key)
    if values is None:
        node.fail(key, f"null where a list is expected; {AGAIN}")
    if len(values) > _MAX_ENTRIES:
        node.fail(key, f"has {len(values)} sizes, {_MAX_ENTRIES} is the most; {AGAIN}")
    return values


def _size(node: Node, key: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= _MAX_SIZE:
        node.fail(key, f"holds {shortened(value)}, which is not a size of a dimension; {AGAIN}")
    return value
