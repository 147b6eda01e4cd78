"""Sessions that look at every run before ONNX Runtime does, and the rules of each provider.

The CPU provider computes what others get wrong without a word: DirectML's GroupQueryAttention takes a run of several
tokens for the first of its row, and never reads the past; CoreML and DirectML want the shapes they were compiled for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from hivellm_ort.contract import GREEDY_OUTPUT, LOGITS, DecoderConfig
from hivellm_ort.engine import session
from hivellm_ort.engine.devices import Placement
from hivellm_ort.engine.ort_values import DeviceMemory

ITEM = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of the float types."""


@dataclass(frozen=True)
class Buffer:
    """Something bound: where it is, and its shape."""

    address: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """One run as a provider gets it.

    Attributes:
        inputs: values of the small inputs by name.
        past: keys and values that are read, in the order of the layers.
        present: where new ones go, in the same order.
        output: what it gives besides, by name: where that goes.
        bound: everything that is bound, by name.
        graph_id: number of the captured graph that it is; None where the provider was told nothing.
        copied: small inputs that a device has copies of, made when they were bound.
    """

    inputs: dict[str, np.ndarray]
    past: list[Buffer]
    present: list[Buffer]
    output: dict[str, Buffer]
    bound: dict[str, Buffer] = field(default_factory=dict)
    graph_id: int | None = None
    copied: frozenset[str] = frozenset()

    @property
    def rows(self) -> int:
        """B."""
        return int(self.inputs["input_ids"].shape[0])

    @property
    def width(self) -> int:
        """S, with padding."""
        return int(self.inputs["input_ids"].shape[1])

    @property
    def begin(self) -> int:
        """Tokens that the longest row has before."""
        if "position_ids" in self.inputs:
            return int(self.inputs["position_ids"][:, 0].max())
        if self.captured:
            return int(self.inputs["seqlens_k"].max()) + 1 - self.width
        return int(self.inputs["total_sequence_length"].max()) - self.width

    @property
    def captured(self) -> bool:
        """Whether the provider captures it, or replays what it captured."""
        return self.graph_id is not None and self.graph_id >= 0

    @property
    def capacity(self) -> int:
        """Tokens that the cache has room for."""
        return self.past[0].shape[2]


_SMALL = ("input_ids", "position_ids", "seqlens_k", "total_sequence_length", "logits_rows")

Rules = Callable[[Run, DecoderConfig], Iterator[str]]


def _everywhere(run: Run, config: DecoderConfig) -> Iterator[str]:
    """What holds for every form."""
    inputs, form, numbers = run.inputs, config.graph, config.architecture
    if set(inputs) != set(form.inputs):
        yield f"inputs {sorted(inputs)}"
    for name, array in inputs.items():
        if array.dtype != (np.int32 if name in ("seqlens_k", "total_sequence_length") else np.int64):
            yield f"{name} is {array.dtype}"
        if len(array.shape) != len(form.inputs[name]):
            yield f"{name} has {len(array.shape)} dimensions"
        for size, allowed in zip(array.shape, form.inputs[name], strict=False):
            if isinstance(allowed, int) and size != allowed:
                yield f"{name} has shape {array.shape}, not {form.inputs[name]}"
    if run.begin + run.width > run.capacity:
        yield f"{run.width} tokens at {run.begin} of {run.capacity}"
    heads, size = numbers.num_key_value_heads, numbers.head_dim
    for buffer in run.past:
        if buffer.shape != (run.rows, heads, run.capacity, size):
            yield f"past of shape {buffer.shape}"
    wanted = inputs["logits_rows"]
    shapes = {LOGITS: (len(wanted), numbers.vocab_size), GREEDY_OUTPUT: (len(wanted),)}
    if len(run.output) != 1:
        yield f"it gives {sorted(run.output)}"
    for name, buffer in run.output.items():
        if buffer.shape != shapes[name] or not len(wanted):
            yield f"{len(wanted)} rows of {name} in {buffer.shape}"
        if name == GREEDY_OUTPUT and not form.greedy_output:
            yield f"the graph has no {name}"
    if "seqlens_k" in inputs:
        ends = inputs["seqlens_k"] + 1
        longest = run.capacity if run.captured else run.begin + run.width
        if inputs["total_sequence_length"].max() != longest:
            yield "total_sequence_length is not that of the longest row"
        if ends.max() > run.begin + run.width or ends.max() <= run.begin:
            yield f"seqlens_k {inputs['seqlens_k']} for {run.width} tokens at {run.begin}"
        if run.rows == 1 and wanted.max() != ends.max() - run.begin - 1:
            yield "logits of padding"
    if "position_ids" in inputs:
        expected = run.begin + np.arange(run.width)
        if not np.array_equal(inputs["position_ids"], expected[None]):
            yield f"position_ids {inputs['position_ids']}"


