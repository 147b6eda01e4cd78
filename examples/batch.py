"""Answer the prompts of a JSON Lines file with several experts, many at a time.

    python examples/batch.py prompts.jsonl --expert sql=SQL.expert --expert json=JSON.expert --output answers.jsonl

batch_minimal.py shows the idea in 25 lines. This script adds what long files need: a line that fails has an error of
its own, each answer is written as it comes, and a bar shows the progress.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import click
from named_experts import expert_options, load, take_any_console
from tqdm import tqdm

from hivellm_ort import ExpertError, ExpertManager

__all__ = ["main"]

_FIELDS = ("prompt", "expert", "schema")


class BadLine(Exception):  # noqa: N818  what is wrong is the line
    """A line without a question."""


class NothingDone(click.ClickException):
    """No line was answered, and the output is as it was."""

    exit_code = 2


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
    help="Prompts that are asked at the same time. Eight of one base share a forward pass.",
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

    Each line is an object with "prompt". It may have "expert", the name of the expert to ask; without it the prompt
    is routed. It may have "schema", which the answer is about. For each line an object with its number is written,
    in the same order: the answer, or "error" if there is none.

    Exit status: 0 if every line has an answer; 1 if some have none; 2 if nothing was done.
    """
    take_any_console()
    try:
        lines = _lines(prompts)
        manager = load(experts, base=base, threads=threads, trust=trust)
    except (ExpertError, OSError) as error:
        raise NothingDone(str(error)) from error
    failed = []
    with manager, _opened(output) as out:
        # The bar is on standard error, and only if that is a terminal.
        for answer in tqdm(
            _answers(manager, lines, at_once, options), total=len(lines), unit="line", disable=None
        ):
            # A file is UTF-8; a console may have any encoding.
            out.write(json.dumps(answer, ensure_ascii=output is None) + "\n")
            out.flush()
            if "error" in answer:
                failed.append(answer["line"])
    if failed:
        numbers = ", ".join(map(str, failed[:20])) + (", …" if len(failed) > 20 else "")
        click.echo(f"{len(failed)} of {len(lines)} lines have no answer: {numbers}", err=True)
        ctx.exit(1)


def _lines(prompts: Path) -> list[tuple[int, str]]:
    """The lines with text, and their numbers; empty lines are counted too."""
    data = prompts.read_bytes()
    try:
        text = data.decode(json.detect_encoding(data))
    except UnicodeDecodeError as error:
        raise NothingDone(f"{prompts}: {error}") from error
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _answers(
    manager: ExpertManager, lines: list[tuple[int, str]], at_once: int, options: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """What is written for each line, in the order of the lines."""
    # The manager answers requests of several threads in shared forward passes.
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(partial(_answer, manager, options), lines)


def _answer(manager: ExpertManager, options: dict[str, Any], numbered: tuple[int, str]) -> dict[str, Any]:
    number, line = numbered
    try:
        question = _question(line)
        prompt, schema = question["prompt"], question.get("schema")
        expert = question.get("expert")
        if expert is None:
            expert = manager.choose(prompt, schema=schema)
        result = manager.generate(expert, prompt, schema=schema, **options)
    except (ExpertError, BadLine) as error:
        return {"line": number, "error": {"type": type(error).__name__, "message": str(error)}}
    return {
        "line": number,
        "prompt": prompt,
        "expert": expert,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
    }


def _question(line: str) -> dict[str, Any]:
    """The fields of a line; `prompt` is a text."""
    try:
        question = json.loads(line)
    except ValueError as error:
        raise BadLine(f"no JSON: {error}") from error
    if not isinstance(question, dict):
        raise BadLine('must be an object such as {"prompt": "Count all orders"}')
    for field in question.keys() - _FIELDS:
        raise BadLine(f"unknown field {field!r}; there are {', '.join(_FIELDS)}")
    for field in _FIELDS:
        value = question.get(field)
        if not isinstance(value, str) and (field == "prompt" or value is not None):
            raise BadLine(f"{field} must be a text, not {json.dumps(value)}")
    return question


def _opened(output: Path | None) -> TextIO:
    try:
        return click.open_file("-" if output is None else str(output), "w", encoding="utf-8")
    except OSError as error:
        raise NothingDone(str(error)) from error


if __name__ == "__main__":
    main()
