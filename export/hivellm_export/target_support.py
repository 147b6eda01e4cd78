"""What graphs can be lowered for, and in which precisions; one row per target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hivellm_ort.contract import Architecture, GraphConfig
from hivellm_ort.errors import ExportError
from hivellm_ort.operators import DOMAIN_MS

__all__ = ["TARGETS", "Precision", "Target", "choose_target", "graph_form"]

_CONTEXT = 2048  # tokens of a cache of fixed length, unless the model has fewer or --context says otherwise


@dataclass(frozen=True)
class Precision:
    """How weights are kept.

    Attributes:
        name: as in `decoder.json`.
        dtype: float type of activations, caches, adapter inputs and of weights that are not quantised.
        bits: of the projections; 0 where they are floats.
        head_bits: of embedding and LM head; 0 where they are floats.
        activation_bits: of what the projections multiply, one scale per token; 0 where that are floats.
    """

    name: str
    dtype: str
    bits: int = 0
    head_bits: int = 0
    activation_bits: int = 0


@dataclass(frozen=True)
class Target:
    """A kind of runtime that graphs are lowered for.

    Attributes:
        name: as in `decoder.json`.
        precisions: by name, the default first.
        opsets: version of each operator domain.
        packed: whether q, k and v are one product and one adapter site.
        buckets: allowed tokens per row and run, as far as the cache is long; empty where shapes are free.
        whole_prompt: whether the cache's length is a bucket too: a prompt must then be read in one run.
        form: what of `GraphConfig` differs from `cpu`, besides types, opsets and shapes.
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
    """The target and the precision of an export.

    Args:
        name: of the target.
        precision: by name; None is the target's default.
        context: tokens of the cache, None where not asked for.

    Raises:
        ExportError: there is no such target, it has no such precision, or its cache has no fixed length.
    """
    target = TARGETS.get(name)
    if target is None:
        raise ExportError(f"--target {name} is not known: choose one of {', '.join(TARGETS)}")
    if context is not None and not target.buckets:
        raise ExportError(
            f"--context {context} is for targets of fixed shapes; {name} takes any length: leave it out"
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
        target: from `choose_target`.
        precision: from `choose_target`.
        architecture: of the base model.
        context: tokens of the cache, for targets of fixed shapes only; None is 2048 or what the model has.
        cache: type of keys and values, `int8` or None for that of the precision.

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
