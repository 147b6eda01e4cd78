"""The rotary embedding (RoPE) of a `config.json` of any transformers version, converted to the fields of 4.57.

Version 4 writes `rope_theta` and `rope_scaling`, version 5 one field `rope_parameters`. The graph has one table of
cosines and sines, with a row for each position. So a type whose frequencies depend on the length of a text can be
exported only within limits:

* `dynamic` changes them beyond `max_position_embeddings`. The table ends there, so it is exact.
* `longrope` changes them for all positions if a text is longer than `original_max_position_embeddings`. It is exact
  only if `max_position_embeddings` is not greater.

Sources: `modeling_rope_utils.py` of transformers 4.57.6 and 5.24.0, with the same formulas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hivellm_export.huggingface.files import shown
from hivellm_ort.errors import ExportError, UnsupportedArchitectureError

__all__ = ["ROPE_FIELDS", "ROPE_TYPES", "read_rope"]

ROPE_FIELDS = (
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)
"""The fields of a `config.json` that `read_rope` reads."""

_ORIGINAL = "original_max_position_embeddings"
# Required and optional fields of each type, besides `rope_type` and `rope_theta`.
_NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "dynamic": (_ORIGINAL,),
    "llama3": (_ORIGINAL,),
    "yarn": (
        _ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
    ),
    "longrope": (_ORIGINAL, "attention_factor", "factor"),
}  # fmt: skip
ROPE_TYPES = tuple(_NEEDED)
"""Every `rope_type` that can be exported."""

_LISTS = ("short_factor", "long_factor")
_ZERO_IS_NONE = ("mscale", "mscale_all_dim")
_LAYER_TYPES = ("full_attention", "sliding_attention")
_THETA = 10_000.0  # the default of every family


def read_rope(document: Mapping[str, Any], *, head_dim: int, positions: int, where: str) -> dict[str, Any]:
    """Read `rope_theta` and `rope_scaling`.

    Args:
        document: A `config.json`. Only `ROPE_FIELDS` are read.
        head_dim: Number of channels of an attention head.
        positions: `max_position_embeddings`.
        where: Name of the file, for messages.

    Returns:
        `rope_theta` and `rope_scaling`, as transformers 4.57 needs them.

    Raises:
        UnsupportedArchitectureError: A table of positions cannot express a type or field, or fields contradict each
            other.
        ExportError: A value is not a number, or a required one is missing.
    """
    name, rope = _found(document, where)
    theta = _agreed(rope.pop("rope_theta", None), document.get("rope_theta"), f"{name}.rope_theta", where)
    theta = _THETA if theta is None else _number(theta, f"{name}.rope_theta", where)
    for factor in (rope.pop("partial_rotary_factor", None), document.get("partial_rotary_factor")):
        if factor not in (None, 1):
            raise UnsupportedArchitectureError(
                f"{where}: partial_rotary_factor {shown(factor)} is not supported: the graph rotates whole heads"
            )
    kind = _type_of(rope, name, where)
    known = {*_NEEDED[kind], *_OPTIONAL.get(kind, ())}
    for key, value in rope.items():
        if key not in known:
            label = key if key.isprintable() else shown(key)
            raise UnsupportedArchitectureError(
                f"{where}: {name}.{label} = {shown(value)} is not a field of rope_type {shown(kind)}, "
                f"which has {', '.join(sorted(known)) or 'none'}"
            )
    for key in _NEEDED[kind]:
        if rope.get(key) is None:
            raise ExportError(f"{where}: {name}.{key} is missing: rope_type {shown(kind)} needs it")
    outer = document.get(_ORIGINAL)
    if kind in ("llama3", "yarn", "longrope"):
        original = _agreed(rope.get(_ORIGINAL), outer, f"{name}.{_ORIGINAL}", where)
        if outer is not None and kind == "yarn" and rope.get(_ORIGINAL) is None:
            raise UnsupportedArchitectureError(
                f"{where}: {_ORIGINAL} {shown(outer)} is beside {name}, where transformers 4 and 5 read it "
                f"differently: write it into {name}"
            )
        rope[_ORIGINAL] = _whole(positions if original is None else original, f"{name}.{_ORIGINAL}", where)
    else:
        for value in (rope.get(_ORIGINAL), outer):
            if value not in (None, positions):
                raise UnsupportedArchitectureError(
                    f"{where}: {_ORIGINAL} {shown(value)} has no meaning for rope_type {shown(kind)}, which uses "
                    f"max_position_embeddings {positions}: leave it out"
                )
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    scaling = _longrope(rope, name, head_dim, positions, where) if kind == "longrope" else rope
    for key, value in scaling.items():
        if key == "truncate":
            _flag(value, f"{name}.{key}", where)
        elif key not in _LISTS and (value != 0 or key not in _ZERO_IS_NONE):
            _number(value, f"{name}.{key}", where)
    return {"rope_theta": theta, "rope_scaling": {"rope_type": kind, **scaling}}


def _found(document: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Find the field of the rotary embedding: its name, and a copy without null values."""
    forms: dict[str, dict[str, Any]] = {}
    for name in ("rope_parameters", "rope_scaling"):
        value = document.get(name)
        if value is None or value == {}:
            continue
        if not isinstance(value, Mapping):
            raise ExportError(f"{where}: {name} must be an object, it is {shown(value)}")
        value = _of_all_layers(value, name, where)
        forms[name] = {key: item for key, item in value.items() if item is not None}
    if len(forms) == 2:
        one, two = (_spelled_alike(form, document) for form in forms.values())
        if one != two:
            raise UnsupportedArchitectureError(
                f"{where}: rope_parameters and rope_scaling contradict each other: leave one of them out"
            )
    for name, form in forms.items():
        return name, form
    return "rope_parameters", {}


