"""Adapter weights as graph inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.adapters.prepared_adapter import PreparedAdapter, PreparedModule
from hivellm_ort.contract import DecoderConfig, Part, Site
from hivellm_ort.engine.device_arrays import FLOAT_TYPES, Array, ElementType, Memory, Tensor
from hivellm_ort.errors import AdapterError, BaseMismatchError

__all__ = ["BoundAdapter", "bind_values"]

Floats = NDArray[np.float32]
_NO_CHANGE = PreparedModule()
_ALIGNMENT = 64  # bytes: a cache line


@dataclass(frozen=True)
class _Plan:
    """An input's shape, and what writes its values over zeros."""

    shape: tuple[int, int]
    fill: Callable[[Floats], None]


class BoundAdapter:
    """The graph inputs of one adapter, ready to be bound.

    Attributes:
        digest: of the prepared adapter.
        kind: its kind.
        rank: its rank.
        nbytes: memory of its weights.
        own: the inputs that it changes; the others are zeros and ones.
        values: all adapter inputs.

    Args:
        adapter: the prepared adapter.
        config: the base bundle it is to run on; its graph says of what float type the inputs are.

    Raises:
        BaseMismatchError: it was prepared against other base weights.
        AdapterError: it changes a module that the graph has no site for, a tensor has the wrong shape, or values
            that the float type cannot hold.
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
        plans: dict[str, _Plan] = {}
        shared: dict[str, Tensor] = {}
        kind = FLOAT_TYPES[config.graph.adapter_dtype]
        for site in config.sites:
            _add_site(site, kind, adapter.modules, plans, shared)
        views, self.nbytes = _in_one_block(plans, kind)
        self.own: Mapping[str, Tensor] = {name: Tensor(view, kind) for name, view in views.items()}
        self.values: Mapping[str, Tensor] = {**self.own, **shared}

    @classmethod
    def none(cls, config: DecoderConfig) -> BoundAdapter:
        """The adapter that changes nothing, for requests to the base itself beside those of experts."""
        return cls(PreparedAdapter("none", 0, config.source_sha256, {}, digest="none"), config)


def bind_values(
    binding: Any, values: Mapping[str, Tensor], bound: Mapping[str, Tensor], memory: Memory | None
) -> None:
    """Bind every input of `values`, in a device's memory or the host's, that is not the same in `bound`.

    Args:
        binding: of ONNX Runtime.
        values: all adapter inputs.
        bound: what is bound now.
        memory: of the device; None for the host.

    Raises:
        OutOfMemoryError: the device has no room for them; nothing is bound then.
    """
    # All are in the device's memory before the first is bound: what fails leaves the bound adapter whole.
    changed = {name: value.value(memory) for name, value in values.items() if bound.get(name) is not value}
    for name, value in changed.items():
        binding.bind_ortvalue_input(name, value)


def _in_one_block(plans: Mapping[str, _Plan], kind: ElementType) -> tuple[dict[str, Array], int]:
    """Arrays as planned, as aligned views of one block, and its bytes.

    Hundreds of small arrays would pin the heap around what loading leaves behind.
    """
    storage = np.dtype(kind.storage)
    unit = _ALIGNMENT // storage.itemsize
    sizes = [-(-prod(plan.shape) // unit) * unit for plan in plans.values()]
    block = np.zeros(sum(sizes) + unit, storage)
    offset = -(block.ctypes.data // block.itemsize) % unit
    views = {}
    for (name, plan), size in zip(plans.items(), sizes, strict=True):
        view = block[offset : offset + prod(plan.shape)].reshape(plan.shape)
        _fill(view, name, plan, kind)
        views[name] = view
        offset += size
    return views, block.nbytes


def _fill(view: Array, name: str, plan: _Plan, kind: ElementType) -> None:
    if view.dtype == np.float32:
        plan.fill(view)
        return
    values = np.zeros(plan.shape, np.float32)
    plan.fill(values)
    try:
        view[...] = kind.cast(values)
    except OverflowError as error:
        raise AdapterError(
            f"adapter input {name}: {error}, in which the base computes: use a base exported with --precision bf16 "
            "or fp32"
        ) from error


def _add_site(
    site: Site,
    kind: ElementType,
    modules: Mapping[str, PreparedModule],
    own: dict[str, _Plan],
    shared: dict[str, Tensor],
) -> None:
    """Add the inputs of `site`: to `own` what the adapter changes, to `shared` zeros and ones for the rest."""
    present = [modules.get(part.module, _NO_CHANGE) for part in site.parts]
    for part, module in zip(site.parts, present, strict=True):
        _check_shapes(site, part, module)
    rank = sum(_rank(module) for module in present)
    if rank == 0:  # rank 1, because rank 0 is not legal on every provider
        shared[site.lora_A] = _constant(0, kind, site.in_features, 1)
        shared[site.lora_B] = _constant(0, kind, 1, site.out_features)
    else:
        own[site.lora_A] = _Plan((site.in_features, rank), partial(_fill_A, present))
        own[site.lora_B] = _Plan((rank, site.out_features), partial(_fill_B, site.parts, present))
    shared[site.gate] = _constant(1, kind, 1, 1)  # one adapter: every rank is open to every token
    vectors = [(site.scale, [module.scale for module in present], 1)]
    if site.bias:
        vectors.append((site.bias_input, [module.bias for module in present], 0))
    for name, values, default in vectors:
        if all(value is None for value in values):
            shared[name] = _constant(default, kind, 1, site.out_features)
        else:
            fill = partial(_fill_vector, site.parts, values, default)
            own[name] = _Plan((1, site.out_features), fill)


def _rank(module: PreparedModule) -> int:
    return 0 if module.lora_A is None else module.lora_A.shape[1]


def _check_shapes(site: Site, part: Part, module: PreparedModule) -> None:
    shapes = [matrix.shape for matrix in (module.lora_A, module.lora_B) if matrix is not None]
    if shapes and shapes != [(site.in_features, _rank(module)), (_rank(module), part.size)]:
        raise AdapterError(
            f"module {part.module}: lora_A {list(shapes[0])} and lora_B {list(shapes[1])} do not fit the base's "
            f"[{site.in_features} -> {part.size}]"
        )
    for vector in (module.scale, module.bias):
        if vector is not None and vector.shape != (part.size,):
            raise AdapterError(
                f"module {part.module}: scale or bias has shape {list(vector.shape)}, not [{part.size}]"
            )


def _fill_A(modules: Sequence[PreparedModule], view: Floats) -> None:
    """[K, R]: the parts' columns side by side; parts without an adapter take no rank."""
    rank = 0
    for module in modules:
        if module.lora_A is not None:
            view[:, rank : rank + _rank(module)] = module.lora_A
            rank += _rank(module)


def _fill_B(parts: Sequence[Part], modules: Sequence[PreparedModule], view: Floats) -> None:
    """[R, N], zeros so far: the parts' rows on the diagonal.

    One product then serves all parts: fewer nodes are worth more than the zeros cost.
    """
    rank = column = 0
    for part, module in zip(parts, modules, strict=True):
        if module.lora_B is not None:
            view[rank : rank + _rank(module), column : column + part.size] = module.lora_B
            rank += _rank(module)
        column += part.size


def _fill_vector(parts: Sequence[Part], values: Sequence[Floats | None], default: int, view: Floats) -> None:
    """[1, N]: one value per output feature, `default` where a part has none."""
    column = 0
    for part, value in zip(parts, values, strict=True):
        view[0, column : column + part.size] = default if value is None else value
        column += part.size


@lru_cache(maxsize=64)
def _constant(value: int, kind: ElementType, *shape: int) -> Tensor:
    """Zeros or ones; equal ones exist once, so that a swap leaves them bound."""
    return Tensor(kind.cast(np.full(shape, value, np.float32)), kind)
