"""The decode loop with constraints, on a model and grammars made for the test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from looping import END_THINK, EOS, THINK, VOCABULARY, Letters, Model, generation, run, text_of

from hivellm_ort.decoding.bad_words import TokenTexts
from hivellm_ort.decoding.lookup import PromptLookup
from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.after_thinking import AfterThinking
from hivellm_ort.serving.generation import Generation


class Words:
    """A constraint: the answer is one of some words. It forces what all words left have in common."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.text = ""

    def _left(self, text: str) -> list[str]:
        return [word for word in self.words if word.startswith(text)]

    @property
    def complete(self) -> bool:
        """See `Constraint`."""
        return self.text in self.words

    @property
    def finished(self) -> bool:
        """See `Constraint`."""
        return self._left(self.text) == [self.text]

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """See `Constraint`."""
        allowed = {ord(word[len(self.text)]) for word in self._left(self.text) if word != self.text}
        allowed |= {EOS} if self.complete else set()
        if not allowed:
            raise GrammarError("dead end")
        masked = np.full_like(logits, -np.inf)
        masked[list(allowed)] = logits[list(allowed)]
        return masked

    def accept(self, token_id: int) -> None:
        """See `Constraint`."""
        if not self._left(self.text + chr(token_id)):
            raise GrammarError("not allowed")
        self.text += chr(token_id)

    def forced_tokens(self) -> list[int]:
        """See `Constraint`."""
        text = self.text
        while text not in self.words and len({word[: len(text) + 1] for word in self._left(text)}) == 1:
            text = self._left(text)[0][: len(text) + 1]
        return [ord(character) for character in text[len(self.text) :]]

    def validate_tokens(self, token_ids: Sequence[int]) -> int:
        """See `Constraint`."""
        count = 0
        while count < len(token_ids) and self._left(self.text + "".join(map(chr, token_ids[: count + 1]))):
            count += 1
        return count

    def rollback(self, count: int) -> None:
        """See `Constraint`."""
        self.text = self.text[: len(self.text) - count]


def test_forced_tokens_are_read_with_the_next_pass() -> None:
    """The prompt takes the forced beginning along, and each later pass the tokens forced before it."""
    model = Model(lambda text: "x" if text.endswith(":") else "\0")
    (steps,) = run(model, generation(constraint=Words("name: x, age: y", "name:x, age:z"), prompt="pp"))
    # Here the model is asked once whether a blank follows the first colon.
    assert "name:x, age:z" == text_of(steps)
    assert [2 + len("name:")] == model.passes
    assert [False] == [step.forced for step in steps if not step.forced]
    assert ("grammar", True) == (steps[-1].finish_reason, steps[-1].grammar_complete)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_rows_catch_up(rows: int) -> None:
    """Rows whose grammar forces tokens read them by themselves, and all go on as they would alone."""
    words = [Words("aXbYc", "aXbZc"), None, Words("longer than that 1", "longer than that 2"), Words("q")]
    likes = lambda text: {"b": "Z", "t": " ", " ": "2"}.get(text[-1], chr(ord(text[-1]) + 1))  # noqa: E731

    def ask() -> list[Generation]:
        constraints = [word and Words(*word.words) for word in words]
        return [generation(f"p{i}", constraint=one, max_tokens=20) for i, one in enumerate(constraints)]

    alone = [run(Model(likes), one)[0] for one in ask()]
    together = run(Model(likes, rows), *ask())
    assert [[step.token_id for step in steps] for steps in alone] == [
        [step.token_id for step in steps] for steps in together
    ]
    assert ["aXbZc", "longer than that 2", "q"] == [text_of(together[i]) for i in (0, 2, 3)]


@pytest.mark.parametrize(("forced", "own_passes"), [("1234", []), ("123456", [6])])
def test_few_forced_tokens_go_with_the_steps_of_all(forced: str, own_passes: list[int]) -> None:
    """Two rows read up to four forced tokens of one step by step; more of them take a pass of their own."""
    word = Words(f"a{forced}x", f"a{forced}y", "b")
    likes = lambda text: "y" if text.endswith(forced) else "a"  # noqa: E731
    model = Model(likes, 2)
    steps = run(model, generation("p", constraint=word), generation("p", max_tokens=20))
    assert (f"a{forced}y", "a" * 20) == (text_of(steps[0]), text_of(steps[1]))
    assert own_passes == [count for count in model.passes if count > 1]


