"""`adapter_config.json` as PEFT writes it: every field is honoured or refused by name, none is ignored."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hivellm_ort.errors import AdapterError

__all__ = ["ADAPTER_CONFIG", "PeftConfig", "read_peft_config", "unmatched_targets"]

ADAPTER_CONFIG = "adapter_config.json"
_MAX_BYTES = 4 << 20

# Fields that say how the adapter was trained or stored and change nothing at inference.
_NEUTRAL = {
    "auto_mapping", "base_model_name_or_path", "beta1", "beta2", "corda_config", "deltaT", "eva_config",
    "inference_mode", "init_ia3_weights", "lora_dropout", "megatron_core", "orth_reg_weight", "peft_type",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "target_r", "task_type", "tfinal", "tinit",
    "total_step",
}  # fmt: skip
_HONOURED = {
    "alpha_pattern", "bias", "exclude_modules", "feedforward_modules", "init_lora_weights", "init_r",
    "layers_pattern", "layers_to_transform", "lora_alpha", "lora_bias", "modules_to_save", "r", "rank_pattern",
    "target_modules", "use_dora", "use_rslora",
}  # fmt: skip
# These initialisations rewrite the base weights when PEFT loads the adapter, so W is not the base model's W.
_PLAIN_INIT = (True, False, None, "gaussian", "eva", "orthogonal")
_EMPTY: tuple[Any, ...] = (None, False, "", 0, [], {})


@dataclass(frozen=True)
class PeftConfig:
    """What an adapter's configuration means; `read_peft_config` has checked every expression in it.

    Attributes:
        kind: `lora`, `rslora`, `dora`, `adalora`, `ia3` or `lokr`.
        rank: `r` (AdaLoRA: `init_r`); 0 for IA3.
        alpha: `lora_alpha`; 0 for IA3.
        rslora: scale by the square root of the rank (https://arxiv.org/abs/2312.03732).
        dora: learned magnitudes (https://arxiv.org/abs/2402.09353).
        bias: `none`, `all` or `lora_only`.
        lora_bias: whether lora_B has a bias.
        modules_to_save: modules stored whole beside the adapter.
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
        """Whether PEFT attaches the adapter to `module` (`peft.tuners.tuners_utils.check_target_module_exists`)."""
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
        """Whether IA3 scales this module's input rather than its output."""
        return _matches(self.feedforward_modules, module)

    def rank_of(self, module: str) -> int:
        """The rank of `module`, after `rank_pattern`."""
        return int(_by_pattern(self.rank_pattern, module, self.rank))

    def scaling_of(self, module: str, rank: int) -> float:
        """Give s in `W + s B A` for `module` (PEFT `LoraLayer.update_layer`, `AdaLoraLayer.get_delta_weight`)."""
        if self.kind == "adalora":
            return self.alpha / (self.rank + 1e-5)
        alpha = float(_by_pattern(self.alpha_pattern, module, self.alpha))
        return alpha / (rank**0.5 if self.rslora else rank)


def read_peft_config(path: Path) -> PeftConfig:
    """Read `adapter_config.json`.

    Raises:
        AdapterError: the file is missing or not JSON, the kind is unknown, or a field that would change the
            result is not supported; the message names the field.
    """
    where = path.name
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise AdapterError(f"{where} is larger than {_MAX_BYTES} bytes: not an adapter configuration")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{where} is missing: PEFT writes it beside the adapter's weights") from None
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise AdapterError(f"{where}: expected a JSON object, found {type(data).__name__}")
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
            f"peft_type {data.get('peft_type')!r} is not supported; LORA, ADALORA, IA3 and LOKR are"
        )
    for name, value in data.items():
        if name not in _NEUTRAL | _HONOURED and value not in _EMPTY:
            raise AdapterError(f"{name} = {value!r} is not supported and would change the result")
    init = data.get("init_lora_weights", True)
    if init not in _PLAIN_INIT:
        raise AdapterError(
            f"init_lora_weights = {init!r} rewrites the base weights when the adapter is loaded; convert it with "
            "PEFT's path_initial_model_for_weight_conversion, or export with --merge"
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
        raise AdapterError(f"bias = {bias!r} is not one of none, all, lora_only")
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


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
    """One text is an expression, a list is of names."""
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
    """The first pattern that matches wins (`peft.utils.other.get_pattern_key`)."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _safe(pattern: str, where: str) -> str:
    """Refuse expressions that could run for ages: a quantifier behind a group, or one of great length."""
    if len(pattern) > 512 or re.search(r"\)[*+{]", pattern):
        raise AdapterError(f"{where}: the expression {pattern[:80]!r} is too complex to be run safely")
    try:
        re.compile(pattern)
    except re.error as error:
        raise AdapterError(f"{where}: {pattern[:80]!r} is not a regular expression: {error}") from error
    return pattern


def unmatched_targets(config: PeftConfig, modules: Iterable[str]) -> list[str]:
    """Names in `target_modules` that no module of the base model answers to."""
    if isinstance(config.target_modules, str):
        return []
    known = list(modules)
    return [name for name in config.target_modules if not any(_matches((name,), module) for module in known)]
