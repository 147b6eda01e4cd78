"""Converts PEFT's tensors to the inputs of the graph.

PEFT in evaluation mode computes, for a linear module with weight W [N, K] and bias b:

* LoRA, rsLoRA: `y = W x + b + s B A x`
* DoRA (`peft.tuners.lora.dora`): `y = g * (W x + s B A x) + b`, `g = m / ||W + s B A||` by rows
* AdaLoRA (`SVDLinear`): `y = W x + b + s B (A * E) x`
* IA3: `y = l * (W x + b)`; on feed-forward modules `y = W (l * x) + b`

so `scale = g` or `l`, `lora_A = A^T`, `lora_B = (g * s * B)^T`, and `bias = (l - 1) * b` for IA3. IA3 on
`down_proj` scales what `up_proj` gave, because the product of gate and up is element-wise, and goes into
`up_proj`'s scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.adapters.config import PeftConfig, read_peft_config, unmatched_targets
from hivellm_ort.adapters.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from hivellm_ort.adapters.prepared_adapter import PreparedAdapter, PreparedModule
from hivellm_ort.adapters.tensors import EMBEDDINGS, PREFIX, AdapterTensors
from hivellm_ort.contract import Site
from hivellm_ort.errors import AdapterError, BaseMismatchError

__all__ = ["LARGEST", "Embeddings", "prepare"]

LARGEST = 1e18
"""Largest factor that an adapter may put on what a module gives: RMSNorm squares it, and float32 must hold that."""

Array = NDArray[np.float32]
Tensor = Callable[[str], Array]


@dataclass(frozen=True)
class Embeddings:
    """The base model's embedding and LM head, for adapters that store them too.

    Attributes:
        vocab_size: Rows of each.
        same: Whether the table `model.embed_tokens.weight` or `lm_head.weight` has these values, float32
            [vocab_size, hidden]; None if unknown.
    """

    vocab_size: int
    same: Callable[[str, Array], bool | None]


def prepare(
    config_file: Path,
    weights_file: Path,
    *,
    sites: Sequence[Site],
    tensor: Tensor,
    source_sha256: str,
    embeddings: Embeddings,
) -> PreparedAdapter:
    """Prepare a PEFT adapter for a base model.

    Args:
        config_file: Its `adapter_config.json`.
        weights_file: Its `adapter_model.safetensors`.
        sites: Where the base's graph takes adapters.
        tensor: Returns a base weight by its Hugging Face name, float32 [N, K] or [N].
        source_sha256: Digest of the base weights.
        embeddings: The base's embedding and LM head.

    Raises:
        AdapterError: A tensor is missing, of the wrong shape, unknown to the base, or the configuration asks for
            what cannot be swapped; the message names file and tensor or field.
        BaseMismatchError: The shapes are those of another base model.
    """
    config = read_peft_config(config_file)
    _check_swappable(config)
    modules = {part.module: (site.in_features, part.size) for site in sites for part in site.parts}
    wanted = [name for name in modules if config.targets(name)]
    if not wanted:
        unknown = ", ".join(unmatched_targets(config, modules))
        raise AdapterError(
            f"{ADAPTER_CONFIG}: target_modules matches no adaptable linear module of the base model"
            + (f": it has no {unknown}" if unknown else "")
        )
    tensors = AdapterTensors.from_file(weights_file)
    _check_embeddings(tensors, embeddings)
    file = _Tensors(tensors)
    prepared = {name: _prepare_module(config, file, name, modules[name], tensor) for name in wanted}
    file.check_all_used()
    if config.kind == "ia3":
        prepared = _fold_feedforward(config, prepared, sites, tensor)
    for name, module in prepared.items():
        _check_size(name, module)
    ranks = [m.lora_A.shape[1] for m in prepared.values() if m.lora_A is not None]
    return PreparedAdapter(config.kind, max(ranks, default=1), source_sha256, prepared)


def _check_swappable(config: PeftConfig) -> None:
    cure = "it can only be merged: export with --merge"
    if config.kind == "lokr":
        raise AdapterError(f"{ADAPTER_CONFIG}: peft_type LOKR is not low-rank; {cure}")
    if config.modules_to_save:
        raise AdapterError(f"{ADAPTER_CONFIG}: modules_to_save = {list(config.modules_to_save)}; {cure}")
    if config.bias != "none":
        raise AdapterError(f"{ADAPTER_CONFIG}: bias = {config.bias!r} trains the base model's biases; {cure}")
    if config.lora_bias:
        raise AdapterError(f"{ADAPTER_CONFIG}: lora_bias = true adds biases the base may not have; {cure}")


def _check_embeddings(tensors: AdapterTensors, embeddings: Embeddings) -> None:
    """Refuse stored embeddings that differ from the base's, which swapped adapters share."""
    size = embeddings.vocab_size
    for name, rows in tensors.embeddings.items():
        where = f"{ADAPTER_WEIGHTS}: tensor {tensors.keys[name]}"
        if rows.shape[:1] != (size,):
            raise BaseMismatchError(
                f"{where} has {rows.shape[0] if rows.ndim else 0} rows, the base's vocabulary has {size}: the "
                "adapter was trained with tokens of its own; export it with --merge, which makes a base with that "
                "vocabulary"
            )
        same = embeddings.same(name, rows)
        if same is None:
            raise AdapterError(
                f"{where} is an embedding, and this base bundle does not say what its own is: export the base "
                "again, or save the adapter with save_embedding_layers=False if the embedding was not trained"
            )
        if not same:
            raise AdapterError(
                f"{where} has other values than the base model's, both of {size} rows: a trained embedding can only "
                "be merged, export with --merge; or the adapter belongs to another base model"
            )


