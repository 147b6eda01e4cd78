"""Different adapters in one batch: their ranks side by side, and per row a gate that opens its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.contract import DecoderConfig, Site
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.engine.providers import import_onnxruntime

__all__ = ["MixedAdapters"]

Array = NDArray[np.float32]


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
        value = import_onnxruntime().OrtValue.ortvalue_from_numpy
        self._shared: dict[str, Any] = {}
        self._ranks: dict[str, list[int]] = {}
        for site in config.sites:
            A = [adapter.arrays[site.lora_A] for adapter in adapters if site.lora_A in adapter.arrays]
            B = [adapter.arrays[site.lora_B] for adapter in adapters if site.lora_B in adapter.arrays]
            self._ranks[site.name] = [
                adapter.arrays[site.lora_A].shape[1] if site.lora_A in adapter.arrays else 0
                for adapter in adapters
            ]
            if A:
                self._shared[site.lora_A] = value(np.concatenate(A, axis=1))
                self._shared[site.lora_B] = value(np.concatenate(B, axis=0))
            else:
                self._shared[site.lora_A] = value(np.zeros((site.in_features, 1), np.float32))
                self._shared[site.lora_B] = value(np.zeros((1, site.out_features), np.float32))

    def values_for(self, rows: Sequence[BoundAdapter]) -> Mapping[str, Any]:
        """Every adapter input of a step in which row i has the adapter `rows[i]`, one of `adapters`."""
        value = import_onnxruntime().OrtValue.ortvalue_from_numpy
        places = [self.adapters.index(adapter) for adapter in rows]
        own: dict[str, Any] = {}
        for site in self._config.sites:
            own[site.gate] = value(self._gate(site, places))
            vectors = [(site.scale, 1)] + ([(site.bias_input, 0)] if site.bias else [])
            for name, default in vectors:
                joined = np.full((len(places), site.out_features), default, np.float32)
                for row, place in enumerate(places):
                    if (vector := self.adapters[place].arrays.get(name)) is not None:
                        joined[row] = vector[0]
                own[name] = value(joined)
        return {**self._shared, **own}

    def _gate(self, site: Site, places: Sequence[int]) -> Array:
        """[rows, R]: ones on the ranks of each row's adapter."""
        ranks = self._ranks[site.name]
        ends = np.cumsum(ranks)
        gate = np.zeros((len(places), max(int(ends[-1]), 1)), np.float32)
        for row, place in enumerate(places):
            gate[row, ends[place] - ranks[place] : ends[place]] = 1
        return gate