def _spelled_alike(form: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    alike = {"rope_theta": document.get("rope_theta"), **form}
    alike["rope_type"] = alike.pop("type", None) or alike.get("rope_type")
    return alike


def _of_all_layers(value: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    """The parameters of all layers. Transformers 5 may write them for each type of layer."""
    layers = [key for key in value if key in _LAYER_TYPES]
    if not layers:
        return value
    forms: list[Mapping[str, Any]] = [value[key] for key in layers if value[key] is not None]
    if set(value) - set(layers) or not forms or any(not isinstance(form, Mapping) for form in forms):
        raise ExportError(f"{where}: {name} must hold rotary parameters, or one object of them by layer type")
    if any(form != forms[0] for form in forms):
        raise UnsupportedArchitectureError(
            f"{where}: {name} differs by layer type ({', '.join(layers)}), which is not supported"
        )
    return forms[0]


def _type_of(rope: dict[str, Any], name: str, where: str) -> str:
    kind = _agreed(rope.pop("rope_type", None), rope.pop("type", None), f"{name}.rope_type", where)
    kind = "default" if kind is None else kind
    if kind not in ROPE_TYPES:
        raise UnsupportedArchitectureError(
            f"{where}: {name} type {shown(kind)} is not supported; supported are {', '.join(ROPE_TYPES)}"
        )
    return str(kind)


def _longrope(rope: dict[str, Any], name: str, head_dim: int, positions: int, where: str) -> dict[str, Any]:
    original = rope.pop(_ORIGINAL)
    if original < positions:
        raise UnsupportedArchitectureError(
            f"{where}: {name} type 'longrope' is not supported with max_position_embeddings {positions}: it changes "
            f"the frequencies for texts longer than {_ORIGINAL} {original}, and the graph has one table of positions"
        )
    for key in _LISTS:
        values = rope[key]
        if not isinstance(values, list) or len(values) != head_dim // 2:
            raise ExportError(f"{where}: {name}.{key} must be a list of {head_dim // 2} numbers")
        for value in values:
            _number(value, f"{name}.{key}", where)
    if rope.get("attention_factor") is None:
        # With a factor, versions 4 and 5 compute it from different fields.
        if rope.get("factor") not in (None, 1):
            raise UnsupportedArchitectureError(
                f"{where}: {name}.factor {shown(rope['factor'])} beside max_position_embeddings {positions} and "
                f"{_ORIGINAL} {original} is ambiguous: write attention_factor into {name}"
            )
        rope["attention_factor"] = 1.0
    return {**rope, "factor": 1.0}


def _agreed(one: Any, two: Any, name: str, where: str) -> Any:
    """The value, given in one place or equal in both."""
    if one is not None and two is not None and one != two:
        raise UnsupportedArchitectureError(
            f"{where}: {name} is both {shown(one)} and {shown(two)}: leave one of them out"
        )
    return two if one is None else one


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ExportError(f"{where}: {name} must be a number above 0, it is {shown(value)}")
    return value


def _whole(value: Any, name: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ExportError(f"{where}: {name} must be a whole number above 0, it is {shown(value)}")
    return value


def _flag(value: Any, name: str, where: str) -> None:
    if not isinstance(value, bool):
        raise ExportError(f"{where}: {name} must be true or false, it is {shown(value)}")
