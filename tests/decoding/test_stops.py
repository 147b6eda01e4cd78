"""Stop strings against cutting the whole text."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from stopping import feed

from hivellm_ort.decoding.stops import StopMatcher

LETTERS = st.text("ab\n", min_size=1, max_size=5)


def cut(text: str, stops: list[str]) -> str:
    """Return the text up to the earliest occurrence of any stop."""
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else text


@given(pieces=st.lists(st.text("abc\n", max_size=4), max_size=12), stops=st.lists(LETTERS, max_size=4))
@example(pieces=["a", "b", "a", "b", "b"], stops=["abb", "ba"])
@example(pieces=["a", "b"], stops=["abb", "b"])
def test_cutting_into_pieces_changes_nothing(pieces: list[str], stops: list[str]) -> None:
    """However the text is cut, the result is the text before its first stop, and it is known if there was one."""
    text = "".join(pieces)
    matcher = StopMatcher(stops)

    assert cut(text, stops) == feed(matcher, pieces)
    assert any(stop in text for stop in stops) == (matcher.matched is not None)


@given(pieces=st.lists(st.text("ab\n", max_size=4), max_size=12), stops=st.lists(LETTERS, max_size=4))
def test_the_stop_found_does_not_depend_on_the_pieces(pieces: list[str], stops: list[str]) -> None:
    """The same stop is reported for one piece, for given pieces and for single characters."""
    text = "".join(pieces)
    matchers = [StopMatcher(stops) for _ in range(3)]
    for matcher, parts in zip(matchers, ([text], pieces, list(text)), strict=True):
        feed(matcher, parts)

    assert matchers[0].matched == matchers[1].matched == matchers[2].matched


@given(pieces=st.lists(st.text("ab\n", max_size=4), max_size=12), stops=st.lists(LETTERS, max_size=4))
def test_no_more_is_held_than_could_become_a_stop(pieces: list[str], stops: list[str]) -> None:
    """What is held back begins like a stop."""
    matcher = StopMatcher(stops)
    for piece in pieces:
        matcher.push(piece)

        assert not matcher._held or any(stop.startswith(matcher._held[:1]) for stop in stops)
        assert len(matcher._held) < max(map(len, stops), default=1)


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        ([], ["a;", ""], [("a;", False), ("", False)]),
        ([";"], ["SELECT 1", "; SELECT 2"], [("SELECT 1", False), ("", True)]),
        (["\n\n"], ["a\n", "b\n", "\nc"], [("a", False), ("\nb", False), ("", True)]),
        (["```"], ["``", "x", "`", "``"], [("", False), ("``x", False), ("", False), ("", True)]),
        (["ab", "abc"], ["ab", "c"], [("", True), ("", True)]),
        (["abc", "b"], ["ab", "d"], [("", False), ("a", True)]),
    ],
)
def test_what_each_piece_gives(stops: list[str], pieces: list[str], expected: list[tuple[str, bool]]) -> None:
    """Text is shown as soon as no stop can take it back, and nothing after a stop."""
    matcher = StopMatcher(stops)

    assert expected == [matcher.push(piece) for piece in pieces]


def test_flush_gives_what_was_held() -> None:
    """An unfinished stop at the end of the answer is text."""
    matcher = StopMatcher(["END"])
    expected = [("the ", False), "EN", ""]

    assert expected == [matcher.push("the EN"), matcher.flush(), matcher.flush()]
    assert matcher.matched is None


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        ([""], "stop string 0 has 0 characters"),
        (["a", "b" * 1025], "stop string 1 has 1025 characters"),
        (["a"] * 17, "17 stop strings are too many: at most 16"),
        ("ab", "must be a list"),
        (["a", "b\udcff"], "stop string 1 holds a lone surrogate, which no answer has: remove it"),
    ],
)
def test_unusable_stops_are_refused(stops: list[str], expected: str) -> None:
    """Empty, overlong or too many stops are a ValueError that says which."""
    with pytest.raises(ValueError, match=expected):
        StopMatcher(stops)


def test_the_limits_themselves_are_allowed() -> None:
    """Sixteen stops of 1024 characters work."""
    stops = [letter * 1024 for letter in "abcdefghijklmnop"]
    matcher = StopMatcher(stops)
    expected = "x" + "a" * 1023 + "b"

    assert expected == feed(matcher, ["x", "a" * 1023, "b", stops[2]])