class _Tensors:
    """The adapter's tensors by module, each taken once."""

    def __init__(self, tensors: AdapterTensors):
        self._arrays, self._keys = dict(tensors.arrays), tensors.keys

    def take(self, module: str, name: str) -> Array:
        """Return the tensor `module` + `name`."""
        if f"{module}.{name}" in self._arrays:
            return self._arrays.pop(f"{module}.{name}")
        raise AdapterError(f"{ADAPTER_WEIGHTS}: tensor {PREFIX}{module}.{name} is missing")

    def check_all_used(self) -> None:
        if self._arrays:
            key = self._keys[next(iter(self._arrays))]
            if any(
                key.startswith(name.removesuffix("weight")) for key in self._arrays for name in EMBEDDINGS
            ):
                raise AdapterError(
                    f"{ADAPTER_WEIGHTS}: tensor {key} adapts the embedding or the LM head, which can only be merged: "
                    "export with --merge"
                )
            more = f" (and {len(self._arrays) - 1} more)" if len(self._arrays) > 1 else ""
            raise AdapterError(
                f"{ADAPTER_WEIGHTS}: tensor {key}{more} belongs to no module that {ADAPTER_CONFIG} targets in this "
                "base model"
            )


def _prepare_module(
    config: PeftConfig, file: _Tensors, module: str, size: tuple[int, int], tensor: Tensor
) -> PreparedModule:
    columns, rows = size
    if config.kind == "ia3":
        wanted = columns if config.is_feedforward(module) else rows
        scale = file.take(module, "ia3_l")
        if scale.size != wanted:
            raise _mismatch(module, "ia3_l", scale.shape, (wanted,))
        return PreparedModule(scale=scale.reshape(-1))
    if config.kind == "adalora":
        A, B = file.take(module, "lora_A"), file.take(module, "lora_B")
        E = file.take(module, "lora_E")
        rank = A.shape[0] if A.ndim == 2 else 0
        if E.shape != (rank, 1):
            raise _mismatch(module, "lora_E", E.shape, (rank, 1))
        _check_rank_pattern(config, module, rank)
    else:
        A, B = file.take(module, "lora_A.weight"), file.take(module, "lora_B.weight")
        rank = config.rank_of(module)
        E = None
    if A.shape != (rank, columns):
        raise _mismatch(module, "lora_A", A.shape, (rank, columns))
    if B.shape != (rows, rank):
        raise _mismatch(module, "lora_B", B.shape, (rows, rank))
    if rank == 0:  # AdaLoRA may prune a module away
        return PreparedModule()
    with np.errstate(over="ignore", invalid="ignore"):  # _check_size reports it with the module's name
        B = np.float32(config.scaling_of(module, rank)) * B
        if E is not None:
            A = A * E
    if not config.dora:
        return PreparedModule(np.ascontiguousarray(A.T), np.ascontiguousarray(B.T))
    magnitude = file.take(module, "lora_magnitude_vector").reshape(-1)
    if magnitude.shape != (rows,):
        raise _mismatch(module, "lora_magnitude_vector", magnitude.shape, (rows,))
    with np.errstate(all="ignore"):
        norm = np.linalg.norm(tensor(f"{module}.weight") + B @ A, axis=1)
        scale = np.where(np.isinf(norm), np.float32("nan"), magnitude / norm)  # by infinity it would be 0
        scaled = (scale[:, None] * B).T
    return PreparedModule(np.ascontiguousarray(A.T), np.ascontiguousarray(scaled), scale)


