"""Targets, their precisions, and which bundles one export makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hivellm_ort.contract import Architecture, GraphConfig
from hivellm_ort.errors import ExportError
from hivellm_ort.operators import DOMAIN_MS

__all__ = ["AUTO", "TARGETS", "Plan", "Precision", "Target", "choose_target", "graph_form", "plan_bundles"]

AUTO = "auto"
"""The precision that is chosen by model size and this machine's CPU."""

_LARGE = 2_000_000_000  # parameters; SmolLM2-135M loses 0.28 nats a token in int4
_EIGHT_BIT_PRODUCTS = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")

_CONTEXT = 2048  # tokens of a cache with a fixed length, unless the model has fewer or --context is given


@dataclass(frozen=True)
class Precision:
    """How weights are stored.

    Attributes:
        name: As in `decoder.json`.
        dtype: Float type of activations, caches, adapter inputs and weights that are not quantised.
        bits: Bits of projections; 0 for floats.
        head_bits: Bits of embedding and LM head; 0 for floats.
        activation_bits: Bits of the inputs of projections, with one scale per token; 0 for floats.
    """

    name: str
    dtype: str
    bits: int = 0
    head_bits: int = 0
    activation_bits: int = 0


@dataclass(frozen=True)
class Target:
    """A kind of runtime that graphs are made for.

    Attributes:
        name: As in `decoder.json`.
        precisions: By name, the default first.
        opsets: Version of each operator domain.
        packed: Whether q, k and v are one product and one adapter site.
        buckets: Allowed numbers of tokens per row and run, up to the length of the cache; empty if shapes are free.
        whole_prompt: Whether the length of the cache is a bucket too. Then a prompt is read in one run.
        form: Fields of `GraphConfig` that differ from `cpu`, besides types, opsets and shapes.
    """

    name: str
    precisions: Mapping[str, Precision]
    opsets: Mapping[str, int]
    packed: bool = True
    buckets: tuple[int, ...] = ()
    whole_prompt: bool = False
    form: Mapping[str, Any] = field(default_factory=dict)


def _by_name(*precisions: Precision) -> dict[str, Precision]:
    return {precision.name: precision for precision in precisions}


_FP32, _FP16 = Precision("fp32", "float32"), Precision("fp16", "float16")
_CONTRIB = {"": 18, DOMAIN_MS: 1}
_TARGETS = (
    Target(
        "cpu",
        _by_name(
            Precision("int8", "float32", 8, 8),
            Precision("w8a8", "float32", 8, 8, activation_bits=8),
            Precision("int4", "float32", 4, 8),
            _FP32,
        ),
        _CONTRIB,
    ),
    Target(
        "cuda",
        _by_name(_FP16, Precision("bf16", "bfloat16"), Precision("int4", "float16", 4)),
        _CONTRIB,
        form={"greedy_output": True},
    ),
    Target(
        "dml",
        _by_name(_FP16),
        _CONTRIB,
        packed=False,
        buckets=(1, 64, 256, 1024),
        whole_prompt=True,
        form={
            "inputs": {
                "input_ids": (1, "sequence_length"),
                "position_ids": (1, "sequence_length"),
                "seqlens_k": (1,),
                "total_sequence_length": (1,),
                "logits_rows": (1,),
            },
            "multi_token_append": False,
        },
    ),
    Target(
        "portable",
        _by_name(_FP32, _FP16),
        {"": 18},
        packed=False,
        buckets=(1, 16, 64, 256),
        form={
            "inputs": {
                "input_ids": (1, "sequence_length"),
                "position_ids": (1, "sequence_length"),
                "logits_rows": ("rows",),
            },
            "cache_update": "new_tokens",
        },
    ),
)
TARGETS = {target.name: target for target in _TARGETS}


def choose_target(
    name: str, precision: str | None = None, context: int | None = None
) -> tuple[Target, Precision]:
    """Find a target and its precision.

    Args:
        name: The target.
        precision: The precision; None for the target's default.
        context: Length of the cache in tokens; None if not given.

    Raises:
        ExportError: There is no such target, it has no such precision, or its cache has no fixed length.
    """
    target = TARGETS.get(name)
    if target is None:
        raise ExportError(f"--target {name} is not known: choose one of {', '.join(TARGETS)}")
    if context is not None and not target.buckets:
        raise ExportError(
            f"--context {context} is for targets with fixed shapes; {name} takes any length: leave it out"
        )
    if precision is None:
        return target, next(iter(target.precisions.values()))
    if precision not in target.precisions:
        others = [other.name for other in _TARGETS if precision in other.precisions]
        elsewhere = f", or --target {' or '.join(others)}" if others else ""
        raise ExportError(
            f"--target {name} has no --precision {precision}: use {' or '.join(target.precisions)}{elsewhere}"
        )
    return target, target.precisions[precision]


