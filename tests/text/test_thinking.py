"""Reasoning separated from the answer."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizer_samples import byte_level_tokenizer

from hivellm_ort.text.detokenizer import IncrementalDetokenizer
from hivellm_ort.text.reasoning import Part, ReasoningParser, ReasoningSplitter, opens_thinking
from hivellm_ort.text.tokenizer import TextTokenizer

ANSWERS = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<think", "</", "<", ">", "think>", "\n", "\n\n", " ", "a", "SELECT"]
    )
).map("".join)


def split(answer: str, inside: bool) -> tuple[str, str]:
    """Return reasoning and text of a whole answer, in the words of the documentation."""
    opening = re.match(r"\s*<think>", answer)
    if opening is None and not inside:
        return "", answer
    body = answer[opening.end() :] if opening else answer
    reasoning, _, text = body.partition("</think>")
    return reasoning.strip("\n"), text.lstrip("\n")


def pieces_of(pieces: list[str], *, inside: bool = False) -> list[tuple[str, str]]:
    """Return what each push, and the flush, gives."""
    splitter = ReasoningSplitter(inside=inside)
    return [*(splitter.push(piece) for piece in pieces), splitter.flush()]


def joined(pieces: list[tuple[str, str]]) -> tuple[str, str]:
    """Return the whole reasoning and the whole text."""
    return "".join(piece[0] for piece in pieces), "".join(piece[1] for piece in pieces)


@pytest.mark.parametrize(
    ("answer", "inside", "expected"),
    [
        ("SELECT 1;", False, ("", "SELECT 1;")),
        ("\n  SELECT 1;", False, ("", "\n  SELECT 1;")),
        ("<think>\nCount.\n</think>\n\nSELECT 1;", False, ("Count.", "SELECT 1;")),
        ("<think>\nCount.\n</think>\nSELECT 1;", False, ("Count.", "SELECT 1;")),
        ("\n<think>a\n\nb</think>  x\n", False, ("a\n\nb", "  x\n")),
        ("<think>\n\n</think>\n\n", False, ("", "")),
        ("<think>\nnever\nclosed </think\n", False, ("never\nclosed </think", "")),
        ("\nCount.\n</think>\n\nSELECT 1;", True, ("Count.", "SELECT 1;")),
        ("<think>\nCount.</think>SELECT 1;", True, ("Count.", "SELECT 1;")),
        ("never closed", True, ("never closed", "")),
        ("SELECT '<think>a</think>'", False, ("", "SELECT '<think>a</think>'")),
        ("<think>a</think><think>b</think>", False, ("a", "<think>b</think>")),
        ("</think>x", False, ("", "</think>x")),
        ("<thi", False, ("", "<thi")),
        ("\n<thi", True, ("<thi", "")),
        ("<think>a\n</thi", False, ("a\n</thi", "")),
        ("\n", False, ("", "\n")),
        ("", True, ("", "")),
    ],
)
def test_parts_of_an_answer(answer: str, inside: bool, expected: tuple[str, str]) -> None:
    """Reasoning is what the leading block holds, text what follows it."""
    assert expected == joined(pieces_of([answer], inside=inside))
    assert expected == joined(pieces_of(list(answer), inside=inside))


@given(answer=ANSWERS, inside=st.booleans(), data=st.data())
@example(answer="<think>\n</think>", inside=True, data=None)
def test_pieces_do_not_matter(answer: str, inside: bool, data: st.DataObject | None) -> None:
    """However an answer is cut, the parts are those of the whole, and nothing is taken back."""
    cuts = data.draw(st.lists(st.integers(0, len(answer)))) if data else range(len(answer))
    places = [0, *sorted(cuts), len(answer)]
    pieces = [answer[start:end] for start, end in pairwise(places)]

    assert split(answer, inside) == joined(pieces_of(pieces, inside=inside))


@given(answer=ANSWERS, inside=st.booleans(), data=st.data())
def test_segments_are_the_text(answer: str, inside: bool, data: st.DataObject) -> None:
    """The parser loses and changes nothing, and its parts come in their order."""
    places = [0, *sorted(data.draw(st.lists(st.integers(0, len(answer))))), len(answer)]
    parser = ReasoningParser(inside=inside)
    segments = [
        *(segment for start, end in pairwise(places) for segment in parser.push(answer[start:end])),
        *parser.flush(),
    ]

    assert answer == "".join(text for _, text in segments)
    assert all(text for _, text in segments)
    order = [part.value for part, _ in segments]
    assert sorted(order) == order
    assert (Part.OPEN in dict(segments)) == (re.match(r"\s*<think>", answer) is not None)


def test_only_what_may_be_a_tag_waits() -> None:
    """Reasoning and text are shown at once, but for what a tag may begin with and line breaks before one."""
    pieces = ["<th", "ink>", "\n", "Cou", "nt\n", "x</", "b</think", ">\n", "\nSEL", "<think>"]
    expected = [
        *[("", "")] * 3,
        *[("Cou", ""), ("nt", ""), ("\nx", ""), ("</b", ""), ("", "")],
        *[("", "SEL"), ("", "<think>"), ("", "")],
    ]

    assert expected == pieces_of(pieces)


def test_a_long_answer_is_not_kept() -> None:
    """What is held back stays short, so a token costs the same at the end as at the beginning."""
    parser = ReasoningParser()
    parser.push("<think>")
    for _ in range(1000):
        parser.push("word <")

    assert "<" == parser.held


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<|im_start|>assistant\n", False),
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|im_start|>user\nWhat is <think>?<|im_end|>\n<|im_start|>assistant\n", False),
        ("", False),
    ],
)
def test_prompts_that_open_the_block(prompt: str, expected: bool) -> None:
    """Only a prompt whose last word is the tag lets the answer begin inside the block."""
    assert expected == opens_thinking(prompt)


def test_tags_reach_the_splitter_as_text() -> None:
    """The detokenizer keeps <think> and </think>, which are added tokens but not special, and drops <|im_end|>."""
    tokenizer = TextTokenizer(byte_level_tokenizer())
    ids = tokenizer.encode("<think>\nCount.\n</think>\n\nSELECT<|im_end|>")
    detokenizer = IncrementalDetokenizer(tokenizer)
    pieces = [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]

    assert {"<think>", "</think>"} < set(pieces)
    assert ("Count.", "SELECT") == joined(pieces_of(pieces))