def _shared(run: Run) -> Iterator[str]:
    if run.past != run.present:
        yield "past and present are not the same buffers"


def _fixed(run: Run, config: DecoderConfig) -> Iterator[str]:
    shapes = config.graph.shapes
    if run.rows != 1:
        yield f"{run.rows} rows"
    if run.width not in shapes["sequence_length"]:
        yield f"{run.width} tokens, which is no bucket"
    if [run.capacity] != list(shapes["max_length"]):
        yield f"a cache of {run.capacity}"


def batched(run: Run, config: DecoderConfig) -> Iterator[str]:
    """The forms `cpu` and `cuda`: GroupQueryAttention appends several tokens to one row only."""
    yield from _everywhere(run, config)
    yield from _shared(run)
    if run.width > 1 and run.rows > 1:
        yield f"{run.width} tokens on {run.rows} rows"


def directml(run: Run, config: DecoderConfig) -> Iterator[str]:
    """The form `dml`."""
    yield from _everywhere(run, config)
    yield from _shared(run)
    yield from _fixed(run, config)
    if run.width > 1 and run.begin > 0:
        yield f"{run.width} tokens behind {run.begin}, as if they were the first"
    if len(run.inputs["logits_rows"]) != 1:
        yield f"{len(run.inputs['logits_rows'])} rows of logits"


def portable(run: Run, config: DecoderConfig) -> Iterator[str]:
    """The form `portable`."""
    yield from _everywhere(run, config)
    yield from _fixed(run, config)
    item = ITEM[config.graph.cache_dtype]
    for past, present in zip(run.past, run.present, strict=True):
        if present.shape != (*past.shape[:2], run.width, past.shape[3]):
            yield f"present of shape {present.shape}"
        ends = [buffer.address + item * int(np.prod(buffer.shape)) for buffer in (past, present)]
        if past.address < ends[1] and present.address < ends[0]:
            yield "past and present overlap"


class CaptureRules:
    """The rules `batched`, and those of a provider that captures runs and replays them.

    Attributes:
        first_runs: the first run of each captured graph, by its number.
    """

    def __init__(self) -> None:
        self.first_runs: dict[int, Run] = {}

    def __call__(self, run: Run, config: DecoderConfig) -> Iterator[str]:
        """See `Rules`."""
        yield from batched(run, config)
        if run.graph_id is None:
            yield "nothing says whether the run is to be captured"
        elif run.captured:
            yield from self._captured(run, self.first_runs.setdefault(run.graph_id, run))

    def _captured(self, run: Run, first: Run) -> Iterator[str]:
        if run.width > 1 or run.begin == 0:
            yield f"{run.width} tokens at {run.begin} are captured"
        for name in sorted(run.bound.keys() | first.bound.keys()):
            if run.bound.get(name) != first.bound.get(name):
                yield f"{name} is not where captured graph {run.graph_id} has it"
        # Read on the host, and so frozen.
        if run.copied != {"total_sequence_length"}:
            yield f"{sorted(run.copied)} are not where the device reads them"
        totals = [one.inputs["total_sequence_length"].tolist() for one in (run, first)]
        if totals[0] != totals[1]:
            yield f"total_sequence_length was {totals[1]} and is {totals[0]}"
        if list(run.inputs["logits_rows"]) != list(range(run.rows)):
            yield f"logits of {run.inputs['logits_rows']}"


RULES: dict[str, Rules] = {"cpu": batched, "cuda": batched, "dml": directml, "portable": portable}


def _is_output(name: str) -> bool:
    return name in (LOGITS, GREEDY_OUTPUT) or name.startswith("present.")


