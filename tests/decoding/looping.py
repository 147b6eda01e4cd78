"""The decode loop on a model made for tests, whose tokens are ASCII characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hivellm_ort.decoding.answer import AnswerText
from hivellm_ort.decoding.loop import Loop, Request, Step
from hivellm_ort.decoding.params import SamplingParams
from hivellm_ort.decoding.sampler import make_sampler
from hivellm_ort.decoding.stops import StopMatcher
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
        self, row: int, token_ids: Sequence[int], wanted: int = 1, *, greedy: bool = False
    ) -> np.ndarray:
        """See `Model`."""
        self.passes.append(len(token_ids))
        texts = []
        for token in token_ids:
            self.texts[row] += chr(token)
            texts.append(self.texts[row])
        return self._scores(texts[-wanted:], greedy)

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

    def keep(self, row: int, token_ids: Sequence[int]) -> None:
        """What it has read is the beginning of what the loop says it has."""
        text = "".join(map(chr, token_ids))
        assert text.startswith(self.texts[row])


def request(prompt: str = "p", **options: Any) -> Request:
    """A request that ends at `EOS`, greedy unless `sampling` says otherwise."""
    stops = options.pop("stops", ())
    sampling = options.pop("sampling", SamplingParams())
    fields = {"max_tokens": 50, "eos_token_ids": {EOS}, "adapter": None, **options}
    return Request(
        prompt_ids=Letters().encode(prompt),
        sampler=make_sampler(sampling),
        answer=AnswerText(IncrementalDetokenizer(Letters()), StopMatcher(stops)),
        **fields,
    )


def run(model: Model, *requests: Request) -> list[list[Step]]:
    """The steps of each request."""
    steps: list[list[Step]] = [[] for _ in requests]
    loop, waiting = Loop(model), list(enumerate(requests))
    while waiting or loop.active:
        while waiting and loop.active < model.rows:
            for number, step in loop.begin(*waiting.pop(0)):
                steps[number].append(step)
        for number, step in loop.step():
            steps[number].append(step)
    return steps


def text_of(steps: Sequence[Step]) -> str:
    """What the steps say."""
    return "".join(step.text for step in steps)