def test_guesses_are_cut_to_what_the_grammar_allows() -> None:
    """A guess of the prompt is taken as far as it fits, and never leads out of the grammar."""
    model = Model(lambda text: "b" if text[-1] == "a" else "a")
    prompt = "ababababab"
    constraint = Words(*("abababX" + tail for tail in "ab"), *("ababaX" + tail for tail in "ab"))
    (steps,) = run(
        model, generation(prompt, constraint=constraint, lookup=PromptLookup(Letters().encode(prompt)))
    )
    assert text_of(steps) in constraint.words
    assert steps[-1].grammar_complete


def test_a_failing_request_fails_alone() -> None:
    """A grammar, a processor or a sampler that raises ends its request with the error; others finish."""

    def fail(token_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        if token_ids.size > 5:
            raise RuntimeError("mine")
        return logits

    class Broken(Words):
        def apply(self, logits: np.ndarray) -> np.ndarray:
            if len(self.text) > 2:
                raise GrammarError("a limit")
            return super().apply(logits)

    likes = lambda text: "\0" if len(text) > 12 else "z"  # noqa: E731
    steps = run(
        Model(likes, 3),
        generation(),
        generation(process=fail),
        generation(constraint=Broken("zzzza", "zzzzb", "z")),
    )
    assert ("zzzzzzzzzzzz", "eos", None) == (
        text_of(steps[0]),
        steps[0][-1].finish_reason,
        steps[0][-1].error,
    )
    assert "zzzzz" == text_of(steps[1])
    assert isinstance(steps[1][-1].error, RuntimeError)
    assert isinstance(steps[2][-1].error, GrammarError)
    assert [True, False, False] == [one[-1].finish_reason is not None for one in steps]


def after_thinking(constraint: Words) -> AfterThinking:
    """The constraint after a think block, with two line breaks between them."""
    texts = TokenTexts([chr(token).encode() if token > END_THINK else b"" for token in range(VOCABULARY)])
    return AfterThinking(
        constraint,
        open_id=THINK,
        close_id=END_THINK,
        gap=[10, 10],
        end_token_ids={EOS},
        forbid_spelled_tag=texts.forbid(["</think>"], prompt_length=0),
    )


def test_only_the_token_ends_the_think_block() -> None:
    """A tag spelled in other tokens would end the block for the text, and not for the grammar."""

    def likes(text: str) -> str:
        script = f"{chr(THINK)}h</think>"
        return script[len(text) - 1] if len(text) <= len(script) else chr(END_THINK)

    constraint = after_thinking(Words("aXa"))
    (steps,) = run(Model(likes), generation(constraint=constraint))
    said = "".join(chr(step.token_id) for step in steps)
    assert "</think>" not in said
    assert said.startswith(f"{chr(THINK)}h</think")
    assert said.endswith(f"{chr(END_THINK)}\n\naXa")
    for _ in said:
        constraint.rollback(1)
    assert not constraint.complete


def test_think_block_before_the_grammar() -> None:
    """Free text up to the closing tag, forced line breaks, then the grammar."""

    def likes(text: str) -> str:
        script = f"{chr(THINK)}hm{chr(END_THINK)}"
        return script[len(text) - 1] if len(text) <= len(script) else "b"

    def constraint() -> AfterThinking:
        return after_thinking(Words("aXa", "bYb"))

    (steps,) = run(Model(likes), generation(constraint=constraint()))
    said = [step.token_id for step in steps]
    assert [THINK, *map(ord, "hm"), END_THINK, 10, 10, *map(ord, "bYb")] == said
    assert [0, 0, 0, 0, 1, 1, 0, 1, 1] == [int(step.forced) for step in steps]
    state = constraint()
    guesses = ([*b"bY"], [THINK, *b"hm", END_THINK, *b"b"], [*b"bc"], [THINK, *b"h", EOS])
    assert [2, 4, 1, 2] == [state.validate_tokens(guess) for guess in guesses]
    for token in said:
        state.accept(token)
    assert state.finished
    for place in reversed(range(len(said))):
        state.rollback(1)
        left = constraint()
        for token in said[:place]:
            left.accept(token)
        assert (left.complete, left.finished, left.forced_tokens()) == (
            state.complete,
            state.finished,
            state.forced_tokens(),
        )
        assert (
            left.apply(np.zeros(VOCABULARY, np.float32)).tolist()
            == state.apply(np.zeros(VOCABULARY, np.float32)).tolist()
        )
