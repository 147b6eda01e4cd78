"""The command `hivellm-ort chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from hivellm_ort import TextStream
from hivellm_ort.cli.files import NamedPath
from hivellm_ort.cli.output import echo, echo_answer, input_is_a_terminal
from hivellm_ort.cli.run import answer_options, loading_options, text_or_file
from hivellm_ort.errors import ExpertError, OptionError
from hivellm_ort.expert import Expert
from hivellm_ort.jsonfiles.reading import parse_value
from hivellm_ort.loading.options import LoadOptions

__all__ = ["chat"]


def _tools(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """Parse JSON from the text, or from a file after `@`."""
    text = text_or_file(ctx, param, value)
    try:
        return text and parse_value(text)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param=param) from error


@click.command()
@click.argument("package", type=NamedPath())
@click.option(
    "--schema",
    callback=text_or_file,
    help="Context of the conversation, such as the tables of a database: text or @FILE.",
)
@click.option("--system", callback=text_or_file, help="System message: text or @FILE.")
@click.option("--tools", callback=_tools, help="Functions that the model may call: a JSON list or @FILE.")
@answer_options
@loading_options
@click.pass_context
def chat(
    ctx: click.Context,
    package: Path,
    schema: str | None,
    system: str | None,
    tools: Any,
    max_tokens: int | None,
    temperature: float | None,
    loading: LoadOptions,
) -> None:
    """Chat with the expert in PACKAGE.

    PACKAGE is a .expert file, or a folder that PEFT saved. An empty line or the end of the input ends the chat.
    Ctrl-C stops an answer.

    If a question fails, its error is printed, and the chat continues without that question.

    Exit status: 0 if every question was answered; 2 if one failed, or if PACKAGE cannot be loaded.
    """
    if sys.stdin is None:
        raise OptionError("standard input is closed: chat reads questions from it")
    failed = False
    turns: list[dict[str, str]] = []
    with Expert.load(package, **loading) as expert:
        echo(f"{expert.name} on {expert.base.name} ({expert.base.precision})", err=True)
        while True:
            try:
                question = _ask()
                if not question:
                    break
                stream = expert.generate_stream(
                    question,
                    schema=schema,
                    system=system,
                    messages=turns,
                    tools=tools,
                    max_tokens=max_tokens,
                    temperature=temperature,
                )
                _print(stream)
            except ExpertError as error:
                failed = True
                echo(f"error: {error}", err=True)
                continue
            turns += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": stream.result.text},
            ]
    ctx.exit(2 if failed else 0)


def _print(stream: TextStream) -> None:
    """Print an answer piece by piece. Ctrl-C ends it."""
    try:
        for piece in stream:
            echo_answer(piece)
    except KeyboardInterrupt:
        stream.close()
    finally:
        echo()


def _ask() -> str:
    """Read the next question.

    Returns:
        The question without surrounding spaces; empty at the end of the input.

    Raises:
        OptionError: The question is not in the encoding of standard input. The next one can still be read.
    """
    encoding = sys.stdin.encoding
    try:
        if input_is_a_terminal():
            return input("> ").strip()
        echo("> ", nl=False)
        # Read bytes: a text stream reads ahead, and would lose the lines after one that it cannot decode.
        return sys.stdin.buffer.readline().decode(encoding).strip()
    except (EOFError, KeyboardInterrupt):
        return ""
    except UnicodeDecodeError as error:
        raise OptionError(
            f"the question is not {encoding} (at byte {error.start}): set PYTHONIOENCODING to its encoding"
        ) from error
