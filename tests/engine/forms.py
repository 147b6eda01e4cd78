"""Engines of every form on the CPU provider, and one course of requests for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hivellm_ort.adapters.prepared_adapter import PreparedAdapter
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.engine.decoder import Decoder
from hivellm_ort.engine.devices import Placement
from hivellm_ort.engine.providers import CPU
from hivellm_ort.engine.session import Engine

FORMS = [
    ("cpu", "fp32"),
    ("cpu", "fp32+int8"),
    ("portable", "fp32"),
    ("portable", "fp16"),
    ("dml", "fp16"),
    ("cuda", "fp16"),
    ("cuda", "bf16"),
]
# Largest difference of a logit; logits are -5 to 5, and half floats have 11 and 8 bits.
TOLERANCES = {"fp32": 1e-4, "fp32+int8": 0.3, "fp16": 0.05, "bf16": 0.3}
DEVICE = Placement(replace(CPU, memory="cpu"))
"""The CPU as a device with memory of its own: buffers are OrtValues, bound whole or by their address."""

CAPTURED = Placement(
    replace(CPU, memory="cpu", graph_capture_option="enable_cuda_graph"),
    options=(("enable_cuda_graph", "1"),),
)
"""The same as a device that captures runs and replays them, as CUDA does with CUDA graphs."""


class Bundles:
    """Bundles of one model by target and precision, that the CPU provider runs, with its two adapters."""

    def __init__(self, make: Callable[[str, str], tuple[Path, dict[str, PreparedAdapter]]]):
        self._make = make
        self._made: dict[tuple[str, str], tuple[Path, dict[str, PreparedAdapter]]] = {}

    def _get(self, target: str, precision: str) -> tuple[Path, dict[str, PreparedAdapter]]:
        key = (target, precision)
        if key not in self._made:
            self._made[key] = self._make(target, precision)
        return self._made[key]

    def folder(self, target: str, precision: str) -> Path:
        """A bundle."""
        return self._get(target, precision)[0]

    def engine(self, target: str, precision: str, placement: Placement | None = None) -> Engine:
        """A bundle's engine; on the CPU provider, whatever it is for."""
        return Engine(self.folder(target, precision), placement=placement or Placement(CPU), threads=1)

    def adapters(self, target: str, precision: str, engine: Engine) -> dict[str, BoundAdapter | None]:
        """The adapters for an engine; under `none` the one that changes nothing."""
        prepared = self._get(target, precision)[1]
        bound = {name: BoundAdapter(adapter, engine.config) for name, adapter in prepared.items()}
        return {**bound, "none": BoundAdapter.none(engine.config)}


def tokens(count: int, seed: int) -> list[int]:
    """Random tokens of the tiny vocabulary."""
    return [int(token) for token in np.random.default_rng(seed).integers(3, 280, count)]


def course(decoder: Decoder, adapters: dict[str, BoundAdapter | None]) -> list[np.ndarray]:
    """All logits of a course of requests that uses everything a loop does with rows.

    Prompts shorter than every bucket and longer than most, steps of one row and of several with different adapters,
    a guess that is verified and forgotten, forced tokens, a catch-up before a step, a row that moves, and prompts of
    which a part is kept.
    """
    lora, dora, none = (adapters[name] for name in ("lora", "dora", "none"))
    found: list[np.ndarray] = []

    def note(logits: np.ndarray) -> None:
        found.append(logits.copy())

    short, long, middle = tokens(5, 1), tokens(330, 2), tokens(70, 3)
    assert 0 == decoder.start(0, lora, 200, short)
    note(decoder.append(0, short))
    for token in tokens(8, 4):  # alone
        note(decoder.append(0, [token]))
    assert 0 == decoder.start(1, dora, 400, long)
    note(decoder.append(1, long))
    decoder.save_prefix(1, long)
    for seed in (5, 6):
        note(decoder.step(tokens(2, seed)))
    assert 0 == decoder.start(2, none, 100, middle)
    note(decoder.append(2, middle))
    for seed in range(7, 11):
        note(decoder.step(tokens(3, seed)))
    guess = tokens(13, 11)
    note(decoder.append(0, guess, logits_to_keep=len(guess)))
    read = len(short) + 8 + 2 + 4
    decoder.truncate(0, read + 4)  # three of the guess were right
    note(decoder.step(tokens(3, 12)))
    note(decoder.append(1, tokens(20, 13)))  # forced, more than a bucket of 16
    decoder.append(2, tokens(3, 14))  # caught up
    note(decoder.step(tokens(3, 15)))
    decoder.move(2, 0)  # the first row is finished
    note(decoder.step(tokens(2, 16)))
    again = [*long[:320], *tokens(6, 17)]
    taken = decoder.start(2, dora, 400, again)
    assert taken == 320
    note(decoder.append(2, again[taken:]))
    note(decoder.step(tokens(3, 18)))
    decoder.free_rows()
    other = [*long[:100], *tokens(50, 19)]
    taken = decoder.start(0, dora, 200, other)
    note(decoder.append(0, other[taken:], logits_to_keep=2))
    note(decoder.append(0, tokens(1, 20)))
    return found


def difference(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> float:
    """The largest of all logits; they must be of the same shapes and float32."""
    assert [logits.shape for logits in expected] == [logits.shape for logits in actual]
    assert {np.dtype(np.float32)} == {logits.dtype for logits in actual}
    return max(float(np.abs(a - b).max()) for a, b in zip(expected, actual, strict=True))