def graph_form(
    target: Target,
    precision: Precision,
    architecture: Architecture,
    context: int | None = None,
    cache: str | None = None,
) -> GraphConfig:
    """The form of the graphs of one export.

    Args:
        target: From `choose_target`.
        precision: From `choose_target`.
        architecture: Of the base model.
        context: Length of the cache in tokens, only for targets with fixed shapes; None for 2048, or the model's own
            if less.
        cache: Type of keys and values: `int8`, or None for that of the precision.

    Raises:
        ExportError: `context` does not fit the model.
    """
    types = dict.fromkeys(("cache_dtype", "activation_dtype", "adapter_dtype"), precision.dtype)
    form = {**types, "opsets": target.opsets, **target.form}
    if cache is not None:
        form["cache_dtype"] = cache
    limit = architecture.max_position_embeddings
    if not target.buckets:
        return GraphConfig(**form)
    length = min(_CONTEXT, limit) if context is None else context
    if not 2 <= length <= limit:
        raise ExportError(f"--context {length}: the model has {limit} positions; use 2 to {limit}")
    buckets = {min(size, length) for size in target.buckets} | ({length} if target.whole_prompt else set())
    shapes: dict[str, tuple[int, ...]] = {
        "batch_size": (1,),
        "max_length": (length,),
        "sequence_length": tuple(sorted(buckets)),
    }
    if form["inputs"]["logits_rows"] == (1,):
        shapes["rows"] = (1,)
    return GraphConfig(**form, shapes=shapes)


@dataclass(frozen=True)
class Plan:
    """One bundle of an export.

    Attributes:
        target: Target of its graphs.
        precision: Precision of its weights. While `automatic` is true, this is the target's default.
        context: Length of the cache in tokens, for targets with fixed shapes.
        cache: Type of keys and values: `int8`, or None for that of the precision.
        automatic: Whether `settled` must still choose the precision.
        reason: Why this precision was chosen; empty if it was given.
    """

    target: Target
    precision: Precision
    context: int | None
    cache: str | None = None
    automatic: bool = False
    reason: str = ""

    def settled(self, parameters: int, flags: Mapping[str, bool]) -> Plan:
        """Choose the precision, if it is automatic.

        Args:
            parameters: Number of parameters of the model.
            flags: Instruction sets of the CPU, from `cpu_flags`.
        """
        if not self.automatic:
            return self
        name, reason = self.precision.name, f"the default of target {self.target.name}"
        if self.target.name == "cpu":
            size = f"{parameters / 1e6:.0f} M parameters"
            found = next((flag for flag in _EIGHT_BIT_PRODUCTS if flags.get(flag)), None)
            if parameters >= _LARGE:
                name, reason = (
                    "int4",
                    f"{size}: large models lose little with 4 bits, and memory is their limit",
                )
            elif found is not None:
                name = "w8a8"
                reason = (
                    f"{size}: 4 bits lose too much; this CPU multiplies 8 bits ({found}), which halves the time "
                    "for prompts"
                )
            else:
                name = "int8"
                reason = f"{size}: 4 bits lose too much; this CPU is not known to multiply 8 bits fast"
        return replace(self, precision=self.target.precisions[name], automatic=False, reason=reason)

    def form(self, architecture: Architecture) -> GraphConfig:
        """The form of the graphs.

        Raises:
            ExportError: The context does not fit the model.
        """
        return graph_form(self.target, self.precision, architecture, self.context, self.cache)


def plan_bundles(
    targets: Sequence[str],
    precisions: Sequence[str] = (),
    context: int | None = None,
    cache: str | None = None,
) -> tuple[Plan, ...]:
    """Plan the bundles of an export, in the order of `TARGETS`.

    Args:
        targets: Names of targets, each once.
        precisions: `TARGET=PRECISION`, or `PRECISION` if there is one target. `auto` chooses by model size and CPU. A
            target without one gets its default.
        context: Length of the cache in tokens, for the targets with fixed shapes.
        cache: Type of keys and values of target `cpu`: `int8`, or None for that of the precision.

    Raises:
        ExportError: A target is unknown or given twice; a precision is given twice, or its target lacks it; `context`
            is given without a target of fixed shapes, or `cache` without target `cpu`.
    """
    for name in targets:
        if targets.count(name) > 1:
            raise ExportError(f"--target {name} is given twice: a package has one bundle per target")
    if cache is not None and "cpu" not in targets:
        raise ExportError(
            f"--cache {cache} is for target cpu, and this export is for {', '.join(targets)}: leave it out, or add "
            "--target cpu"
        )
    chosen = _by_target(targets, precisions)
    fixed = [name for name in targets if name in TARGETS and TARGETS[name].buckets]
    plans = []
    for name in sorted(targets, key=[*TARGETS, *targets].index):
        # If no target has fixed shapes, the first target reports it.
        own = context if name in fixed or not fixed else None
        automatic = chosen.get(name) == AUTO
        target, precision = choose_target(name, None if automatic else chosen.get(name), own)
        plans.append(Plan(target, precision, own, cache if name == "cpu" else None, automatic))
    return tuple(plans)


def _by_target(targets: Sequence[str], precisions: Sequence[str]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for text in precisions:
        name, equals, precision = text.rpartition("=")
        if not equals:
            if len(targets) != 1:
                raise ExportError(
                    f"--precision {text}: this export has several targets, {', '.join(targets)}: name one, as in "
                    f"--precision {targets[0]}={text}"
                )
            name = targets[0]
        if name not in targets:
            raise ExportError(
                f"--precision {text}: {name} is not a target of this export ({', '.join(targets)}): add "
                f"--target {name}, or leave it out"
            )
        if name in chosen:
            raise ExportError(
                f"--precision: {chosen[name]} and {precision} are both for target {name}, which has one bundle: "
                "leave one out"
            )
        chosen[name] = precision
    return chosen
