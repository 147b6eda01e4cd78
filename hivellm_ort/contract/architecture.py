"""Dimensions of a base model."""

from __future__ import annotations

from dataclasses import dataclass

from hivellm_ort.contract.fields import AGAIN, text, whole
from hivellm_ort.jsonfiles.node import Node

__all__ = ["MAX_FEATURES", "MAX_LAYERS", "Architecture"]

MAX_FEATURES = 1 << 24
"""Most features of anything that a projection takes or gives."""

MAX_LAYERS = 1 << 12
"""Most layers."""

_MAX_HEADS = 1 << 14
_MAX_HEAD_DIM = 1 << 14
_MAX_VOCABULARY = 1 << 22
_MAX_POSITIONS = 1 << 27


@dataclass(frozen=True)
class Architecture:
    """Dimensions of the base model that the runtime needs."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int

    def features(self, module: str) -> tuple[int, int] | None:
        """Return input and output features of a linear module by the last part of its name; None if unknown."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        known = {
            "q_proj": (hidden, queries),
            "k_proj": (hidden, keys),
            "v_proj": (hidden, keys),
            "o_proj": (queries, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }
        return known.get(module.rpartition(".")[2])

    @classmethod
    def read(cls, node: Node) -> Architecture:
        """Read `architecture`.

        Raises:
            ManifestError: A number is missing or out of range.
        """
        heads = whole(node, "num_attention_heads", 1, _MAX_HEADS)
        shared = whole(node, "num_key_value_heads", 1, heads)
        if heads % shared:
            node.fail("num_key_value_heads", f"is {shared}, which does not divide {heads} heads; {AGAIN}")
        return cls(
            model_type=text(node, "model_type"),
            hidden_size=whole(node, "hidden_size", 1, MAX_FEATURES),
            intermediate_size=whole(node, "intermediate_size", 1, MAX_FEATURES),
            num_hidden_layers=whole(node, "num_hidden_layers", 1, MAX_LAYERS),
            num_attention_heads=heads,
            num_key_value_heads=shared,
            head_dim=whole(node, "head_dim", 1, _MAX_HEAD_DIM),
            vocab_size=whole(node, "vocab_size", 2, _MAX_VOCABULARY),
            max_position_embeddings=whole(node, "max_position_embeddings", 1, _MAX_POSITIONS),
        )