def _check_size(name: str, module: PreparedModule) -> None:
    """Refuse numbers whose product overflows float32."""
    arrays = [
        array for array in (module.lora_A, module.lora_B, module.scale, module.bias) if array is not None
    ]
    sizes = [float(np.abs(array).max(initial=0)) for array in arrays]
    if module.lora_A is not None and module.lora_B is not None:
        with np.errstate(all="ignore"):
            across = np.abs(module.lora_A).max(0).astype(float), np.abs(module.lora_B).max(1).astype(float)
            sizes.append(float(across[0] @ across[1]))
    if not all(size <= LARGEST for size in sizes):  # NaN is not
        raise AdapterError(
            f"{ADAPTER_WEIGHTS}: tensors of {PREFIX}{name}, scaled as lora_alpha and alpha_pattern of "
            f"{ADAPTER_CONFIG} say, hold NaN or numbers beyond {LARGEST:g}: the scale is too large, or the adapter "
            "is damaged"
        )


def _check_rank_pattern(config: PeftConfig, module: str, rank: int) -> None:
    """Check AdaLoRA's `rank_pattern`, which lists the singular values kept in each module."""
    for key, kept in config.rank_pattern.items():
        if key.removeprefix(PREFIX).startswith(f"{module}.") and sum(map(bool, kept)) != rank:
            raise AdapterError(
                f"{ADAPTER_WEIGHTS}: tensor {PREFIX}{module}.lora_A has rank {rank}, rank_pattern keeps "
                f"{sum(map(bool, kept))}"
            )


def _mismatch(module: str, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> BaseMismatchError:
    return BaseMismatchError(
        f"{ADAPTER_WEIGHTS}: tensor {PREFIX}{module}.{name} has shape {list(found)}, the base model and "
        f"{ADAPTER_CONFIG} need {list(wanted)}: the adapter belongs to another base model or its configuration"
    )


def _fold_feedforward(
    config: PeftConfig, prepared: dict[str, PreparedModule], sites: Sequence[Site], tensor: Tensor
) -> dict[str, PreparedModule]:
    """Scale IA3's biases, and move input scales of feed-forward modules to `up_proj`."""
    biased = {part.module for site in sites for part in site.parts if part.bias}
    result: dict[str, PreparedModule] = {}
    moved: dict[str, Array] = {}
    for name, module in prepared.items():
        if not config.is_feedforward(name):
            result[name] = module
        elif name.endswith(".mlp.down_proj") and module.scale is not None:
            moved[name.removesuffix("down_proj") + "up_proj"] = module.scale
        else:
            raise AdapterError(
                f"{ADAPTER_CONFIG}: feedforward_modules scales the input of {name}, which can only be merged: export "
                "with --merge"
            )
    for name, scale in moved.items():
        own = result.get(name, PreparedModule()).scale
        result[name] = PreparedModule(scale=scale if own is None else own * scale)
    return {
        name: replace(module, bias=(module.scale - 1) * tensor(f"{name}.bias")) if name in biased else module
        for name, module in result.items()
        if module.scale is not None
    }
