"""What a base's graphs can do where they run: the only thing that the decoder goes by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from hivellm_ort.contract import DecoderConfig
from hivellm_ort.engine.device_arrays import CACHE_TYPES, FLOAT_TYPES, ElementType, Memory
from hivellm_ort.engine.kv_cache import CacheForm
from hivellm_ort.engine.placement import Placement
from hivellm_ort.engine.providers import import_onnxruntime
from hivellm_ort.errors import ProviderError

__all__ = ["Capabilities"]

_INPUTS = {"input_ids", "position_ids", "seqlens_k", "total_sequence_length", "logits_rows"}
_SHAPES = {"batch_size", "sequence_length", "max_length", "rows"}
_UPDATES = ("in_place", "new_tokens")
_INT8_CACHE = (1, 28)  # the first ONNX Runtime whose CPU provider has it


@dataclass(frozen=True)
class Capabilities:
    """How the graphs of a bundle are run on one device.

    Attributes:
        batch: whether a run may have several rows; else each row has runs of its own.
        append: whether a run may have several tokens on a row that is not empty.
        buckets: the only numbers of tokens per row that a run may have, ascending, 1 among them; empty for any.
        max_length: tokens of the cache, where the graph fixes that.
        new_tokens: whether a run gives the keys and values of its own tokens only, to be copied into the cache;
            else past and present are the same buffers.
        one_logit: whether a run gives one row of logits only.
        greedy: whether a run can give the most likely tokens in place of logits.
        positions: whether the graph takes `position_ids`.
        lengths: whether it takes `seqlens_k`.
        total: shape of `total_sequence_length`; None where it takes none.
        cache_type: type of keys and values.
        memory: of the device, where adapters are kept, and keys and values unless `new_tokens`; None for the host.
            What is bound from the host is copied to a device when it is bound, so it is bound anew for each run.
        cuda_graph: whether the provider records runs and repeats them: every run then says which it is, or that it is
            none (`engine.running`).
    """

    batch: bool
    append: bool
    buckets: tuple[int, ...]
    max_length: int | None
    new_tokens: bool
    one_logit: bool
    greedy: bool
    positions: bool
    lengths: bool
    total: tuple[int, ...] | None
    cache_type: ElementType
    memory: Memory | None
    cuda_graph: bool

    @classmethod
    def of(cls, config: DecoderConfig, placement: Placement) -> Capabilities:
        """Those of a base's graphs where they are placed.

        Raises:
            ProviderError: `decoder.json` asks for something that this version does not know; the message names
                the field.
        """
        form, read = config.graph, _Reader(config)
        for name, known in (("inputs", _INPUTS), ("shapes", _SHAPES)):
            found = getattr(form, name)
            if unknown := found.keys() - known:
                read.refuse(f"{name}.{min(unknown)}", found[min(unknown)])
        if form.cache_update not in _UPDATES:
            read.refuse("cache_update", form.cache_update)
        for name in ("cache_dtype", "activation_dtype", "adapter_dtype"):
            types = CACHE_TYPES if name == "cache_dtype" else FLOAT_TYPES
            if getattr(form, name) not in types:
                read.refuse(name, getattr(form, name))
        if form.cache_dtype == "int8":
            _check_runtime(config)
        batch, buckets = read.dimensions("input_ids", 2)
        tokens = list(form.inputs["input_ids"])
        read.expect("position_ids", tokens)
        read.expect("seqlens_k", tokens[:1])
        read.expect("total_sequence_length", [], [1])
        (rows,) = read.dimensions("logits_rows", 1)
        lengths = tuple(form.shapes.get("max_length", ()))
        if len(lengths) > 1:  # the whole cache is made at once, in the one length that the graph has
            read.refuse("shapes.max_length", list(lengths))
        limit = lengths[0] if lengths else None
        total, provider = form.inputs.get("total_sequence_length"), placement.provider
        return cls(
            batch=not batch,
            append=form.multi_token_append,
            buckets=tuple(size for size in buckets if limit is None or size <= limit),
            max_length=limit,
            new_tokens=form.cache_update == "new_tokens",
            one_logit=bool(rows),
            greedy=form.greedy_output,
            positions="position_ids" in form.inputs,
            lengths="seqlens_k" in form.inputs,
            total=None if total is None else (1,) * len(total),
            cache_type=CACHE_TYPES[form.cache_dtype],
            memory=Memory(provider.memory, placement.number) if provider.memory else None,
            cuda_graph=placement.cuda_graph,
        )

    @property
    def cache(self) -> CacheForm:
        """What the buffers of keys and values are."""
        return CacheForm(self.cache_type, None if self.new_tokens else self.memory, self.batch)


def _check_runtime(config: DecoderConfig) -> None:
    """Refuse an ONNX Runtime whose attention takes no keys and values in 8 bits: it would fail in its first run."""
    version = import_onnxruntime().__version__
    if tuple(map(int, version.split(".")[:2])) < _INT8_CACHE:
        raise ProviderError(
            f"base {config.name!r} keeps keys and values in 8 bits, which needs ONNX Runtime "
            f"{'.'.join(map(str, _INT8_CACHE))}, and {version} is installed: update it, or export again without "
            "--cache int8"
        )


@dataclass(frozen=True)
class _Reader:
    """Reads what a form says, and refuses what a later version may mean by it."""

    config: DecoderConfig

    def dimensions(self, name: str, rank: int) -> list[tuple[int, ...]]:
        """Of every dimension of an input the sizes that it may have, 1 among them; none for any size."""
        form = self.config.graph
        shape = form.inputs.get(name)
        if shape is None or len(shape) != rank:
            self.refuse(f"inputs.{name}", shape)
        found = []
        for size in shape:
            allowed = tuple(form.shapes.get(size, ())) if isinstance(size, str) else (size,)
            if allowed and 1 not in allowed:
                self.refuse(f"shapes.{size}" if isinstance(size, str) else f"inputs.{name}", list(allowed))
            found.append(tuple(sorted(allowed)))
        return found

    def expect(self, name: str, *shapes: list[str | int]) -> None:
        """Refuse an input that is there and has none of these shapes."""
        shape = self.config.graph.inputs.get(name, shapes[0])
        if list(shape) not in shapes:
            self.refuse(f"inputs.{name}", list(shape))

    def refuse(self, field: str, found: object) -> NoReturn:
        """Raise the error for a field of the form."""
        raise ProviderError(
            f"base {self.config.name!r}: this version of hivellm-ort cannot run graphs of target "
            f"{self.config.target!r} with {field} of decoder.json being {found!r}: update it, or export again with "
            "--target cpu"
        )
