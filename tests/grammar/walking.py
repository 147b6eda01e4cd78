"""A small vocabulary, and answers made of tokens drawn at random among those that a constraint allows."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from hivellm_ort.grammar.compiler import GrammarCompiler
from hivellm_ort.grammar.constraint import Constraint
from hivellm_ort.grammar.grammar import Grammar

PADDING = 40  # rows of the logits that no token has
_LINES = [
    '{"name": "Ada", "age": 36, "tags": ["a", "b"], "nested": {"value": null, "flag": true}}',
    '{"tool": "search", "arguments": {"path": "/src/main.py", "count": -12.5e3}}, false, [[1, 2], [3]]',
    "SELECT name, age FROM users WHERE registered >= '2024-01-01' ORDER BY age;",
    "<think>\nnaïve Größe, 東京, 🙂\n</think> system user assistant",
]
_CLOSING = set('"}],: \n')


@cache
def small_tokenizer() -> Tokenizer:
    """Return a byte-level BPE as Qwen has it, with tokens that are special and tags that are not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=520,
        special_tokens=["<|endoftext|>", "<|im_end|>", "[INST]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_LINES * 3, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False) for tag in ("<think>", "</think>")])
    return tokenizer


@cache
def small_compiler() -> GrammarCompiler:
    """Return the compiler of grammars for that tokenizer; it caches what it compiles."""
    tokenizer = small_tokenizer()
    return GrammarCompiler(tokenizer.to_str, width())


def width() -> int:
    """Return the width of the logits, which is more than the number of tokens."""
    count: int = small_tokenizer().get_vocab_size() + PADDING
    return count


def token(text: str) -> int:
    """Return the id of the one token that is written so."""
    (found,) = ids(text)
    return found


def ids(text: str) -> list[int]:
    """Return how the tokenizer writes a text."""
    found: list[int] = small_tokenizer().encode(text, add_special_tokens=False).ids
    return found


def text_of(token_ids: list[int]) -> str:
    """Return the text of tokens, special ones included."""
    text: str = small_tokenizer().decode(token_ids, skip_special_tokens=False)
    return text


END = token("<|im_end|>")


def compiled(grammar: Grammar, **options: object) -> Constraint:
    """Return the constraint of an answer that `END` ends."""
    return small_compiler().compile(grammar, **{"end_token_ids": [END], **options})  # type: ignore[arg-type]


def allowed(constraint: Constraint, size: int | None = None) -> list[int]:
    """Return the tokens that may come next."""
    logits = np.zeros(size or width(), np.float32)
    found: list[int] = np.flatnonzero(constraint.apply(logits) == 0).tolist()
    return found


def answer(constraint: Constraint, rng: random.Random, length: int = 25) -> list[int]:
    """Return the tokens of a complete answer, its end token not among them.

    Up to `length` every allowed token is as likely as another; after that the answer ends as soon as it may.
    """
    taken: list[int] = []
    while True:
        choices = allowed(constraint)
        assert (constraint.finished or choices == [END]) == (choices == [END])
        assert constraint.complete == (END in choices)
        if END in choices and (constraint.finished or len(taken) >= length or rng.random() < 0.1):
            return taken
        choices = [choice for choice in choices if choice != END]
        if not choices:
            return taken
        if len(taken) >= length:
            choices = [one for one in choices if text_of([one])[:1] in _CLOSING] or choices
        assert len(taken) < 40 * length, f"no end in sight: {text_of(taken)!r}"
        taken.append(rng.choice(choices))
        constraint.accept(taken[-1])
