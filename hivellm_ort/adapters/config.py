"""Reads PEFT's `adapter_config.json`. Every field is used or refused by name; none is ignored."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hivellm_ort.adapters.files import read_config_document
from hivellm_ort.errors import AdapterError

__all__ = ["NEUTRAL", "PeftConfig", "check_fields", "read_peft_config", "unmatched_targets"]

# Fields of PEFT 0.10 to 0.21 and Unsloth that describe training or storage. PEFT switches
# `fan_in_fan_out` off on every `nn.Linear`; the configurations of initialisations act through `init_lora_weights`
# alone, and `ensure_weight_tying` through modules that are merged.
NEUTRAL = {
    "auto_mapping", "base_model_name_or_path", "beta1", "beta2", "corda_config", "deltaT", "ensure_weight_tying",
    "eva_config", "fan_in_fan_out", "inference_mode", "init_ia3_weights", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_core", "orth_reg_weight", "peft_type", "peft_version", "qalora_group_size",
    "revision", "runtime_config", "target_r", "task_type", "tfinal", "tinit", "total_step", "unsloth_fixed",
    "unsloth_training", "unsloth_version",
}  # fmt: skip
"""Fields of `adapter_config.json` that change nothing at inference."""
_HONOURED = {
    "alpha_pattern", "bias", "exclude_modules", "feedforward_modules", "init_lora_weights", "init_r",
    "layers_pattern", "layers_to_transform", "lora_alpha", "lora_bias", "modules_to_save", "r", "rank_pattern",
    "target_modules", "use_dora", "use_rslora",
}  # fmt: skip
_MERGED = {
    "kasa_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "velora_config",
}
# Fields that neither swapped nor merged adapters support.
_NEVER = {
    "alora_invocation_tokens": "the adapter would begin in the middle of a prompt",
    "arrow_config": "it chooses between adapters for every token",
    "layer_replication": "it changes the base model's layers",
    "megatron_config": "the adapter belongs to a model that is split over devices",
    "use_bdlora": "its matrices are in blocks",
    "use_qalora": "it pools the inputs of a quantised base model",
}
# Other initialisations rewrite the base weights when PEFT loads the adapter, so W is not the base model's W. Of these
# PEFT itself can repeat some; the others depend on training data or on random numbers.
_PLAIN_INIT = (True, False, None, "gaussian", "eva", "mica", "orthogonal")
_LOST_INIT = ("corda", "lora_ga", "pissa_niter_")
_CONVERT = (
    "convert the adapter: save it with PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=…)"
)
_MAX_EXPRESSION = 4096
_MAX_QUANTIFIERS = 5
_EMPTY: tuple[Any, ...] = (None, False, "", 0, [], {})
_LARGEST = 3.4e38
"""Largest scale: what float32 holds."""
_LARGEST_RANK = 1 << 16
_FLAGS = ("use_dora", "use_rslora", "lora_bias")
_RANKS = ("r", "init_r")


@dataclass(frozen=True)
class PeftConfig:
    """An adapter's configuration, with every regular expression checked by `read_peft_config`.

    Attributes:
        kind: `lora`, `rslora`, `dora`, `adalora`, `ia3` or `lokr`.
        rank: `r` (AdaLoRA: `init_r`); 0 for IA3.
        alpha: `lora_alpha`; 0 for IA3.
        rslora: Scale by the square root of the rank (https://arxiv.org/abs/2312.03732).
        dora: Learned magnitudes (https://arxiv.org/abs/2402.09353).
        bias: `none`, `all` or `lora_only`.
        lora_bias: Whether lora_B has a bias.
        modules_to_save: Modules stored whole beside the adapter.
    """

    kind: str
    rank: int = 0
    alpha: float = 0
    rslora: bool = False
    dora: bool = False
    bias: str = "none"
    lora_bias: bool = False
    modules_to_save: tuple[str, ...] = ()
    rank_pattern: Mapping[str, Any] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    target_modules: str | tuple[str, ...] = ()
    exclude_modules: str | tuple[str, ...] = ()
    feedforward_modules: str | tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()

    def targets(self, module: str) -> bool:
        """Return whether PEFT attaches the adapter to `module`, as its `check_target_module_exists` does."""
        if _matches(self.exclude_modules, module):
            return False
        if any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.modules_to_save):
            return False
        if self.target_modules == "all-linear":
            return module != "lm_head"
        if not _matches(self.target_modules, module):
            return False
        if (
            not self.layers_to_transform
            or isinstance(self.target_modules, str)
            or module in self.target_modules
        ):
            return True
        for pattern in self.layers_pattern or (r"[^.]*",):
            found = re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", module)
            if found:
                return int(found["index"]) in self.layers_to_transform
        return False

    def is_feedforward(self, module: str) -> bool:
        """Return whether IA3 scales this module's input rather than its output."""
        return _matches(self.feedforward_modules, module)

    def rank_of(self, module: str) -> int:
        """Return the rank of `module`; `rank_pattern` may set its own."""
        return int(_by_pattern(self.rank_pattern, module, self.rank))

    def scaling_of(self, module: str, rank: int) -> float:
        """Return s in `W + s B A` for `module` (PEFT `LoraLayer.update_layer`, `AdaLoraLayer.get_delta_weight`)."""
        if self.kind == "adalora":
            return self.alpha / (self.rank + 1e-5)
        alpha = float(_by_pattern(self.alpha_pattern, module, self.alpha))
        return alpha / (rank**0.5 if self.rslora else rank)


def read_peft_config(path: Path) -> PeftConfig:
    """Read `adapter_config.json`.

    Raises:
        AdapterError: The file is missing or not JSON, the kind is unknown, or a field that would change the
            result is not supported; the message names the field.
    """
    where = path.name
    data = read_config_document(path)
    try:
        return _parse(data)
    except AdapterError as error:
        raise type(error)(f"{where}: {error}") from error.__cause__
    except (TypeError, ValueError, AttributeError) as error:
        raise AdapterError(f"{where}: a field has the wrong type ({error})") from error


def _parse(data: dict[str, Any]) -> PeftConfig:
    kind = str(data.get("peft_type", "")).lower()
    if kind == "lokr":
        return PeftConfig("lokr")
    if kind not in ("lora", "adalora", "ia3"):
        raise AdapterError(
            f"peft_type {_short(data.get('peft_type'))} is not supported; LORA, ADALORA, IA3 and LOKR are"
        )
    check_fields(data)
    for name, value in data.items():
        if name in _MERGED and value not in _EMPTY:
            raise AdapterError(f"{name[:80]} = {_short(value)} can only be merged: export with --merge")
        if name not in NEUTRAL | _HONOURED and value not in _EMPTY:
            raise AdapterError(f"{name[:80]} = {_short(value)} is not known, and may change the result")
    init = data.get("init_lora_weights", True)
    if init not in _PLAIN_INIT:
        raise AdapterError(
            f"init_lora_weights = {_short(init)} rewrites the base weights when the adapter is loaded: {_CONVERT}, "
            "or export with --merge"
        )
    rank, alpha = _whole(data, "r"), _number(data, "lora_alpha")
    dora, rslora = bool(data.get("use_dora")), bool(data.get("use_rslora"))
    if kind == "adalora":
        rank = _whole(data, "init_r") or 12
        if dora or rslora or data.get("alpha_pattern"):
            raise AdapterError("use_dora, use_rslora and alpha_pattern have no meaning for ADALORA")
    if kind != "ia3" and (rank < 1 or alpha <= 0):
        raise AdapterError(f"r = {rank} and lora_alpha = {alpha:g}: both must be positive")
    bias = data.get("bias") or "none"
    if bias not in ("none", "all", "lora_only"):
        raise AdapterError(f"bias = {_short(bias)} is not one of none, all, lora_only")
    return PeftConfig(
        kind="dora" if dora else "rslora" if rslora else kind,
        rank=0 if kind == "ia3" else rank,
        alpha=alpha,
        rslora=rslora,
        dora=dora,
        bias=bias,
        lora_bias=bool(data.get("lora_bias")),
        modules_to_save=_expressions(data, "modules_to_save"),
        rank_pattern=_pattern(data, "rank_pattern", _is_mask if kind == "adalora" else _is_rank),
        alpha_pattern=_pattern(data, "alpha_pattern", _is_number),
        target_modules=_modules(data, "target_modules"),
        exclude_modules=_modules(data, "exclude_modules"),
        feedforward_modules=_modules(data, "feedforward_modules"),
        layers_to_transform=_layers(data, "layers_to_transform"),
        layers_pattern=_expressions(data, "layers_pattern"),
    )


def check_fields(data: Mapping[str, Any]) -> None:
    """Refuse the fields that neither a swapped nor a merged adapter can have.

    Args:
        data: From `read_config_document`.

    Raises:
        AdapterError: One of them is set; the message names it.
    """
    for name, reason in _NEVER.items():
        if data.get(name) not in _EMPTY:
            raise AdapterError(f"{name} = {_short(data[name])} is not supported: {reason}")
    init = data.get("init_lora_weights")
    if isinstance(init, str) and init.startswith(_LOST_INIT):
        raise AdapterError(
            f"init_lora_weights = {init!r} rewrote the base weights in a way that the adapter alone does not tell: "
            f"{_CONVERT}"
        )
    pattern = data.get("alpha_pattern")
    scales = {"lora_alpha": data.get("lora_alpha")}
    if isinstance(pattern, Mapping):  # other types are refused by their reader
        scales |= {f"alpha_pattern[{_short(key)}]": value for key, value in pattern.items()}
    for name, value in scales.items():
        if value is not None and not (_is_number(value) and 0 <= value <= _LARGEST):
            raise _malformed(name, value, f"a finite number from 0 to {_LARGEST:.1e}")
    for name in _FLAGS:
        if not isinstance(data.get(name), bool | None):
            raise _malformed(name, data[name], "true or false")
    for name in _RANKS:
        rank = data.get(name)
        if rank is not None and not (
            _is_number(rank) and float(rank).is_integer() and abs(rank) <= _LARGEST_RANK
        ):
            raise _malformed(name, rank, f"a whole number up to {_LARGEST_RANK}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else value.bit_length() < 64


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value <= _LARGEST_RANK


def _is_mask(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(kept, bool | int) for kept in value)


def _malformed(name: str, value: Any, expected: str) -> AdapterError:
    return AdapterError(f"{name} = {str(value)[:80]!r}: {expected} is expected")


def _number(data: Mapping[str, Any], name: str) -> float:
    value = data.get(name) or 0
    if not _is_number(value):
        raise _malformed(name, value, "a finite number")
    return float(value)


def _whole(data: Mapping[str, Any], name: str) -> int:
    value = _number(data, name)
    if not value.is_integer():
        raise _malformed(name, value, "a whole number")
    return int(value)


def _names(data: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = data.get(name) or ()
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(item, str) for item in names):
        raise _malformed(name, value, "a name or a list of names")
    return tuple(names)


def _modules(data: Mapping[str, Any], name: str) -> str | tuple[str, ...]:
    """Return the module names: a string is a regular expression, a list holds names."""
    value = data.get(name)
    return _safe(value, name) if isinstance(value, str) else _names(data, name)


def _expressions(data: Mapping[str, Any], name: str) -> tuple[str, ...]:
    return tuple(_safe(item, name) for item in _names(data, name))


def _layers(data: Mapping[str, Any], name: str) -> tuple[int, ...]:
    value = data.get(name)
    layers = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(layer) is int for layer in layers):
        raise _malformed(name, value, "a layer or a list of layers")
    return tuple(layers)


def _pattern(data: Mapping[str, Any], name: str, accepts: Callable[[Any], bool]) -> dict[str, Any]:
    value = data.get(name) or {}
    if not isinstance(value, dict) or not all(accepts(item) for item in value.values()):
        raise _malformed(name, value, "an object with a number for each expression")
    return {_safe(expression, name): item for expression, item in value.items()}


def _matches(pattern: str | Sequence[str], module: str) -> bool:
    if isinstance(pattern, str):
        return bool(pattern) and re.fullmatch(pattern, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in pattern)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches, as `peft.utils.other.get_pattern_key` chooses it."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _safe(pattern: str, where: str) -> str:
    """Refuse slow expressions: very long ones, quantified groups, and many quantifiers in a row.

    Module names have about 40 characters, so n quantifiers match them in fewer than 40 ** n ways.
    """
    plain = re.sub(r"\\.|\[\^?\]?[^]]*\]", "a", pattern)  # without escapes and classes
    branches = [len(re.findall(r"[*+{]|(?<![*+}(])\?", branch)) for branch in _alternatives(plain)]
    if len(pattern) > _MAX_EXPRESSION or re.search(r"\)[*+{]", plain) or max(branches) > _MAX_QUANTIFIERS:
        raise AdapterError(f"{where}: the expression {pattern[:80]!r} is too complex to be run safely")
    try:
        re.compile(pattern)
    except re.error as error:
        raise AdapterError(f"{where}: {pattern[:80]!r} is not a regular expression: {error}") from error
    return pattern


def _alternatives(pattern: str) -> list[str]:
    """Split an expression at each `|` outside groups."""
    found, depth = [""], 0
    for char in pattern:
        depth += (char == "(") - (char == ")")
        if char == "|" and depth == 0:
            found.append("")
        else:
            found[-1] += char
    return found


def unmatched_targets(config: PeftConfig, modules: Iterable[str]) -> list[str]:
    """Return the names in `target_modules` that match no module of the base model."""
    if isinstance(config.target_modules, str):
        return []
    known = list(modules)
    return [name for name in config.target_modules if not any(_matches((name,), module) for module in known)]
