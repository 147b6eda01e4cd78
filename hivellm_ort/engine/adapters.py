"""Adapter weights as graph inputs: of one adapter, and of a batch whose rows have different adapters."""

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
from hivellm_ort.engine.ort_values import FLOAT_TYPES, Array, DeviceMemory, ElementType, Tensor
from hivellm_ort.errors import AdapterError, BaseMismatchError

__all__ = ["AdapterBatch", "BoundAdapter", "bind_adapter_inputs"]

Floats = NDArray[np.float32]
_NO_CHANGE = PreparedModule()
_ALIGNMENT = 64  # bytes: a cache line


class BoundAdapter:
    """The graph inputs of one adapter, ready to be bound.

    Args:
        adapter: The prepared adapter.
        config: The `decoder.json` of the base that it runs on. The graph says which float type the inputs have.

    Attributes:
        digest: The digest of the prepared adapter.
        kind: Its kind, as `lora`.
        rank: Its rank.
        nbytes: The memory of its weights in bytes.
        own_inputs: The inputs that it changes, by name. All others are zeros and ones.
        inputs: Every adapter input by name.

    Raises:
        BaseMismatchError: The adapter was prepared for other base weights.
        AdapterError: The adapter changes a module that the graph has no site for, a tensor has the wrong shape, or
            the float type cannot hold a value.
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
        own: dict[str, _Layout] = {}
        constant: dict[str, Tensor] = {}
        element_type = FLOAT_TYPES[config.graph.adapter_dtype]
        for site in config.sites:
            _add_site(site, element_type, adapter.modules, own, constant)
        arrays, self.nbytes = _in_one_buffer(own, element_type)
        self.own_inputs: Mapping[str, Tensor] = {
            name: Tensor(array, element_type) for name, array in arrays.items()
        }
        self.inputs: Mapping[str, Tensor] = {**self.own_inputs, **constant}

    @classmethod
    def none(cls, config: DecoderConfig) -> BoundAdapter:
        """Make the adapter that changes nothing, for requests to the base beside requests to experts.

        Args:
            config: The `decoder.json` of the base.

        Returns:
            The adapter.
        """
        return cls(PreparedAdapter("none", 0, config.source_sha256, {}, digest="none"), config)


class AdapterBatch:
    """The graph inputs of a batch whose rows have different adapters.

    The ranks of all adapters stand side by side, and a gate per row opens those of its own adapter. The weights are
    joined once for a set of adapters, and read once per step for the whole batch.

    Args:
        adapters: The adapters, each once. The position of an adapter is its slot.
        config: The `decoder.json` of their base.

    Attributes:
        adapters: The adapters by slot.
    """

    def __init__(self, adapters: Sequence[BoundAdapter], config: DecoderConfig):
        self.adapters = tuple(adapters)
        self._config = config
        self._element_type = FLOAT_TYPES[config.graph.adapter_dtype]
        self._joined: dict[str, Tensor] = {}
        self._ranks: dict[str, list[int]] = {}
        for site in config.sites:
            own = [adapter.own_inputs for adapter in adapters if site.lora_A in adapter.own_inputs]
            A = [inputs[site.lora_A].array for inputs in own]
            B = [inputs[site.lora_B].array for inputs in own]
            self._ranks[site.name] = [
                adapter.own_inputs[site.lora_A].array.shape[1] if site.lora_A in adapter.own_inputs else 0
                for adapter in adapters
            ]
            if own:
                joined_A, joined_B = np.concatenate(A, axis=1), np.concatenate(B, axis=0)
            else:
                joined_A, joined_B = self._full(0, site.in_features, 1), self._full(0, 1, site.out_features)
            self._joined[site.lora_A] = Tensor(joined_A, self._element_type)
            self._joined[site.lora_B] = Tensor(joined_B, self._element_type)

    def inputs_for(self, rows: Sequence[BoundAdapter]) -> Mapping[str, Tensor]:
        """Make the adapter inputs of a step.

        Args:
            rows: The adapter of each row. Each is one of `adapters`.

        Returns:
            Every adapter input by name.
        """
        slots = [self.adapters.index(adapter) for adapter in rows]
        per_row: dict[str, Tensor] = {}
        for site in self._config.sites:
            per_row[site.gate] = Tensor(self._gate(site, slots), self._element_type)
            vectors = [(site.scale, 1)] + ([(site.bias_input, 0)] if site.bias else [])
            for name, default in vectors:
                joined = self._full(default, len(slots), site.out_features)
                for row, slot in enumerate(slots):
                    if (vector := self.adapters[slot].own_inputs.get(name)) is not None:
                        joined[row] = vector.array[0]
                per_row[name] = Tensor(joined, self._element_type)
        return {**self._joined, **per_row}

    def _full(self, value: int, *shape: int) -> Array:
        return self._element_type.cast(np.full(shape, value, np.float32))

    def _gate(self, site: Site, slots: Sequence[int]) -> Array:
        """[rows, R]: ones on the ranks of each row's adapter."""
        ranks = self._ranks[site.name]
        ends = np.cumsum(ranks)
        gate = np.zeros((len(slots), max(int(ends[-1]), 1)), np.float32)
        for row, slot in enumerate(slots):
            gate[row, ends[slot] - ranks[slot] : ends[slot]] = 1
        return self._element_type.cast(gate)


