"""Adapter weights as graph inputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.adapters.prepared import PreparedAdapter, PreparedModule
from hivellm_ort.contract import LORA_GATE, DecoderConfig, Part, Site
from hivellm_ort.engine.providers import import_onnxruntime
from hivellm_ort.errors import AdapterError, BaseMismatchError

__all__ = ["BoundAdapter"]

Array = NDArray[np.float32]
_NO_CHANGE = PreparedModule()


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
        known = {part.module for site in config.sites for part in site.parts}
        for module in adapter.modules:
            if module not in known:
                raise AdapterError(
                    f"the adapter changes module {module}, which the base bundle does not adapt"
                )
        self.digest = adapter.digest
        self.kind, self.rank = adapter.kind, adapter.rank
        arrays = {LORA_GATE: np.ones((1, 1, adapter.rank), np.float32)}
        for site in config.sites:
            arrays.update(_site_inputs(site, adapter))
        self.nbytes = sum({id(array): array.nbytes for array in arrays.values()}.values())
        ort = import_onnxruntime()
        self._values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}

    def bind(self, binding: Any) -> None:
        """Bind all inputs; an adapter bound before is replaced."""
        for name, value in self._values.items():
            binding.bind_ortvalue_input(name, value)


def _site_inputs(site: Site, adapter: PreparedAdapter) -> dict[str, Array]:
    modules = [adapter.modules.get(part.module, _NO_CHANGE) for part in site.parts]
    columns, rank = site.in_features, adapter.rank
    inputs: dict[str, Array] = {}
    parts: list[Array] = []
    for part, module in zip(site.parts, modules, strict=True):
        A, B = module.lora_A, module.lora_B
        if A is None or B is None:
            parts.append(_constant(0, columns, rank))
            inputs[part.lora_B] = _constant(0, rank, part.size)
            continue
        if A.shape[0] != columns or B.shape[1] != part.size or A.shape[1] != B.shape[0] or A.shape[1] > rank:
            raise AdapterError(
                f"module {part.module}: lora_A {list(A.shape)} and lora_B {list(B.shape)} do not fit the base's "
                f"[{columns} -> {part.size}] at rank {rank}"
            )
        missing = rank - A.shape[1]
        parts.append(np.pad(A, ((0, 0), (0, missing))) if missing else A)
        inputs[part.lora_B] = np.pad(B, ((0, missing), (0, 0))) if missing else B
    changed = any(module.lora_A is not None for module in modules)
    inputs[site.lora_A] = (
        np.ascontiguousarray(np.concatenate(parts, axis=1))
        if changed
        else _constant(0, columns, rank * len(parts))
    )
    inputs[site.scale] = _per_output(site.parts, [module.scale for module in modules], 1)
    if site.bias:
        inputs[site.bias_input] = _per_output(site.parts, [module.bias for module in modules], 0)
    return inputs


def _per_output(parts: Sequence[Part], values: Sequence[Array | None], default: int) -> Array:
    """[1, 1, N] from one value per output feature and part; `default` where a part has none."""
    if all(value is None for value in values):
        return _constant(default, 1, 1, sum(part.size for part in parts))
    filled = []
    for part, value in zip(parts, values, strict=True):
        if value is not None and value.shape != (part.size,):
            raise AdapterError(
                f"module {part.module}: scale or bias has shape {list(value.shape)}, not [{part.size}]"
            )
        filled.append(np.full(part.size, default, np.float32) if value is None else value)
    return np.concatenate(filled)[None, None, :]


@lru_cache(maxsize=64)
def _constant(value: int, *shape: int) -> Array:
    """Zeros and ones of equal shape exist once: most adapters leave some modules alone."""
    return np.full(shape, value, np.float32)
