"""Writes the questions of `/v1/decisions` for the model, and makes answers from its probabilities."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

from hivellm_ort.result import ScoreResult
from hivellm_ort.server.schemas.decisions import Predicate, Question, Rating, Selection
from hivellm_ort.text.messages import text_of

__all__ = ["answer_labels", "append_question", "build_answer", "question_text"]

_YES, _NO = "Yes", "No"


def question_text(question: Question) -> str:
    """Return the text of a question. Each option has a label, which is the answer of the model."""
    instructions = "\n".join(part.text for part in question.instructions)
    if isinstance(question, Predicate):
        return f"Is this true of the above? {instructions}\n\nAnswer only with {_YES} or {_NO}."
    labels = answer_labels(question)
    lines = [
        f"{label}. {name}: {description}" if description else f"{label}. {name}"
        for label, (name, description) in zip(labels, _options(question), strict=True)
    ]
    what = "level" if isinstance(question, Rating) else "option"
    order = "Levels, from the lowest to the highest:\n" if isinstance(question, Rating) else ""
    kind = "number" if labels[0] == "1" else "letter"
    return (
        f"{instructions}\n\n{order}"
        + "\n".join(lines)
        + f"\n\nAnswer only with the {kind} of the right {what}."
    )


def answer_labels(question: Question) -> list[str]:
    """Return the labels in the order of the options. Most of them are one token."""
    if isinstance(question, Predicate):
        return [_YES, _NO]
    count = len(_options(question))
    letters = string.ascii_uppercase
    return list(letters[:count]) if count <= len(letters) else [str(number) for number in range(1, count + 1)]


def append_question(turns: Sequence[Mapping[str, Any]], text: str) -> list[dict[str, Any]]:
    """Return the conversation with a question at its end, so that all questions share the prefix.

    The question extends the last message of the user: some templates refuse two messages of one role.
    """
    result = [dict(turn) for turn in turns]
    if result[-1]["role"] == "user":
        return [*result[:-1], {"role": "user", "content": f"{text_of(result[-1]['content'])}\n\n{text}"}]
    return [*result, {"role": "user", "content": text}]


def build_answer(question: Question, result: ScoreResult) -> dict[str, Any]:
    """Return the answer to a question in OpenAI's form, and `coverage`."""
    shares = [answer.share for answer in result.answers]
    answer: dict[str, Any] = {"type": question.type, "name": question.name}
    if isinstance(question, Predicate):
        answer |= {"probability": shares[0]}
    elif isinstance(question, Rating):
        answer |= {
            "score": sum(index * share for index, share in enumerate(shares)),
            "probabilities": [
                {"value": index, "label": level.label, "probability": share}
                for index, (level, share) in enumerate(zip(question.levels, shares, strict=True))
            ],
            "confidence": _confidence(shares),
        }
    else:
        values = [choice.value for choice in question.choices]
        answer |= {
            "choice": values[shares.index(max(shares))],
            "probabilities": [
                {"value": value, "probability": share} for value, share in zip(values, shares, strict=True)
            ],
            "confidence": _confidence(shares),
        }
    return {**answer, "coverage": min(1.0, sum(exp(one.logprob) for one in result.answers))}


def _options(question: Selection | Rating) -> list[tuple[str, str | None]]:
    """Return the name and the description of each option."""
    if isinstance(question, Rating):
        return [(level.label, level.description) for level in question.levels]
    return [(_shown(choice.value), choice.description) for choice in question.choices]


def _confidence(shares: Sequence[float]) -> float:
    """Return the confidence: 0 if all options are equally likely, 1 if one is certain."""
    chance = 1 / len(shares)
    return max(0.0, (max(shares) - chance) / (1 - chance))


def _shown(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else value
