"""Different adapters in one batch: their ranks side by side, and per row a gate that opens its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hivellm_ort.contract import DecoderConfig, Site
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.engine.device_arrays import FLOAT_TYPES, Array, Tensor

__all__ = ["MixedAdapters"]


class MixedAdapters:
    """The graph inputs for a batch whose rows have different adapters.

    The weights are joined once for a set of adapters and read once per step for the whole batch; `values_for` adds
    what depends on which row has which.

    Args:
        adapters: the adapters, each once.
        config: the base bundle they are bound to.
    """

    def __init__(self, adapters: Sequence[BoundAdapter], config: DecoderConfig):
        self.adapters = tuple(adapters)
        self._config = config
        self._kind = FLOAT_TYPES[config.graph.adapter_dtype]
        self._shared: dict[str, Tensor] = {}
        self._ranks: dict[str, list[int]] = {}
        for site in config.sites:
            A = [adapter.own[site.lora_A].array for adapter in adapters if site.lora_A in adapter.own]
            B = [adapter.own[site.lora_B].array for adapter in adapters if site.lora_B in adapter.own]
            self._ranks[site.name] = [
                adapter.own[site.lora_A].array.shape[1] if site.lora_A in adapter.own else 0
                for adapter in adapters
            ]
            if A:
                self._shared[site.lora_A] = Tensor(np.concatenate(A, axis=1), self._kind)
                self._shared[site.lora_B] = Tensor(np.concatenate(B, axis=0), self._kind)
            else:
                self._shared[site.lora_A] = Tensor(self._full(0, site.in_features, 1), self._kind)
                self._shared[site.lora_B] = Tensor(self._full(0, 1, site.out_features), self._kind)

    def values_for(self, rows: Sequence[BoundAdapter]) -> Mapping[str, Tensor]:
        """Every adapter input of a step in which row i has the adapter `rows[i]`, one of `adapters`."""
        places = [self.adapters.index(adapter) for adapter in rows]
        own: dict[str, Tensor] = {}
        for site in self._config.sites:
            own[site.gate] = Tensor(self._gate(site, places), self._kind)
            vectors = [(site.scale, 1)] + ([(site.bias_input, 0)] if site.bias else [])
            for name, default in vectors:
                joined = self._full(default, len(places), site.out_features)
                for row, place in enumerate(places):
                    if (vector := self.adapters[place].own.get(name)) is not None:
                        joined[row] = vector.array[0]
                own[name] = Tensor(joined, self._kind)
        return {**self._shared, **own}

    def _full(self, value: int, *shape: int) -> Array:
        return self._kind.cast(np.full(shape, value, np.float32))

    def _gate(self, site: Site, places: Sequence[int]) -> Array:
        """[rows, R]: ones on the ranks of each row's adapter."""
        ranks = self._ranks[site.name]
        ends = np.cumsum(ranks)
        gate = np.zeros((len(places), max(int(ends[-1]), 1)), np.float32)
        for row, place in enumerate(places):
            gate[row, ends[place] - ranks[place] : ends[place]] = 1
        return self._kind.cast(gate)
