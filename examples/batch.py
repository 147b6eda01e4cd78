"""Answer the prompts of a JSON Lines file with several experts, many at a time.

    python examples/batch.py prompts.jsonl --expert sql=SQL.expert --expert json=JSON.expert --output answers.jsonl

Each line is an object with `prompt`, and where you like `expert` (else the prompt is routed) and `schema`.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import click
from named_experts import expert_options, load, take_any_console
from tqdm import tqdm

from hivellm_ort import ExpertError, ExpertManager, TextStream
from hivellm_ort.textfile import decode_text

__all__ = ["main"]

_FIELDS = {"prompt": True, "expert": False, "schema": False}  # and whether a line must have it


class BadLine(Exception):  # noqa: N818  what is wrong is the line
    """A line that says nothing to answer."""


class NothingDone(click.ClickException):
    """Neither a line was answered nor the output touched."""

    exit_code = 2


@dataclass(frozen=True)
class Question:
    """A line of the input.

    Attributes:
        prompt: what is asked.
        expert: who is asked; None for whom the prompt fits best.
        schema: what the answer is about.
    """

    prompt: str
    expert: str | None = None
    schema: str | None = None

    @classmethod
    def of(cls, text: str) -> Question:
        """Read a line."""
        try:
            document = json.loads(text)
        except ValueError as error:
            raise BadLine(f"no JSON: {error}") from error
        if not isinstance(document, dict):
            raise BadLine('must be an object such as {"prompt": "Count all orders"}')
        for field in document.keys() - _FIELDS:
            raise BadLine(f"unknown field {field!r}; there are {', '.join(_FIELDS)}")
        for field, required in _FIELDS.items():
            value = document.get(field)
            if not isinstance(value, str) and (required or value is not None):
                raise BadLine(f"{field} must be a text, not {json.dumps(value)}")
        return cls(**document)


@dataclass(frozen=True)
class Begun:
    """A line whose answer is on its way, or that has none.

    Attributes:
        line: its number, from 1.
        question: what it asks.
        expert: who answers.
        answer: the answer; the error where there is none.
    """

    line: int
    question: Question | None
    expert: str
    answer: TextStream | Exception

    def document(self) -> tuple[dict[str, Any], bool]:
        """What is written for it, and whether that is an answer."""
        try:
            if isinstance(self.answer, Exception):
                raise self.answer
            for _ in self.answer:  # up to its end
                pass
        except (ExpertError, BadLine) as error:
            return {
                "line": self.line,
                "error": {"type": type(error).__name__, "message": str(error)},
            }, False
        result = self.answer.result
        return {
            "line": self.line,
            "prompt": self.question.prompt if self.question is not None else None,
            "expert": self.expert,
            "text": result.text,
            "finish_reason": result.finish_reason,
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
        }, True


@click.command()
@click.argument("prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@expert_options
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: standard output.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens of one answer.")
@click.option("--temperature", type=float, help="0 is greedy; default: the experts' own.")
@click.option(
    "--at-once",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Most prompts that are begun and not written yet; eight of one base share a forward pass.",
)
@click.pass_context
def main(
    ctx: click.Context,
    prompts: Path,
    output: Path | None,
    experts: dict[str, Path],
    base: Path | None,
    threads: int | None,
    trust: str,
    at_once: int,
    **options: Any,
) -> None:
    """Answer the prompts of the JSON Lines file PROMPTS with several experts.

    A line is an object with "prompt" and, where you like, "expert" (else the prompt is routed) and "schema". For each
    an object with its number is written, in the same order: the answer, or "error" where there is none.

    Exit status: 0 when every line has an answer; 1 when some have none; 2 when nothing was done.
    """
    take_any_console()
    try:
        # Empty lines have a number too.
        lines = [
            (number, text)
            for number, text in enumerate(decode_text(prompts.read_bytes()).split("\n"), start=1)
            if text.strip()
        ]
        manager = load(experts, base=base, threads=threads, trust=trust)
    except (ExpertError, OSError, UnicodeDecodeError) as error:
        raise NothingDone(
            f"{prompts}: {error}" if isinstance(error, UnicodeDecodeError) else str(error)
        ) from error
    without = []
    # The bar is on standard error, and only where that is a terminal.
    with manager, _opened(output) as out, tqdm(total=len(lines), unit="line", disable=None) as bar:
        for line, document, answered in _answers(manager, lines, at_once, options):
            # To a file in UTF-8; a console may have any encoding.
            out.write(json.dumps(document, ensure_ascii=output is None) + "\n")
            out.flush()
            bar.update()
            if not answered:
                without.append(line)
    if without:
        numbers = ", ".join(map(str, without[:20])) + ("" if len(without) <= 20 else ", …")
        click.echo(f"{len(without)} of {len(lines)} lines have no answer: {numbers}", err=True)
        ctx.exit(1)


def _answers(
    manager: ExpertManager, lines: list[tuple[int, str]], at_once: int, options: dict[str, Any]
) -> Iterator[tuple[int, dict[str, Any], bool]]:
    """For each line what is written, in their order; those behind it are answered meanwhile."""
    begun: deque[Begun] = deque()
    for number, text in lines:
        begun.append(_begin(manager, number, text, options))
        if len(begun) == at_once:
            first = begun.popleft()
            yield first.line, *first.document()
    for one in begun:
        yield one.line, *one.document()


def _begin(manager: ExpertManager, number: int, text: str, options: dict[str, Any]) -> Begun:
    question, name = None, ""
    try:
        question = Question.of(text)
        name = _expert_of(question, manager)
        stream = manager.generate_stream(name, question.prompt, schema=question.schema, **options)
    except (ExpertError, BadLine) as error:
        return Begun(number, question, name, error)
    return Begun(number, question, name, stream)


def _expert_of(question: Question, manager: ExpertManager) -> str:
    """The expert that a line names, else the one that fits best."""
    names = [info.name for info in manager.list_loaded_experts()]
    if question.expert is not None:
        if question.expert not in names:
            raise BadLine(f"no expert {question.expert!r}; there are {', '.join(names)}")
        return question.expert
    routes = manager.route("\n".join(filter(None, (question.schema, question.prompt))))
    if not routes:
        raise BadLine(f"no expert fits the prompt; name one of {', '.join(names)} as expert")
    return routes[0].name


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    try:
        file = output.open("w", encoding="utf-8")
    except OSError as error:
        raise NothingDone(str(error)) from error
    with file:
        yield file


if __name__ == "__main__":
    main()
