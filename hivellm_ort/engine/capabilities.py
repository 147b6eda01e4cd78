"""What the graphs of a base allow on their device, and how a prompt is cut into runs that they allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from hivellm_ort.contract import DecoderConfig
from hivellm_ort.engine.devices import Placement
from hivellm_ort.engine.environment import import_onnxruntime
from hivellm_ort.engine.kv_cache import KVCacheSpec
from hivellm_ort.engine.ort_values import CACHE_TYPES, FLOAT_TYPES, DeviceMemory, ElementType
from hivellm_ort.errors import ProviderError

__all__ = ["Capabilities", "Chunk"]

_INPUTS = {"input_ids", "position_ids", "seqlens_k", "total_sequence_length", "logits_rows"}
_SHAPES = {"batch_size", "sequence_length", "max_length", "rows"}
_UPDATES = ("in_place", "new_tokens")
_INT8_CACHE = (1, 28)  # the first ONNX Runtime whose CPU provider has it


class Chunk(NamedTuple):
    """The tokens of one run.

    Attributes:
        begin: The index of the first token.
        end: The index behind the last token.
        width: The tokens of the run. Those above `end - begin` are padding on the right.
        logits_to_keep: How many of the last tokens give logits, at least one.
    """

    begin: int
    end: int
    width: int
    logits_to_keep: int


@dataclass(frozen=True)
class Capabilities:
    """How the graphs of a bundle can be run on one device. The decoder goes by nothing else.

    Attributes:
        batch: Whether a run may have several rows. Otherwise each row has runs of its own.
        multi_token_append: Whether a run may have several tokens on a row that is not empty.
        buckets: The only numbers of tokens per row that a run may have, ascending, with 1 among them. Empty means
            any number.
        max_length: The capacity of the cache in tokens, if the graph fixes it.
        past_present_share_buffer: Whether past and present are the same buffers. Otherwise a run gives the keys and
            values of its own tokens only, and they are copied into the cache.
        one_logits_row: Whether a run gives logits of one token only.
        greedy_output: Whether a run can give the most likely tokens in place of logits.
        position_ids: Whether the graph takes `position_ids`.
        seqlens_k: Whether the graph takes `seqlens_k`.
        total_sequence_length: The shape of that input. None if the graph does not take it.
        cache_type: The type of keys and values.
        memory: The memory of the device, for adapters, and for keys and values if past and present share buffers.
            None means the host. What is bound from the host is copied to a device when it is bound, so it is bound
            anew for each run.
        graph_capture: Whether the provider captures and replays runs. Every run then names its captured graph, or
            says that it has none (`forward_pass.run_options`).
    """

    batch: bool
    multi_token_append: bool
    buckets: tuple[int, ...]
    max_length: int | None
    past_present_share_buffer: bool
    one_logits_row: bool
    greedy_output: bool
    position_ids: bool
    seqlens_k: bool
    total_sequence_length: tuple[int, ...] | None
    cache_type: ElementType
    memory: DeviceMemory | None
    graph_capture: bool

    @classmethod
    def of(cls, config: DecoderConfig, placement: Placement) -> Capabilities:
        """Read how the graphs of a base can be run.

        Args:
            config: The `decoder.json` of the base.
            placement: The provider that runs it.

        Returns:
            The capabilities.

        Raises:
            ProviderError: `decoder.json` asks for something that this version does not know. The message names the
                field.
        """
        form, read = config.graph, _FormReader(config)
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
        if len(lengths) > 1:  # the whole cache is allocated at once, in the one length that the graph has
            read.refuse("shapes.max_length", list(lengths))
        max_length = lengths[0] if lengths else None
        total, provider = form.inputs.get("total_sequence_length"), placement.provider
        return cls(
            batch=not batch,
            multi_token_append=form.multi_token_append,
            buckets=tuple(size for size in buckets if max_length is None or size <= max_length),
            max_length=max_length,
            past_present_share_buffer=form.cache_update == "in_place",
            one_logits_row=bool(rows),
            greedy_output=form.greedy_output,
            position_ids="position_ids" in form.inputs,
            seqlens_k="seqlens_k" in form.inputs,
            total_sequence_length=None if total is None else (1,) * len(total),
            cache_type=CACHE_TYPES[form.cache_dtype],
            memory=DeviceMemory(provider.memory, placement.device_id) if provider.memory else None,
            graph_capture=placement.graph_capture,
        )

    @property
    def kv_cache_spec(self) -> KVCacheSpec:
        """The kind of buffers that keys and values need."""
        memory = self.memory if self.past_present_share_buffer else None
        return KVCacheSpec(self.cache_type, memory, contiguous_rows=self.batch)

    def chunks(
        self, count: int, *, length: int, capacity: int, logits_to_keep: int, max_chunk: int
    ) -> Iterator[Chunk]:
        """Cut tokens into the runs that append them to one row (chunked prefill).

        Args:
            count: How many tokens to read, at least one.
            length: How many tokens the row has.
            capacity: How many tokens the cache has room for, at least `length + count`.
            logits_to_keep: How many of the last tokens need logits.
            max_chunk: The most tokens of a run, if the graph takes any number. The last run may have more, if it
                gives all the logits.

        Yields:
            The chunks, in order.
        """
        # Where a run gives one row of logits, each of the last tokens has a run of its own.
        shared = count - logits_to_keep + 1 if self.one_logits_row else count
        cut = shared - max(1 if self.one_logits_row else logits_to_keep, max_chunk)
        begin = 0
        while begin < count:
            past, left = length + begin, shared - begin
            if left < 1 or (past > 0 and not self.multi_token_append):
                size = width = 1
            elif self.buckets:
                # Padding takes room as well, so near the end of the cache only small buckets fit.
                fitting = [bucket for bucket in self.buckets if past + bucket <= capacity]
                width = min((bucket for bucket in fitting if bucket >= left), default=max(fitting))
                size = min(left, width)
            else:
                size = width = min(max_chunk, cut - begin) if begin < cut else left
            end = begin + size
            yield Chunk(begin, end, width, max(end - max(begin, count - logits_to_keep), 1))
            begin = end


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
class _FormReader:
    """Reads the `graph` of a `decoder.json`, and refuses what only a later version understands."""

    config: DecoderConfig

    def dimensions(self, name: str, rank: int) -> list[tuple[int, ...]]:
        """List the sizes that each dimension of an input may have, 1 among them. An empty list means any size."""
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
        """Refuse an input that exists and has none of these shapes."""
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