class _Binding:
    """An IOBinding that notes what is bound.

    Attributes:
        real: ONNX Runtime's.
        copied: beginnings of the names of inputs of the host that a device takes a copy of when they are bound.
        bound: the last value of each name.
        copies: names of those that were copied.

    Args:
        real: ONNX Runtime's.
        copied: see above.
        device: values that are on the device already.
    """

    def __init__(self, real: Any, copied: tuple[str, ...], device: list[Any]):
        self.real, self.copied, self._device = real, copied, device
        self.bound: dict[str, Any] = {}
        self.copies: set[str] = set()

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.copies.discard(name)
        if name.startswith(self.copied) and not any(value is one for one in self._device):
            self.copies.add(name)
            value = onnxruntime.OrtValue.ortvalue_from_numpy(np.array(value.numpy()))
        self.bound[name] = value
        self.real.bind_ortvalue_input(name, value)

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.bound[name] = value
        self.real.bind_ortvalue_output(name, value)

    def bind_input(self, name: str, *where: Any) -> None:
        self.bound[name] = Buffer(where[-1], tuple(where[-2]))
        self.real.bind_input(name, *where)

    def bind_output(self, name: str, *where: Any) -> None:
        self.bound[name] = Buffer(where[-1], tuple(where[-2]))
        self.real.bind_output(name, *where)

    def clear_binding_outputs(self) -> None:
        self.bound = {name: one for name, one in self.bound.items() if not _is_output(name)}
        self.real.clear_binding_outputs()

    def run(self, options: Any) -> Run:
        """What a provider would get now."""
        number = None if options is None else int(options.get_run_config_entry("gpu_graph_id"))
        buffers = {
            name: one if isinstance(one, Buffer) else Buffer(one.data_ptr(), tuple(one.shape()))
            for name, one in self.bound.items()
        }
        small = {name: value for name, value in self.bound.items() if name in _SMALL}
        return Run(
            inputs={name: np.array(value.numpy()) for name, value in small.items()},
            past=[buffer for name, buffer in sorted(buffers.items()) if name.startswith("past_key_values.")],
            present=[buffer for name, buffer in sorted(buffers.items()) if name.startswith("present.")],
            output={name: buffers[name] for name in (LOGITS, GREEDY_OUTPUT) if name in buffers},
            bound=buffers,
            graph_id=number,
            copied=frozenset(self.copies),
        )


class Recording:
    """The sessions of engines made meanwhile; every run is noted, and what its rules forbid.

    Where a provider has memory of its own, what is bound from the host's is copied there and then, as ONNX Runtime's
    `IOBinding` does it.

    Attributes:
        runs: every run.
        faults: what was forbidden.
        device: what is in a device's memory, of what was made there as zeros.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rules: Rules, config: DecoderConfig):
        self.runs: list[Run] = []
        self.faults: list[str] = []
        self._rules, self._config = rules, config
        start = session.start_session

        def recorded(path: Path, placement: Placement, *, threads: int | None) -> Any:
            copied: tuple[str, ...] = ()
            if placement.provider.memory:
                copied = _SMALL + (("past_key_values.",) if config.graph.cache_update == "new_tokens" else ())
            return _Session(start(path, placement, threads=threads), self, copied)

        monkeypatch.setattr(session, "start_session", recorded)
        self.device: list[Any] = []
        zeros = DeviceMemory.zeros

        def noted(memory: DeviceMemory, shape: tuple[int, ...], storage: Any) -> Any:
            value = zeros(memory, shape, storage)
            self.device.append(value)
            return value

        monkeypatch.setattr(DeviceMemory, "zeros", noted)

    def note(self, run: Run) -> None:
        """Look at a run."""
        self.runs.append(run)
        self.faults += self._rules(run, self._config)

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Rows, tokens and begin of every run."""
        return [(run.rows, run.width, run.begin) for run in self.runs]


class _Session:
    def __init__(self, real: Any, recording: Recording, copied: tuple[str, ...]):
        self._real, self._recording, self._copied = real, recording, copied

    def io_binding(self) -> _Binding:
        return _Binding(self._real.io_binding(), self._copied, self._recording.device)

    def run_with_iobinding(self, binding: _Binding, options: Any = None) -> None:
        self._recording.note(binding.run(options))
        self._real.run_with_iobinding(binding.real, options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
