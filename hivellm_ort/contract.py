"""The contract between exporter and runtime: names in the graphs and the form of `decoder.json`.

Version 1.7. A change here changes `CONTRACT_VERSION`: the minor number for an addition that an older runtime
can ignore, the major number for anything else. `docs/contract.md` states it in full.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hivellm_ort.errors import ManifestError
from hivellm_ort.paths import StrPath

__all__ = [
    "ADAPTER_FILE",
    "ADAPTER_GRAPH",
    "BASE_GRAPH",
    "CONTRACT_VERSION",
    "DECODER_JSON",
    "GREEDY_OUTPUT",
    "LOGITS",
    "WEIGHTS_FILE",
    "Architecture",
    "DecoderConfig",
    "GraphForm",
    "Part",
    "Site",
    "StoredWeights",
    "past_names",
    "present_names",
]

_T = TypeVar("_T")

CONTRACT_VERSION = "1.7"
DECODER_JSON = "decoder.json"
BASE_GRAPH = "decoder.onnx"
ADAPTER_GRAPH = "decoder.adapters.onnx"
WEIGHTS_FILE = "weights.bin"
ADAPTER_FILE = "adapter.safetensors"
LOGITS = "logits"
GREEDY_OUTPUT = "token_ids"


def past_names(layer: int) -> tuple[str, str]:
    """Graph inputs that hold the key and value cache of `layer`, each [B, kv_heads, max_len, head_dim]."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Graph outputs bound to the same buffers as `past_names(layer)`."""
    return f"present.{layer}.key", f"present.{layer}.value"


@dataclass(frozen=True)
class Architecture:
    """The numbers of the base model that the runtime needs."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int


@dataclass(frozen=True)
class Part:
    """One linear module inside a site: `module` is its path in the base model, `size` its output features."""

    module: str
    size: int
    bias: bool = False


@dataclass(frozen=True)
class Site:
    """A place where the graph takes adapter weights: linear modules that share one input.

    With input x [T, K] for T = B * S tokens, and W, b the parts' weights and biases stacked along N, the graph
    computes `y = scale * (W x) + ((x lora_A) * lora_gate) lora_B + b + bias`. R is free, and may differ from site
    to site.
    """

    name: str
    in_features: int
    parts: tuple[Part, ...]

    @property
    def out_features(self) -> int:
        """N: the sum of the parts' sizes."""
        return sum(part.size for part in self.parts)

    @property
    def bias(self) -> bool:
        """Whether any part has a bias in the base model; only then `bias_input` exists."""
        return any(part.bias for part in self.parts)

    @property
    def inputs(self) -> tuple[str, ...]:
        """All graph inputs of the site."""
        return (self.lora_A, self.lora_B, self.gate, self.scale, *([self.bias_input] if self.bias else []))

    @property
    def lora_A(self) -> str:
        """Graph input [K, R]: the parts' A matrices side by side."""
        return f"{self.name}.lora_A"

    @property
    def lora_B(self) -> str:
        """Graph input [R, N]: the parts' B matrices on the diagonal, zeros elsewhere."""
        return f"{self.name}.lora_B"

    @property
    def gate(self) -> str:
        """Graph input [T or 1, R or 1]: which of the R rows a token uses; a single one where there is one adapter."""
        return f"{self.name}.lora_gate"

    @property
    def scale(self) -> str:
        """Graph input [T or 1, N]."""
        return f"{self.name}.scale"

    @property
    def bias_input(self) -> str:
        """Graph input [T or 1, N], added to the base's bias."""
        return f"{self.name}.bias"


@dataclass(frozen=True)
class StoredWeights:
    """Where `weights.bin` holds the weights of a site's parts, stacked along N; offsets in bytes.

    Attributes:
        weight: offset of the values. With `bits` 0 they are float32 [K, N]; with 8 or 4 they are uint8
            [N, ceil(K / block), block * bits / 8], the layout of `com.microsoft::MatMulNBits`; with 8 and
            `smoothing` they are int8 [K, N].
        bits: 0, 8 or 4.
        block: values along K that share a scale; 0 where `bits` is.
        scales: offset of float32 [N, ceil(K / block)]; [N] with `smoothing`.
        zero_points: offset of uint8, packed as the values are, each row of blocks filled up to whole bytes; None
            where the zero is 2 ** (bits - 1).
        bias: offset of float32 [N]; None where no part has a bias.
        smoothing: offset of float32 [K], which multiplies the activations before they are quantised, so that
            W[n, k] = values[k, n] * scales[n] * smoothing[k]; None where they are not; since contract 1.4.
    """

    weight: int
    bits: int = 0
    block: int = 0
    scales: int | None = None
    zero_points: int | None = None
    bias: int | None = None
    smoothing: int | None = None


