"""The default scorer: weighs keywords, capabilities and the hint of a manifest."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from hivellm_ort.errors import ManifestError
from hivellm_ort.printable import printable
from hivellm_ort.routing.candidates import Candidate, Tags
from hivellm_ort.routing.hint import MAX_HINT_LENGTH, Hint, holds, parse_hint, terms
from hivellm_ort.routing.keyword_weight import KeywordWeight, weight_of
from hivellm_ort.routing.words import MAX_SHOWN, Phrase, PromptWords, spaced

__all__ = ["NEEDED", "KeywordScorer"]

NEEDED = 0.7
"""Least evidence for a candidate to fit: a term, or an ambiguous word with any other word beside it."""

_CAPABILITY = 0.75  # relative to a keyword: capabilities are not written for matching prompts
_SHARED = 0.25  # share that a keyword loses if every candidate has it
_EXCLUDED = 2.0  # times a keyword's weight
_MOST_EXCLUDED = 2.0
_HINT = 2.0
_EVERYDAY_TOGETHER = 0.4
_MOST_CLUES = 8  # limits long keyword lists and long prompts
_NOTES = {
    KeywordWeight.EVERYDAY: " (everyday word)",
    KeywordWeight.EVERYDAY_PHRASE: " (everyday words)",
    KeywordWeight.AMBIGUOUS: " (ambiguous)",
}
_LOG = logging.getLogger("hivellm_ort")


@dataclass(frozen=True, slots=True)
class _Clue:
    """A phrase that counts for or against a candidate if the prompt contains it."""

    phrase: Phrase
    source: str
    weight: float
    everyday: bool
    from_hint: bool = False


class _Clues:
    """Clues with distinct words. Of clues with the same words only the first counts."""

    def __init__(self) -> None:
        self._by_text: dict[str, _Clue] = {}
        self._by_length: dict[int, set[str]] = {}

    def add(self, text: str, source: str, factor: float, *, from_hint: bool = False) -> None:
        """Add a clue, unless its text has no words."""
        phrase = Phrase.of(text)
        if phrase is None or phrase.text in self._by_text:
            return
        kind = weight_of(phrase)
        weight = round(min(kind.value * factor, _MOST_EXCLUDED), 4)
        clue = _Clue(phrase, source + _NOTES.get(kind, ""), weight, kind.everyday, from_hint)
        self._by_text[phrase.text] = clue
        self._by_length.setdefault(len(phrase.words), set()).add(phrase.text)

    def found(self, words: PromptWords, everyday: float, *, with_hints: bool) -> list[tuple[float, str]]:
        """Return weights and sources of the clues in a prompt, by descending weight.

        Args:
            words: The prompt.
            everyday: Largest total weight of everyday words.
            with_hints: Whether the terms of the hint count as clues.
        """
        texts = [text for length, mine in self._by_length.items() for text in mine & words.runs(length)]
        matches = [clue for clue in map(self._by_text.__getitem__, texts) if with_hints or not clue.from_hint]
        if not matches:
            return []
        # A keyword inside a longer matching one adds nothing.
        inside: set[str] = set().union(*(clue.phrase.inner() for clue in matches))
        matches = [clue for clue in matches if clue.phrase.text not in inside]
        matches.sort(key=lambda clue: (-clue.weight, clue.phrase.text))
        found = []
        for clue in matches[:_MOST_CLUES]:
            weight = clue.weight
            if clue.everyday:
                weight = min(weight, round(everyday, 4))
                everyday -= weight
            if weight > 0:
                found.append((weight, clue.source))
        return found


@dataclass(frozen=True, slots=True)
class _Profile:
    """The clues and the hint of one candidate."""

    gains: _Clues
    losses: _Clues
    hint: Hint | None


class KeywordScorer:
    """Scores candidates by their keywords, capabilities and hints; docs/routing.md lists the weights.

    Args:
        candidates: All candidates. A keyword that many of them share counts less.
    """

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        unique = tuple(dict.fromkeys(candidates))
        owners = Counter(text for candidate in unique for text in _keywords(candidate))
        lost = _SHARED / max(len(unique) - 1, 1)
        shares = {text: 1 - lost * (count - 1) for text, count in owners.items()}
        self._profiles = {candidate: _profile(candidate, shares) for candidate in unique}
        self._last = ("", PromptWords(""))

    def __call__(self, prompt: str, candidate: Candidate, tags: Tags, /) -> tuple[float, tuple[str, ...]]:
        """Score one candidate; see `Scorer`."""
        profile = self._profiles.get(candidate) or _profile(candidate, {})
        words = self._words(prompt)
        gains = profile.gains.found(words, _EVERYDAY_TOGETHER, with_hints=not tags)
        losses = profile.losses.found(words, _EVERYDAY_TOGETHER * _EXCLUDED, with_hints=not tags)
        if tags and profile.hint is not None and holds(profile.hint, tags):
            gains.insert(0, (_HINT, f"hint: {_holding(profile.hint, tags)}"))
        evidence = round(sum(gain for gain, _ in gains) - sum(loss for loss, _ in losses), 4)
        reasons = [f"{source} +{gain:.2f}" for gain, source in gains]
        reasons += [f"{source} -{loss:.2f}" for loss, source in losses]
        if evidence < NEEDED:
            if reasons:
                reasons.append(f"{evidence:.2f} in all, {NEEDED:.2f} needed")
            return min(evidence, 0.0), tuple(reasons)
        factor = (1 + candidate.priority) / 2
        reasons.append(f"priority {candidate.priority:g} x{factor:.3f}")
        return round(evidence * factor, 4), tuple(reasons)

    def _words(self, prompt: str) -> PromptWords:
        # All candidates are scored for one prompt after the other.
        last, words = self._last
        if last != prompt:
            words = PromptWords(prompt)
            self._last = (prompt, words)
        return words


def _profile(candidate: Candidate, shares: Mapping[str, float]) -> _Profile:
    routing, hint = candidate.routing, _hint_of(candidate)
    gains, losses = _Clues(), _Clues()
    for text, keyword in _keywords(candidate).items():
        gains.add(keyword, f'keyword "{printable(keyword, most=MAX_SHOWN)}"', shares.get(text, 1.0))
    for capability in candidate.capabilities:
        value = capability.partition(":")[2] or capability
        gains.add(spaced(value), f"capability {printable(capability, most=MAX_SHOWN)}", _CAPABILITY)
    for keyword in routing.exclude_keywords:
        losses.add(keyword, f'excluded by "{printable(keyword, most=MAX_SHOWN)}"', _EXCLUDED)
    for term, positive in terms(hint) if hint else ():
        if term.comparison != "=":
            continue
        if positive:
            gains.add(spaced(term.value), f"hint: {term}", _CAPABILITY, from_hint=True)
        else:
            losses.add(spaced(term.value), f"hint: not {term}", _EXCLUDED, from_hint=True)
    return _Profile(gains, losses, hint)


def _keywords(candidate: Candidate) -> dict[str, str]:
    """Return the keywords by the text of their phrases. Of several spellings the first counts."""
    phrases = ((Phrase.of(keyword), keyword) for keyword in reversed(candidate.routing.keywords))
    return {phrase.text: keyword for phrase, keyword in phrases if phrase is not None}


def _holding(hint: Hint, tags: Tags) -> str:
    """Return the true terms of a hint, or a note if it is true only because of absent tags."""
    good = [str(term) for term, positive in terms(hint) if positive and holds(term, tags)]
    return ", ".join(good[:3]) or "nothing that it excludes"


def _hint_of(candidate: Candidate) -> Hint | None:
    text = candidate.routing.router_hint or ""
    return _read_hint(candidate.name, text[: MAX_HINT_LENGTH + 1]) if text.strip() else None


@lru_cache(maxsize=256)
def _read_hint(name: str, text: str) -> Hint | None:
    """Parse an expert's hint. A malformed one is logged once, because the result is cached."""
    try:
        return parse_hint(text)
    except ManifestError as error:
        _LOG.warning("expert %s: %s; the hint is ignored", printable(name, most=MAX_SHOWN), error)
        return None