def bind_adapter_inputs(
    binding: Any,
    inputs: Mapping[str, Tensor],
    bound: Mapping[str, Tensor],
    memory: DeviceMemory | None,
) -> None:
    """Bind adapter inputs. An input that is bound already is left as it is.

    Args:
        binding: An `onnxruntime.IOBinding`.
        inputs: Every adapter input by name.
        bound: The adapter inputs that are bound now.
        memory: The memory of the device. None means the host.

    Raises:
        OutOfMemoryError: The device has no room for them. What was bound stays bound.
    """
    # All are in the memory of the device before the first is bound: a failure leaves the bound adapter whole.
    changed = {
        name: value.ort_value(memory) for name, value in inputs.items() if bound.get(name) is not value
    }
    for name, value in changed.items():
        binding.bind_ortvalue_input(name, value)


@dataclass(frozen=True)
class _Layout:
    """The shape of an input, and the function that writes its values over zeros."""

    shape: tuple[int, int]
    fill: Callable[[Floats], None]


def _in_one_buffer(layouts: Mapping[str, _Layout], element_type: ElementType) -> tuple[dict[str, Array], int]:
    """Fill the inputs, as aligned views of one buffer. Return them by name, and the bytes of the buffer.

    Hundreds of small arrays would pin the heap around what loading leaves behind.
    """
    storage = np.dtype(element_type.storage)
    unit = _ALIGNMENT // storage.itemsize
    sizes = [-(-prod(layout.shape) // unit) * unit for layout in layouts.values()]
    buffer = np.zeros(sum(sizes) + unit, storage)
    offset = -(buffer.ctypes.data // buffer.itemsize) % unit
    views = {}
    for (name, layout), size in zip(layouts.items(), sizes, strict=True):
        view = buffer[offset : offset + prod(layout.shape)].reshape(layout.shape)
        _fill(view, name, layout, element_type)
        views[name] = view
        offset += size
    return views, buffer.nbytes


def _fill(view: Array, name: str, layout: _Layout, element_type: ElementType) -> None:
    if view.dtype == np.float32:
        layout.fill(view)
        return
    values = np.zeros(layout.shape, np.float32)
    layout.fill(values)
    try:
        view[...] = element_type.cast(values)
    except OverflowError as error:
        raise AdapterError(
            f"adapter input {name}: {error}, in which the base computes: use a base exported with --precision bf16 "
            "or fp32"
        ) from error


def _add_site(
    site: Site,
    element_type: ElementType,
    modules: Mapping[str, PreparedModule],
    own: dict[str, _Layout],
    constant: dict[str, Tensor],
) -> None:
    """Add the inputs of a site: to `own` what the adapter changes, to `constant` zeros and ones for the rest."""
    present = [modules.get(part.module, _NO_CHANGE) for part in site.parts]
    for part, module in zip(site.parts, present, strict=True):
        _check_shapes(site, part, module)
    rank = sum(_rank(module) for module in present)
    if rank == 0:  # rank 1, because rank 0 is not legal on every provider
        constant[site.lora_A] = _constant(0, element_type, site.in_features, 1)
        constant[site.lora_B] = _constant(0, element_type, 1, site.out_features)
    else:
        own[site.lora_A] = _Layout((site.in_features, rank), partial(_fill_A, present))
        own[site.lora_B] = _Layout((rank, site.out_features), partial(_fill_B, site.parts, present))
    constant[site.gate] = _constant(1, element_type, 1, 1)  # one adapter: every rank is open to every token
    vectors = [(site.scale, [module.scale for module in present], 1)]
    if site.bias:
        vectors.append((site.bias_input, [module.bias for module in present], 0))
    for name, values, default in vectors:
        if all(value is None for value in values):
            constant[name] = _constant(default, element_type, 1, site.out_features)
        else:
            fill = partial(_fill_vector, site.parts, values, default)
            own[name] = _Layout((1, site.out_features), fill)


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
    """[K, R]: the columns of the parts side by side. A part without an adapter takes no rank."""
    rank = 0
    for module in modules:
        if module.lora_A is not None:
            view[:, rank : rank + _rank(module)] = module.lora_A
            rank += _rank(module)


def _fill_B(parts: Sequence[Part], modules: Sequence[PreparedModule], view: Floats) -> None:
    """[R, N], zeros so far: the rows of the parts on the diagonal.

    One product then serves all parts. Fewer nodes gain more than the zeros cost.
    """
    rank = column = 0
    for part, module in zip(parts, modules, strict=True):
        if module.lora_B is not None:
            view[rank : rank + _rank(module), column : column + part.size] = module.lora_B
            rank += _rank(module)
        column += part.size


def _fill_vector(parts: Sequence[Part], values: Sequence[Floats | None], default: int, view: Floats) -> None:
    """[1, N]: one value per output feature. A part without values gets `default`."""
    column = 0
    for part, value in zip(parts, values, strict=True):
        view[0, column : column + part.size] = default if value is None else value
        column += part.size


@lru_cache(maxsize=64)
def _constant(value: int, element_type: ElementType, *shape: int) -> Tensor:
    """Zeros or ones. Equal ones exist once, so that a swap leaves them bound."""
    return Tensor(element_type.cast(np.full(shape, value, np.float32)), element_type)