@dataclass(frozen=True)
class GraphForm:
    """What a runtime must know to run the graphs of a bundle; the defaults are those of target `cpu`.

    Attributes:
        cache_dtype: type of `past_key_values.*` and `present.*`: `float32`, `float16`, `bfloat16`, or since contract
            1.6 `int8` with scales that the graph has.
        activation_dtype: float type that the graph computes in.
        adapter_dtype: float type of the adapter inputs. Logits are float32 everywhere.
        opsets: version of each operator domain; `""` is ai.onnx.
        inputs: every graph input but caches and adapters, with its shape: sizes, and names of free dimensions.
        shapes: the only values that a dimension may have; one that is absent here takes any. A dimension with a
            single value is that number in the graph, one with several keeps its name.
        multi_token_append: whether one row may take several tokens on a cache that is not empty.
        cache_update: `in_place`, `past_key_values.*` and `present.*` are the same buffers; or `new_tokens`,
            `present.*` holds the S new positions only, which the runtime copies into its own buffers.
        greedy_output: whether there is an output `token_ids` beside `logits`: int64 [rows], of each row the first of
            its greatest logits; since contract 1.5.
    """

    cache_dtype: str = "float32"
    activation_dtype: str = "float32"
    adapter_dtype: str = "float32"
    opsets: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"": 18, "com.microsoft": 1})
    inputs: Mapping[str, Sequence[str | int]] = dataclasses.field(
        default_factory=lambda: {
            "input_ids": ("batch_size", "sequence_length"),
            "seqlens_k": ("batch_size",),
            "total_sequence_length": (),
            "logits_rows": ("rows",),
        }
    )
    shapes: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    multi_token_append: bool = True
    cache_update: str = "in_place"
    greedy_output: bool = False


@dataclass(frozen=True)
class DecoderConfig:
    """`decoder.json`: what a base bundle is.

    Attributes:
        name: the base model's short name.
        architecture: its numbers.
        precision: `fp32`, `fp16`, `bf16`, `int8`, `w8a8` or `int4`.
        target: what the graphs were lowered for: `cpu`, `cuda`, `dml` or `portable`.
        sites: where adapters attach; empty in a merged bundle, which has no adapter graph.
        source_sha256: digest of the weights the bundle was made from; an adapter prepared from the same weights
            fits every bundle of that source.
        merged: digest of the adapter folded into the weights, or None.
        files: every other file of the bundle with its `size` in bytes and `sha256`.
        weights: for every site, where its weights are; absent before contract 1.2, and empty where they are not
            float32.
        half_weights: the same where floats are of `graph.activation_dtype`, of two bytes each; since contract 1.3.
        embeddings: SHA-256 of the embedding and the LM head as little-endian float32 [vocab_size, hidden_size], by
            their Hugging Face names, before they were quantised: an adapter that stores them too is compared with
            it; since contract 1.7.
        graph: how the graphs are to be run; absent before contract 1.3, then it is that of `cpu`.
        contract_version: version of this contract.
        sha256: digest of the file it was read from, the bundle's name in the store; not part of the file.
    """

    name: str
    architecture: Architecture
    precision: str
    target: str
    sites: tuple[Site, ...]
    source_sha256: str
    merged: str | None = None
    files: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, StoredWeights] = dataclasses.field(default_factory=dict)
    half_weights: Mapping[str, StoredWeights] = dataclasses.field(default_factory=dict)
    embeddings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    graph: GraphForm = dataclasses.field(default_factory=GraphForm)
    contract_version: str = CONTRACT_VERSION
    sha256: str = ""

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its answer: what the model can, and what its graphs have room for."""
        limit, shapes = self.architecture.max_position_embeddings, self.graph.shapes
        # The engine says what is wrong with a form; until then it may be anything.
        sizes = shapes.get("max_length") if isinstance(shapes, Mapping) else None
        fixed = [size for size in sizes if isinstance(size, int)] if isinstance(sizes, list | tuple) else []
        return min([limit, *fixed]) if isinstance(limit, int) else limit

    def to_bytes(self) -> bytes:
        """The file's content: sorted keys, two spaces, a final newline."""
        document = dataclasses.asdict(self)
        del document["sha256"]
        return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_file(cls, path: StrPath) -> DecoderConfig:
        """Read `decoder.json`; keys it does not know, as a later minor version may have, are passed over.

        Raises:
            ManifestError: the file is missing, not JSON, of a newer contract, or lacks a field.
        """
        path = Path(path)
        where = path.name
        try:
            content = path.read_bytes()
            data = json.loads(content)
        except FileNotFoundError:
            raise ManifestError(f"{where} is missing: this folder is not a base bundle") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ManifestError(f"{where} cannot be read as JSON: {error}") from error
        version = data.get("contract_version") if isinstance(data, dict) else None
        if not isinstance(version, str) or version.split(".")[0] != CONTRACT_VERSION.split(".")[0]:
            raise ManifestError(
                f"{where}: contract_version is {version!r}, this runtime reads {CONTRACT_VERSION}: "
                "export again with a matching hivellm-ort"
            )
        try:
            sites = tuple(
                _known(Site, {**site, "parts": tuple(_known(Part, part) for part in site["parts"])})
                for site in data["sites"]
            )
            stored = {
                key: {name: _known(StoredWeights, place) for name, place in data.get(key, {}).items()}
                for key in ("weights", "half_weights")
            }
            fields = {
                "sites": sites,
                **stored,
                "architecture": _known(Architecture, data["architecture"]),
                "graph": _known(GraphForm, data.get("graph", {})),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            return _known(cls, {**data, **fields})
        except (KeyError, TypeError, AttributeError) as error:
            raise ManifestError(f"{where}: a field is missing or malformed ({error})") from error


def _known(cls: type[_T], values: Mapping[str, Any]) -> _T:
    """An instance of the dataclass `cls` from those of `values` that it has fields for."""
    names = _field_names(cls)  # type: ignore[arg-type]
    return cls(**{name: value for name, value in values.items() if name in names})


@functools.cache
def _field_names(cls: type) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(cls))
