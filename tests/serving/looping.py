"""The decode loop on a model made for tests, whose tokens are ASCII characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hivellm_ort.decoding.answer import AnswerText
from hivellm_ort.decoding.params import SamplingParams
from hivellm_ort.decoding.stops import StopMatcher
from hivellm_ort.serving.generation import Generation, Step
from hivellm_ort.serving.loop import Loop
from hivellm_ort.serving.request import GenerationRequest
from hivellm_ort.text.detokenizer import IncrementalDetokenizer

EOS, THINK, END_THINK, VOCABULARY = 0, 1, 2, 128


class Letters:
    """A tokenizer whose tokens are ASCII characters."""

    vocab_size = VOCABULARY

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return [ord(character) for character in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """See `Tokenizer`."""
        return "".join(map(chr, token_ids))

    def id_to_token(self, token_id: int) -> str | None:
        """See `Tokenizer`."""
        return chr(token_id)

    def is_special(self, token_id: int) -> bool:
        """See `Tokenizer`."""
        return token_id < 3

    def is_byte(self, token_id: int) -> bool:
        """See `Tokenizer`."""
        return False


class Model:
    """A model that likes some token best after every text, counts what it reads, and notes what it is asked for.

    Args:
        likes: the token after a text.
        rows: how many.
        chooses: whether it gives tokens where they do; else logits always.
    """

    swap_seconds = 0.0
    tokens_read = 0

    def __init__(self, likes: Callable[[str], str], rows: int = 1, *, chooses: bool = False) -> None:
        self.likes = likes
        self.rows = rows
        self.chooses = chooses
        self.texts = [""] * rows
        self.passes: list[int] = []
        self.greedy: list[bool] = []

    def _logits(self, text: str) -> np.ndarray:
        logits = -np.arange(VOCABULARY, dtype=np.float32)
        logits[ord(self.likes(text))] = 10
        return logits

    def start(self, row: int, adapter: Any, capacity: int, token_ids: Sequence[int]) -> int:
        """See `Model`."""
        self.texts[row] = ""
        return 0

    def _scores(self, texts: Sequence[str], greedy: bool) -> np.ndarray:
        self.greedy.append(greedy)
        logits = np.stack([self._logits(text) for text in texts])
        return logits.argmax(axis=-1) if greedy and self.chooses else logits

    def append(
        self, row: int, token_ids: Sequence[int], logits_to_keep: int = 1, *, greedy: bool = False
    ) -> np.ndarray:
        """See `Model`."""
        self.passes.append(len(token_ids))
        texts = []
        for token in token_ids:
            self.texts[row] += chr(token)
            texts.append(self.texts[row])
        return self._scores(texts[-logits_to_keep:], greedy)

    def step(self, token_ids: Sequence[int], *, greedy: bool = False) -> np.ndarray:
        """See `Model`."""
        self.passes.append(1)
        for row, token in enumerate(token_ids):
            self.texts[row] += chr(token)
        return self._scores(self.texts[: len(token_ids)], greedy)

    def truncate(self, row: int, length: int) -> None:
        """See `Model`."""
        self.texts[row] = self.texts[row][:length]

    def move(self, source: int, target: int) -> None:
        """See `Model`."""
        self.texts[target] = self.texts[source]

    def save_prefix(self, row: int, token_ids: Sequence[int]) -> None:
        """What it has read is the beginning of what the loop says it has."""
        text = "".join(map(chr, token_ids))
        assert text.startswith(self.texts[row])


def generation(prompt: str = "p", **options: Any) -> Generation:
    """A generation that ends at `EOS`, greedy unless `sampling` says otherwise."""
    request = GenerationRequest(
        prompt_ids=Letters().encode(prompt),
        max_tokens=options.pop("max_tokens", 50),
        eos_token_ids={EOS},
        sampling=options.pop("sampling", SamplingParams()),
        closing_token_ids=options.pop("closing_token_ids", ()),
    )
    answer = AnswerText(IncrementalDetokenizer(Letters()), StopMatcher(options.pop("stops", ())))
    return Generation(request, answer=answer, **options)


def run(model: Model, *generations: Generation) -> list[list[Step]]:
    """The steps of each generation."""
    steps: dict[Generation, list[Step]] = {one: [] for one in generations}
    loop, waiting = Loop(model), list(generations)
    while waiting or loop.active:
        while waiting and loop.active < model.rows:
            for one, step in loop.begin(waiting.pop(0)):
                steps[one].append(step)
        for one, step in loop.step():
            steps[one].append(step)
    return list(steps.values())


def text_of(steps: Sequence[Step]) -> str:
    """What the steps say."""
    return "".join(step.text for step in steps)
