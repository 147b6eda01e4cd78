"""Compare answers of a bundle with those of transformers: logits, and keys and values of each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import DynamicCache

from hivellm_ort.contract import DecoderConfig, past_names
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.engine.ort_values import CACHE_TYPES
from hivellm_ort.engine.session import Engine

__all__ = ["PROMPTS", "Answers", "Pass", "bundle_pass", "prompts", "reference_pass"]

Array = NDArray[np.float32]

PROMPTS = (
    "The committee published its report on water quality in 1998; rivers in the north were cleaner than anyone had "
    "expected. What surprised the members most was how quickly fish returned once the mills had closed, and how "
    "little it had cost the towns along the banks.",
    "def median(values: list[float]) -> float:\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n"
    "    if len(ordered) % 2:\n        return ordered[middle]\n"
    "    return (ordered[middle - 1] + ordered[middle]) / 2\n\nSELECT name, COUNT(*) AS orders FROM users "
    "WHERE created_at >= '2024-01-01' GROUP BY name HAVING COUNT(*) > 3;",
    "¿Cuántos pedidos hubo en marzo? Всего было сто двадцать три заказа. 三月份一共有一百二十三个订单。",  # noqa: RUF001
)
"""English, code, and other scripts."""

_LONGEST = 160  # tokens of a prompt
_STEPS = 8  # the last tokens are read one by one, as in an answer


@dataclass(frozen=True)
class Pass:
    """Outputs of a model for the tokens of one prompt.

    Attributes:
        logits: float32 [n, vocab].
        cache: Keys and values in turn, float32 [2 * layers, kv_heads, n, head_dim]; None if unknown.
    """

    logits: Array
    cache: Array | None


class Answers:
    """Sums the differences of one bundle from its reference."""

    def __init__(self) -> None:
        self.tokens = 0
        self._kl = self._same = 0.0
        self._errors: list[NDArray[np.float64]] = []

    def add(self, expected: Pass, actual: Pass) -> None:
        """Add the positions of one prompt."""
        wanted = torch.log_softmax(torch.from_numpy(expected.logits).double(), dim=-1)
        given = torch.log_softmax(torch.from_numpy(actual.logits).double(), dim=-1)
        self._kl += float((wanted.exp() * (wanted - given)).sum())
        self._same += float((wanted.argmax(-1) == given.argmax(-1)).sum())
        self.tokens += len(expected.logits)
        if expected.cache is not None and actual.cache is not None:
            self._errors.append(_relative(expected.cache, actual.cache))

    @property
    def kl(self) -> float:
        """Kullback-Leibler divergence in nats per token."""
        return max(self._kl / self.tokens, 0.0)

    @property
    def agreement(self) -> float:
        """Share of positions where both prefer the same token."""
        return self._same / self.tokens

    def first_layer(self, error: float) -> str | None:
        """Describe the first layer whose keys or values differ by more than `error`; None if there is none."""
        for index, values in enumerate(self._means()):
            wrong = [values[0] > error, values[1] > error]
            if any(wrong):
                return f"{_layer(index, values)}, which is more than {error:g}{_hint(index, values, error)}"
        return None

    def largest(self, error: float) -> str:
        """Say where to look if answers differ, but no layer by more than `error`."""
        means = self._means()
        if not len(means):
            return "keys and values of the layers are not known"
        if means.max() < error / 10:
            return "keys and values of all layers agree, so look at what follows them, up to lm_head"
        index = int(means.max(axis=1).argmax())
        return f"keys and values differ most in {_layer(index, means[index])}"

    def _means(self) -> NDArray[np.float64]:
        """Relative errors of keys and values by layer, as mean over the prompts: [layers, 2]."""
        return np.mean(self._errors, axis=0) if self._errors else np.empty((0, 2))


def _layer(index: int, errors: NDArray[np.float64]) -> str:
    return f"model.layers.{index} (keys by {errors[0]:.2%}, values by {errors[1]:.2%})"


def _hint(index: int, errors: NDArray[np.float64], bound: float) -> str:
    if index == 0 and errors[1] <= bound:
        return ": only keys differ in the first layer, so look at the rotary embedding and the norm of keys"
    return ""


def prompts(
    encode: Callable[[str], list[int]], config: DecoderConfig, texts: Sequence[str]
) -> list[list[int]]:
    """Token ids of texts, cut to the context of the bundle."""
    limit = min(config.context, _LONGEST)
    found = [[token for token in encode(text) if token < config.architecture.vocab_size] for text in texts]
    return [token_ids[:limit] for token_ids in found if token_ids]


def reference_pass(model: nn.Module, token_ids: Sequence[int]) -> Pass:
    """Run a model of transformers or PEFT."""
    cache = DynamicCache()
    with torch.no_grad():
        output = model(input_ids=torch.tensor([list(token_ids)]), past_key_values=cache, use_cache=True)
    pairs = [part[0] for layer in cache.layers for part in (layer.keys, layer.values)]
    return Pass(output.logits[0].float().numpy(), torch.stack(pairs).float().numpy())


def bundle_pass(
    engine: Engine,
    adapter: BoundAdapter | None,
    token_ids: Sequence[int],
    scales: Callable[[str], Array | None],
) -> Pass:
    """Run a bundle: most tokens in one run, and the last ones each in their own.

    Args:
        engine: The engine of the bundle.
        adapter: Adapter to bind; None for the graph without adapters.
        token_ids: The prompt.
        scales: Gives the scales of keys or values in 8 bits by graph input, [kv_heads * head_dim]; None for floats.
    """
    config, count = engine.config, len(token_ids)
    decoder = engine.decoder(adapters=adapter is not None)
    decoder.start(0, adapter, count)
    begin = max(count - _STEPS, 1)
    logits = [decoder.append(0, token_ids[:begin], begin).copy()]
    logits += [decoder.step([token]).copy() for token in token_ids[begin:]]
    decoder.save_prefix(0, token_ids)
    saved, length = engine.prefixes.find("" if adapter is None else adapter.digest, token_ids)
    engine.prefixes.clear()
    cache = None
    if saved is not None and length == count:
        cache = CACHE_TYPES[config.graph.cache_dtype].widen(saved.keys_values)
        numbers = config.architecture
        names = [name for layer in range(numbers.num_hidden_layers) for name in past_names(layer)]
        for values, name in zip(cache, names, strict=True):
            scale = scales(name)
            if scale is not None:
                values *= scale.reshape(numbers.num_key_value_heads, 1, numbers.head_dim)
    return Pass(np.concatenate(logits), cache)


def _relative(expected: Array, actual: Array) -> NDArray[np.float64]:
    """Relative errors of keys and values by layer, [layers, 2]."""
    axes = (1, 2, 3)
    difference = np.square(actual - expected, dtype=np.float64).sum(axes)
    length = np.square(expected, dtype=np.float64).sum(axes)
    return np.sqrt(difference / np.maximum(length, 1e-30)).reshape(-1, 2)
