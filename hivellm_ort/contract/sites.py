"""Where a graph takes adapter weights, and where `weights.bin` holds the base weights."""

from __future__ import annotations

from dataclasses import dataclass

from hivellm_ort.contract.architecture import MAX_FEATURES
from hivellm_ort.contract.fields import AGAIN, text, whole
from hivellm_ort.jsonfiles.node import Node

__all__ = ["Part", "Site", "StoredWeights"]

_MAX_BITS = 32
_MAX_OFFSET = 1 << 50


@dataclass(frozen=True)
class Part:
    """One linear module inside a site: `module` is its path in the base model, `size` its output features."""

    module: str
    size: int
    bias: bool = False

    @classmethod
    def read(cls, node: Node) -> Part:
        """Read one item of `parts`.

        Raises:
            ManifestError: A field is missing, or of another type or range.
        """
        return cls(text(node, "module"), whole(node, "size", 1, MAX_FEATURES), bool(node.flag("bias")))


@dataclass(frozen=True)
class Site:
    """A place where the graph takes adapter weights: linear modules that share one input.

    With input x [T, K] for T = B * S tokens, and W, b the parts' weights and biases stacked along N, the graph
    computes `y = scale * (W x) + ((x lora_A) * lora_gate) lora_B + b + bias`. R may differ between
    sites.
    """

    name: str
    in_features: int
    parts: tuple[Part, ...]

    @classmethod
    def read(cls, node: Node) -> Site:
        """Read one item of `sites`.

        Raises:
            ManifestError: A field is missing, or of another type or range.
        """
        parts = tuple(map(Part.read, node.children("parts")))
        if not parts:
            node.fail("parts", f"missing or empty; {AGAIN}")
        if sum(part.size for part in parts) > MAX_FEATURES:
            node.fail("parts", f"more than {MAX_FEATURES} features in all; {AGAIN}")
        return cls(text(node, "name"), whole(node, "in_features", 1, MAX_FEATURES), parts)

    @property
    def out_features(self) -> int:
        """N: the sum of the parts' sizes."""
        return sum(part.size for part in self.parts)

    @property
    def modules(self) -> tuple[str, ...]:
        """Return the modules of a site by its name: one module, or query, key and value together."""
        parent, _, last = self.name.rpartition(".")
        names = ("q_proj", "k_proj", "v_proj") if last == "qkv_proj" and len(self.parts) > 1 else (last,)
        return tuple(f"{parent}.{name}" if parent else name for name in names)

    @property
    def bias(self) -> bool:
        """Whether any part has a bias in the base model. Only then `bias_input` exists."""
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
        """Graph input [T or 1, R or 1]: 1 for the rows of lora_A and lora_B that a token uses, else 0."""
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
        weight: Offset of the values. With `bits` 0 they are float32 [K, N]; with 8 or 4 they are uint8
            [N, ceil(K / block), block * bits / 8], the layout of `com.microsoft::MatMulNBits`; with 8 and
            `smoothing` they are int8 [K, N].
        bits: 0, 8 or 4.
        block: Values along K that share a scale; 0 where `bits` is.
        scales: Offset of float32 [N, ceil(K / block)]; [N] with `smoothing`.
        zero_points: Offset of uint8, packed as the values are, each row of blocks filled up to whole bytes; None
            where the zero is 2 ** (bits - 1).
        bias: Offset of float32 [N]; None where no part has a bias.
        smoothing: Offset of float32 [K], which multiplies the activations before they are quantised, so that
            W[n, k] = values[k, n] * scales[n] * smoothing[k]; None where they are not; since contract 1.4.
    """

    weight: int
    bits: int = 0
    block: int = 0
    scales: int | None = None
    zero_points: int | None = None
    bias: int | None = None
    smoothing: int | None = None

    @classmethod
    def read(cls, node: Node) -> StoredWeights:
        """Read one entry of `weights` or `half_weights`.

        Raises:
            ManifestError: A field is missing, or of another type or range.
        """
        bits = whole(node, "bits", 0, _MAX_BITS) if node.has("bits") else 0
        block = whole(node, "block", 0, MAX_FEATURES) if node.has("block") else 0
        others = {
            key: whole(node, key, 0, _MAX_OFFSET) if node.has(key) else None
            for key in ("scales", "zero_points", "bias", "smoothing")
        }
        return cls(whole(node, "weight", 0, _MAX_OFFSET), bits, block, **others)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Return all offsets."""
        others = (self.scales, self.zero_points, self.bias, self.smoothing)
        return (self.weight, *(place for place in others if place is not None))
