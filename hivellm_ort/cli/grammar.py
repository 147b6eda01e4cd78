"""The command `hivellm-ort grammar`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from hivellm_ort.cli.files import NamedPath, read_text
from hivellm_ort.cli.output import echo, json_option, print_json
from hivellm_ort.errors import LoadError
from hivellm_ort.grammar.grammar import Grammar, Kind
from hivellm_ort.printable import printable

__all__ = ["KINDS", "grammar"]

KINDS: dict[str, Kind] = {".gbnf": "gbnf", ".json": "json_schema", ".lark": "lark", ".regex": "regex"}
_AROUND = 30  # characters shown on each side of the place where a sample fails


@click.group()
def grammar() -> None:
    """Check grammars, which restrict the form of answers."""


@grammar.command()
@click.argument("file", type=NamedPath())
@click.option(
    "--accepts",
    "samples_file",
    metavar="FILE",
    type=NamedPath(),
    help="Sample answers, one per line.",
)
@click.option(
    "--accepts-file",
    "sample_files",
    metavar="FILE",
    multiple=True,
    type=NamedPath(),
    help="One sample answer of any number of lines; its last line break is ignored. Can be repeated.",
)
@click.option(
    "--kind",
    type=click.Choice(get_args(Kind)),
    show_default="by the suffix of FILE",
    help="Kind of grammar in FILE.",
)
@click.option(
    "--lenient", is_flag=True, help="Ignore, with a warning, what cannot be enforced of a JSON schema."
)
@json_option("Print rules, warnings and accepted samples as JSON.")
@click.pass_context
def check(
    ctx: click.Context,
    file: Path,
    samples_file: Path | None,
    sample_files: tuple[Path, ...],
    kind: Kind | None,
    lenient: bool,
    as_json: bool,
) -> None:
    """Check the grammar in FILE, and try samples on it.

    Prints the number of rules, warnings about likely mistakes, and which samples the grammar accepts. The suffix of
    FILE says the kind: .gbnf, .json (a JSON schema), .lark or .regex. A choice is a JSON list of texts: pass --kind
    choice.

    Answers to a JSON schema are generated on one line, with one space after each comma and colon. Samples must have
    the same form.

    Exit status: 0 if the grammar is valid and accepts every sample; 1 if it rejects a sample; 2 if the grammar is
    wrong, or a file cannot be read.
    """
    from hivellm_ort.grammar.report import accepts, check_grammar

    text = _content(file)
    known = kind or KINDS.get(file.suffix.lower())
    if known is None:
        raise LoadError(f"{file}: the suffix does not say the kind; add --kind with one of {_listed()}")
    # The line break at the end of the file is not a part of the expression.
    checked = Grammar(known, text.removesuffix("\n") if known == "regex" else text, str(file), lenient)
    lines = [] if samples_file is None else _lines(_content(samples_file))
    samples = [(f"line {number}", line) for number, line in enumerate(lines, 1)]
    samples += [(str(one), _content(one).removesuffix("\n")) for one in sample_files]
    report = check_grammar(checked)
    failures = accepts(checked, [sample for _, sample in samples]) if samples else []
    accepted = [failure is None for failure in failures]
    if as_json:
        document = {"rules": report.rules, "warnings": report.warnings, "accepts": accepted}
        print_json(document)
    else:
        _print(report.rules, report.warnings, samples, failures)
    ctx.exit(0 if all(accepted) else 1)


def _print(
    rules: int, warnings: list[str], samples: list[tuple[str, str]], failures: list[int | None]
) -> None:
    echo(f"rules    {rules}")
    for warning in warnings:
        echo(f"warning  {printable(warning)}")
    for (name, _), failure in zip(samples, failures, strict=True):
        echo(f"{name}  {'ok' if failure is None else 'rejected'}")
    rejected = ((one, place) for one, place in zip(samples, failures, strict=True) if place is not None)
    first, place = next(rejected, (None, 0))
    if first is None:
        return
    name, sample = first
    if "\n" in sample:
        name = f"{name}, line {sample.count(chr(10), 0, place) + 1}"
    column = place - (sample.rfind("\n", 0, place) + 1)
    before, after = sample[max(0, place - _AROUND) : place], sample[place : place + _AROUND]
    echo(f"{name}, column {column + 1}: ", nl=False)
    if place == len(sample):
        echo(f"the grammar expects more after {before!r}")
    elif place == 0:
        echo(f"no accepted answer begins with {after!r}")
    else:
        echo(f"after {before!r} the grammar does not allow {after!r}")


def _lines(text: str) -> list[str]:
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def _content(file: Path) -> str:
    try:
        return read_text(file)
    except OSError as error:
        raise LoadError(f"{file}: cannot be read ({error.strerror}); name a file with text") from error
    except UnicodeDecodeError as error:
        raise LoadError(f"{file}: not UTF-8 (at byte {error.start}); save it as UTF-8") from error


def _listed() -> str:
    return ", ".join(get_args(Kind))
