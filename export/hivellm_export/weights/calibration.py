"""Measure how large a model's values become, on a short text of many kinds."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import DynamicCache

from hivellm_export.base_model import BaseModel
from hivellm_ort.contract import past_names

__all__ = ["activation_ranges", "cache_scales"]

# Room above the measured values, for other texts and for adapters. Larger values are clipped.
_KEY_ROOM, _VALUE_ROOM = 1.5, 2.0
_LEAST = 0.01  # of the largest value of a head: a channel that is zero for this text may not be for others

_TEXT = """\
SELECT u.name, COUNT(*) AS orders FROM users u JOIN orders o ON o.user_id = u.id
WHERE u.created_at >= '2024-01-01' GROUP BY u.name HAVING COUNT(*) > 3 ORDER BY orders DESC LIMIT 10;
{"query": {"bool": {"must": [{"match": {"title": "kettle"}}], "filter": [{"range": {"price": {"gte": 10}}}]}}}
MATCH (a:Person)-[:KNOWS]->(b:Person) WHERE a.age > 30 RETURN b.name, count(*) AS friends
def fibonacci(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a
List all users who registered last year, with the city they live in. The committee published its report on water
quality in 1998; rivers in the north were cleaner than anyone had expected. ¿Cuántos pedidos hubo en marzo?
- name: build
  run: |
    pip install . && pytest -q
<table><tr><td class="price">12.50 €</td></tr></table>
"""


def activation_ranges(base: BaseModel) -> dict[str, NDArray[np.float32]]:
    """The largest magnitude of each input of each projection in the decoder layers, float32 [K] by module."""
    ranges: dict[str, torch.Tensor] = {}

    def note(name: str, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        largest = inputs[0].reshape(-1, inputs[0].shape[-1]).abs().amax(dim=0)
        ranges[name] = torch.maximum(ranges[name], largest) if name in ranges else largest

    hooks = [
        module.register_forward_pre_hook(functools.partial(note, name))
        for name, module in base.model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    ]
    try:
        with torch.no_grad():
            base.model(_token_ids(base), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: largest.numpy() for name, largest in ranges.items()}


def cache_scales(base: BaseModel) -> dict[str, NDArray[np.float32]]:
    """Scales for keys and values in 8 bits, float32 [kv_heads, head_dim] by graph input.

    The channels of a key are rotated in pairs, by an angle that depends on the position. So both channels of a pair
    have one scale: that of the length of the pair, which a rotation does not change.
    """
    cache = DynamicCache()
    with torch.no_grad():
        base.model(_token_ids(base), past_key_values=cache, use_cache=True)
    scales = {}
    for index, layer in enumerate(cache.layers):
        first, second = layer.keys.chunk(2, dim=-1)
        lengths = torch.hypot(first, second)
        for name, values, room in zip(
            past_names(index),
            (torch.cat((lengths, lengths), dim=-1), layer.values.abs()),
            (_KEY_ROOM, _VALUE_ROOM),
            strict=True,
        ):
            largest = values[0].amax(dim=1)
            floor = largest.amax(dim=-1, keepdim=True) * _LEAST
            scales[name] = (torch.maximum(largest, floor).clamp(min=1e-6) * (room / 127)).numpy()
    return scales


def _token_ids(base: BaseModel) -> torch.Tensor:
    token_ids: torch.Tensor = base.tokenizer(_TEXT, return_tensors="pt", add_special_tokens=False)[
        "input_ids"
    ]
    return token_ids[:, : base.architecture.max_position_embeddings]
