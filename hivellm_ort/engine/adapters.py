"""Adapter weights as graph inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.adapters.prepared import PreparedAdapter, PreparedModule
from hivellm_ort.contract import DecoderConfig, Part, Site
from hivellm_ort.engine.providers import import_onnxruntime
from hivellm_ort.errors import AdapterError, BaseMismatchError

__all__ = ["BoundAdapter"]

Array = NDArray[np.float32]
_NO_CHANGE = PreparedModule()
_ALIGNMENT = 16  # floats: a cache line


class BoundAdapter:
    """The graph inputs of one adapter, ready to be bound.

    Args:
        adapter: the prepared adapter.
        config: the base bundle it is to run on.

    Raises:
        BaseMismatchError: it was prepared against other base weights.
        AdapterError: it changes a module that the graph has no site for, or a tensor has the wrong shape.
    """

    def __init__(self, adapter: PreparedAdapter, config: DecoderConfig):
        if adapter.source_sha256 != config.source_sha256:
            raise BaseMismatchError(
                f"the adapter was prepared for base weights {adapter.source_sha256[:12]}…, the base bundle "
                f"{config.name!r} holds {config.source_sha256[:12]}…: use the base it was exported with"
            )
        if not adapter.digest:
            raise AdapterError("the adapter has no digest: write it to a file and read it from there")
        known = {part.module for site in config.sites for part in site.parts}
        for module in adapter.modules:
            if module not in known:
                raise AdapterError(
                    f"the adapter changes module {module}, which the base bundle does not adapt"
                )
        self.digest = adapter.digest
        self.kind, self.rank = adapter.kind, adapter.rank
        own: dict[str, Array] = {}
        shared: dict[str, Any] = {}
        for site in config.sites:
            _add_site(site, adapter.modules, own, shared)
        views, self.nbytes = _in_one_block(own)
        value = import_onnxruntime().OrtValue.ortvalue_from_numpy
        self._values = {**{name: value(array) for name, array in views.items()}, **shared}

    def bind(self, binding: Any, bound: BoundAdapter | None) -> None:
        """Bind every input that is not the same in `bound`, the adapter that is bound now."""
        same = bound._values if bound is not None else {}
        for name, value in self._values.items():
            if same.get(name) is not value:
                binding.bind_ortvalue_input(name, value)


def _in_one_block(arrays: Mapping[str, Array]) -> tuple[dict[str, Array], int]:
    """Copies of `arrays` as aligned views of one block, and its bytes.

    Hundreds of small arrays would pin the heap around what loading leaves behind.
    """
    sizes = [-(-array.size // _ALIGNMENT) * _ALIGNMENT for array in arrays.values()]
    block = np.empty(sum(sizes) + _ALIGNMENT, np.float32)
    offset = -(block.ctypes.data // block.itemsize) % _ALIGNMENT
    views = {}
    for (name, array), size in zip(arrays.items(), sizes, strict=True):
        views[name] = block[offset : offset + array.size].reshape(array.shape)
        views[name][...] = array
        offset += size
    return views, block.nbytes


def _add_site(
    site: Site, modules: Mapping[str, PreparedModule], own: dict[str, Array], shared: dict[str, Any]
) -> None:
    """Add the inputs of `site`: to `own` what the adapter changes, to `shared` zeros and ones for the rest."""
    present = [modules.get(part.module, _NO_CHANGE) for part in site.parts]
    pair = _low_rank(site, present)
    if pair is None:  # rank 1, because rank 0 is not legal on every provider
        shared[site.lora_A] = _constant(0, site.in_features, 1)
        shared[site.lora_B] = _constant(0, 1, site.out_features)
    else:
        own[site.lora_A], own[site.lora_B] = pair
    shared[site.gate] = _constant(1, 1, 1)  # one adapter: every rank is open to every token
    vectors = [(site.scale, [module.scale for module in present], 1)]
    if site.bias:
        vectors.append((site.bias_input, [module.bias for module in present], 0))
    for name, values, default in vectors:
        vector = _per_output(site.parts, values, default)
        if vector is None:
            shared[name] = _constant(default, 1, site.out_features)
        else:
            own[name] = vector


def _low_rank(site: Site, modules: Sequence[PreparedModule]) -> tuple[Array, Array] | None:
    """A [K, R] with the parts' columns side by side, and B [R, N] with their rows on the diagonal.

    One product then serves all parts: fewer nodes are worth more than the zeros cost. Parts without an adapter
    take no rank; None where no part has one.
    """
    ranks = []
    for part, module in zip(site.parts, modules, strict=True):
        A, B = module.lora_A, module.lora_B
        if A is None or B is None:
            ranks.append(0)
            continue
        ranks.append(A.shape[1])
        if A.shape[0] != site.in_features or B.shape != (ranks[-1], part.size):
            raise AdapterError(
                f"module {part.module}: lora_A {list(A.shape)} and lora_B {list(B.shape)} do not fit the base's "
                f"[{site.in_features} -> {part.size}]"
            )
    if not any(ranks):
        return None
    if len(modules) == 1 and modules[0].lora_A is not None and modules[0].lora_B is not None:
        return modules[0].lora_A, modules[0].lora_B
    lora_A = np.empty((site.in_features, sum(ranks)), np.float32)
    lora_B = np.zeros((sum(ranks), site.out_features), np.float32)
    row = column = 0
    for part, module, rank in zip(site.parts, modules, ranks, strict=True):
        if rank:
            lora_A[:, row : row + rank] = module.lora_A
            lora_B[row : row + rank, column : column + part.size] = module.lora_B
        row, column = row + rank, column + part.size
    return lora_A, lora_B


def _per_output(parts: Sequence[Part], values: Sequence[Array | None], default: int) -> Array | None:
    """[1, N] from one value per output feature and part, `default` where a part has none; None where none has."""
    if all(value is None for value in values):
        return None
    filled = []
    for part, value in zip(parts, values, strict=True):
        if value is not None and value.shape != (part.size,):
            raise AdapterError(
                f"module {part.module}: scale or bias has shape {list(value.shape)}, not [{part.size}]"
            )
        filled.append(np.full(part.size, default, np.float32) if value is None else value)
    return np.concatenate(filled)[None, :]


@lru_cache(maxsize=64)
def _constant(value: int, *shape: int) -> Any:
    """An OrtValue of zeros or ones; equal ones exist once, so that a swap leaves them bound."""
    return import_onnxruntime().OrtValue.ortvalue_from_numpy(np.full(shape, value, np.float32))
