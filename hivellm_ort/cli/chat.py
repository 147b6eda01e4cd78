"""The command `hivellm-ort chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from hivellm_ort import TextStream
from hivellm_ort.cli.files import NamedPath
from hivellm_ort.cli.output import echo, echo_answer, input_is_a_terminal
from hivellm_ort.cli.run import loading_options, text_or_file
from hivellm_ort.errors import ExpertError, OptionError
from hivellm_ort.expert import Expert
from hivellm_ort.integrity import Policy
from hivellm_ort.jsonfiles.reading import parse_value

__all__ = ["chat"]


def _tools(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """The JSON of the text, or with a leading @ of the file."""
    text = text_or_file(ctx, param, value)
    try:
        return text and parse_value(text)
    except ValueError as error:
        raise click.BadParameter(f"no JSON: {error}", param=param) from error


@click.command()
@click.argument("package", type=NamedPath())
@click.option("--schema", callback=text_or_file, help="What the conversation is about: text, or @FILE.")
@click.option("--system", callback=text_or_file, help="System message: text, or @FILE.")
@click.option("--tools", callback=_tools, help="Functions that the model may call: JSON list, or @FILE.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens of one answer.")
@click.option("--temperature", type=float, help="0 is greedy; default: the expert's own.")
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
    device: str | None,
    provider_options: dict[str, str],
    fallback: bool,
    base: Path | None,
    threads: int | None,
    trust: Policy,
) -> None:
    """Talk with the expert in PACKAGE. An empty line or end of input leaves; Ctrl-C stops an answer.

    A question that cannot be answered is told, and the conversation goes on without it.

    Exit status: 0 when every question was answered; 2 when one was not, or PACKAGE cannot be used.
    """
    if sys.stdin is None:
        raise OptionError("standard input is closed: chat reads its questions there")
    failed = False
    turns: list[dict[str, str]] = []
    with Expert.load(
        package,
        device=device,
        provider_options=provider_options,
        fallback=fallback,
        base=base,
        threads=threads,
        trust=trust,
    ) as expert:
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
    """Print an answer as it comes; Ctrl-C ends it."""
    try:
        for piece in stream:
            echo_answer(piece)
    except KeyboardInterrupt:
        stream.close()
    finally:
        echo()


def _ask() -> str:
    """The next question; empty at the end of the input.

    Raises:
        OptionError: it is not in the encoding of standard input. The next one can still be read.
    """
    encoding = sys.stdin.encoding
    try:
        if input_is_a_terminal():
            return input("> ").strip()
        echo("> ", nl=False)
        # By bytes: text that was read ahead would be lost with the line that cannot be decoded.
        return sys.stdin.buffer.readline().decode(encoding).strip()
    except (EOFError, KeyboardInterrupt):
        return ""
    except UnicodeDecodeError as error:
        raise OptionError(
            f"the question is not {encoding} (at byte {error.start}): set PYTHONIOENCODING to its encoding"
        ) from error
