"""Answer the prompts of a JSON Lines file with several experts in one batch.

    python examples/batch.py prompts.jsonl --expert sql=SQL.expert --expert json=JSON.expert --output answers.jsonl

Each line is an object with `prompt`, and where you like `expert` (else the prompt is routed) and `schema`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from named_experts import expert_options, load
from tqdm import tqdm

from hivellm_ort import ExpertError, ExpertManager, InferenceResult
from hivellm_ort.observability import Event, RequestFinished, RequestQueued

__all__ = ["main"]

_FIELDS = {"prompt": True, "expert": False, "schema": False}  # and whether a line must have it


@dataclass(frozen=True)
class Question:
    """A line of the input.

    Attributes:
        line: its number, from 1.
        prompt: what is asked.
        expert: who is asked; None for whom the prompt fits best.
        schema: what the answer is about.
    """

    line: int
    prompt: str
    expert: str | None = None
    schema: str | None = None


@click.command()
@click.argument("prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@expert_options
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: standard output.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens of one answer.")
@click.option("--temperature", type=float, help="0 is greedy; default: the experts' own.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Most prompts that share a forward pass.",
)
def main(
    prompts: Path,
    output: Path | None,
    experts: dict[str, Path],
    base: Path | None,
    threads: int | None,
    trust: str,
    batch_size: int,
    max_tokens: int | None,
    temperature: float | None,
) -> None:
    """Answer the prompts of the JSON Lines file PROMPTS, several experts in one batch.

    A line is an object with "prompt" and, where you like, "expert" (else the prompt is routed) and "schema". The
    results are written as JSON Lines in the same order. Where one prompt cannot be answered nothing is written.
    """
    if output is not None and not output.absolute().parent.is_dir():
        raise click.ClickException(f"{output}: there is no folder {output.absolute().parent}")
    try:
        questions = _read(prompts)
        with load(experts, base=base, threads=threads, trust=trust) as manager:
            names = [_expert_of(question, manager, prompts) for question in questions]
            results = _answer(
                manager,
                names,
                questions,
                where=prompts,
                batch_size=batch_size,
                max_tokens=max_tokens,
                temperature=temperature,
            )
        lines = [
            _line(question, name, result)
            for question, name, result in zip(questions, names, results, strict=True)
        ]
        if output is None:
            click.echo("".join(lines), nl=False)
        else:
            output.write_text("".join(lines), encoding="utf-8")
    except (ExpertError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _read(path: Path) -> list[Question]:
    questions = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}, column {error.colno}: no JSON ({error.msg})") from error
        questions.append(_question(document, number, f"{path}, line {number}"))
    return questions


def _question(document: Any, number: int, where: str) -> Question:
    if not isinstance(document, dict):
        raise ValueError(f'{where}: must be an object such as {{"prompt": "Count all orders"}}')  # noqa: TRY004
    for field in document.keys() - _FIELDS:
        raise ValueError(f"{where}: unknown field {field!r}; there are {', '.join(_FIELDS)}")
    for field, required in _FIELDS.items():
        value = document.get(field)
        if not isinstance(value, str) and (required or value is not None):
            raise ValueError(f"{where}: {field} must be a text, not {json.dumps(value)}")
    return Question(line=number, **document)


def _expert_of(question: Question, manager: ExpertManager, path: Path) -> str:
    """The expert that a line names, else the one that fits best."""
    where = f"{path}, line {question.line}"
    names = [info.name for info in manager.list_loaded_experts()]
    if question.expert is not None:
        if question.expert not in names:
            raise ValueError(f"{where}: no expert {question.expert!r}; there are {', '.join(names)}")
        return question.expert
    routes = manager.route("\n".join(filter(None, (question.schema, question.prompt))))
    if not routes:
        raise ValueError(f"{where}: no expert fits the prompt; name one of {', '.join(names)} as expert")
    return routes[0].name


def _answer(
    manager: ExpertManager, names: list[str], questions: list[Question], *, where: Path, **options: Any
) -> list[InferenceResult]:
    checked = 0
    # Shown on standard error, and only where that is a terminal.
    with tqdm(total=len(questions), unit="answer", disable=None) as bar:

        def count(event: Event) -> None:
            nonlocal checked
            if isinstance(event, RequestQueued):
                checked += 1
            elif isinstance(event, RequestFinished):
                bar.update()

        manager.events.add(count)
        try:
            return manager.generate_batch(
                [(name, question.prompt) for name, question in zip(names, questions, strict=True)],
                schema=[question.schema for question in questions],
                **options,
            )
        except (ExpertError, ValueError) as error:
            if checked == len(questions):
                raise
            # Every prompt is checked, in their order, before the first one is answered.
            raise ValueError(f"{where}, line {questions[checked].line}: {error}") from error


def _line(question: Question, name: str, result: InferenceResult) -> str:
    document = {
        "prompt": question.prompt,
        "expert": name,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
    }
    return json.dumps(document, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
