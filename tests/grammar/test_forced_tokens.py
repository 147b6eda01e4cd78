"""Forced tokens are those that the tokenizer itself writes, so that a model reads what it would have written.

With `HIVELLM_TEST_TOKENIZERS` (see `tests/text/test_real_tokenizers.py`) also for the tokenizers of published models.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tokenizers import Tokenizer
from walking import small_tokenizer

from hivellm_ort.grammar.compiler import GrammarCompiler
from hivellm_ort.grammar.grammar import Grammar

_ROOT = os.environ.get("HIVELLM_TEST_TOKENIZERS")
_FOLDERS = sorted(path.parent for path in Path(_ROOT).glob("*/tokenizer.json")) if _ROOT else []

PLAN = {
    "type": "object",
    "properties": {
        "steps": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "tool": {"enum": ["search", "open_file", "run"]},
                    "arguments": {
                        "type": "object",
                        "properties": {"path": {"type": "string"}, "count": {"type": "number"}},
                        "required": ["path", "count"],
                        "additionalProperties": False,
                    },
                },
                "required": ["tool", "arguments"],
                "additionalProperties": False,
            },
        },
        "long_key-name": {"type": "boolean"},
    },
    "required": ["steps", "long_key-name"],
    "additionalProperties": False,
}
PIECES = [
    "SELECT",
    " name",
    " FROM ",
    "users",
    "_",
    "(",
    ")",
    '"',
    "é",
    "東",
    " ",
    "  ",
    "\n",
    "12",
    "=",
    "s",
    "ing",
]


class Setting(NamedTuple):
    """A tokenizer and its compiler."""

    tokenizer: Tokenizer
    compiler: GrammarCompiler
    width: int


def _setting(tokenizer: Tokenizer, text: str) -> Setting:
    width = tokenizer.get_vocab_size() + 5
    return Setting(tokenizer, GrammarCompiler(lambda: text, width), width)


@pytest.fixture(
    scope="module", params=[None, *_FOLDERS], ids=lambda folder: folder.name if folder else "small"
)
def setting(request: pytest.FixtureRequest) -> Setting:
    """Return the small tokenizer, or one of a published model."""
    if request.param is None:
        return _setting(small_tokenizer(), small_tokenizer().to_str())
    text = (request.param / "tokenizer.json").read_text(encoding="utf-8")
    return _setting(Tokenizer.from_str(text), text)


def own_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return how the tokenizer writes a text behind the line of a prompt, where none adds a space of its own."""
    line: list[int] = tokenizer.encode("\n", add_special_tokens=False).ids
    ids: list[int] = tokenizer.encode("\n" + text, add_special_tokens=False).ids
    assert line == ids[: len(line)], "the line and the text share a token: begin the text otherwise"
    return ids[len(line) :]


def follow(setting: Setting, grammar: Grammar, text: str) -> tuple[int, int]:
    """Answer as a model that wants to write `text` in its own tokens does.

    Returns:
        How many tokens were forced, and how many there were.
    """
    constraint = setting.compiler.compile(grammar, end_token_ids=[])
    own, place, forced_count = own_tokens(setting.tokenizer, text), 0, 0
    logits = np.zeros(setting.width, np.float32)
    while place < len(own):
        forced = constraint.forced_tokens()
        assert own[place : place + len(forced)] == forced, (text, place)
        if not forced:
            assert constraint.apply(logits)[own[place]] == 0, (text, place)
        for token in forced or [own[place]]:
            constraint.accept(token)
        place += max(1, len(forced))
        forced_count += len(forced)
    assert constraint.complete
    return forced_count, len(own)


def _plans(rng: random.Random) -> Iterator[dict[str, Any]]:
    while True:
        steps = [
            {
                "tool": rng.choice(["search", "open_file", "run"]),
                "arguments": {
                    "path": "".join(rng.choices(["/a", "b.py", "C:\\x", "  ", '"', "é", "", "<x>"], k=3)),
                    "count": rng.choice([0, 1, -3, 100, 12345678901, 2.5]),
                },
            }
            for _ in range(rng.randint(0, 3))
        ]
        yield {"steps": steps, "long_key-name": rng.random() < 0.5}


def test_plans_under_a_schema_with_fixed_keys(setting: Setting) -> None:
    """The tokenizer's own tokens are never forbidden, every forced one is its own, and a third of all is forced."""
    rng, counts = random.Random(0), np.zeros(2, int)
    for _, plan in zip(range(25), _plans(rng), strict=False):
        text = json.dumps(plan, ensure_ascii=False)
        counts += follow(setting, Grammar.json_schema(PLAN), text)
    assert counts[0] > 0.3 * counts[1]


@pytest.mark.parametrize("seed", range(25))
def test_choices_with_common_beginnings(setting: Setting, seed: int) -> None:
    """What all options begin with is forced, but for what the tokenizer would join with what differs."""
    rng = random.Random(seed)
    beginning = "".join(rng.choices(PIECES, k=rng.randint(0, 6)))
    endings = ["".join(rng.choices(PIECES, k=rng.randint(0, 4))) for _ in range(rng.randint(1, 4))]
    options = ["x" + beginning + ending for ending in endings]
    for option in options:
        follow(setting, Grammar.choice(options), option)


@pytest.mark.parametrize(
    "text", ["<think>", "a<think>b</think>", "x <|im_end|> y", "<s>[INST] </s>", "<eos>"]
)
def test_tags_are_spelt_out(setting: Setting, text: str) -> None:
    """Text that reads like a special token is forced in other tokens than that one."""
    constraint = setting.compiler.compile(Grammar.choice([text]), end_token_ids=[])
    added = setting.tokenizer.get_added_tokens_decoder()
    special = {token_id for token_id, token in added.items() if token.special or token.content[0] == "<"}
    taken: list[int] = []
    while not constraint.finished:
        scores = constraint.apply(np.zeros(setting.width, np.float32))
        for token in constraint.forced_tokens() or [int(scores.argmax())]:
            constraint.accept(token)
            taken.append(token)
    assert not special & set(taken)
    assert text == setting.tokenizer.decode(taken, skip_special_tokens=False)
