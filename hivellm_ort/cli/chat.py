"""The command `hivellm-ort chat`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from hivellm_ort.cli.run import loading_options, text_or_file
from hivellm_ort.errors import OptionError
from hivellm_ort.expert import Expert
from hivellm_ort.integrity import Policy

__all__ = ["chat"]


def _tools(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """The JSON of the text, or with a leading @ of the file."""
    text = text_or_file(ctx, param, value)
    try:
        return text and json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"no JSON: {error}", param=param) from error


@click.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--schema", callback=text_or_file, help="What the conversation is about: text, or @FILE.")
@click.option("--system", callback=text_or_file, help="System message: text, or @FILE.")
@click.option("--tools", callback=_tools, help="Functions that the model may call: JSON list, or @FILE.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens of one answer.")
@click.option("--temperature", type=float, help="0 is greedy; default: the expert's own.")
@loading_options
def chat(
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
    """Talk with the expert in PACKAGE. An empty line or end of input leaves; Ctrl-C stops an answer."""
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
        click.echo(f"{expert.name} on {expert.base.name} ({expert.base.precision})", err=True)
        while question := _ask():
            stream = expert.generate_stream(
                question,
                schema=schema,
                system=system,
                messages=turns,
                tools=tools,
                max_tokens=max_tokens,
                temperature=temperature,
            )
            try:
                for piece in stream:
                    click.echo(piece, nl=False)
            except KeyboardInterrupt:
                stream.close()
            click.echo()
            turns += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": stream.result.text},
            ]


def _ask() -> str:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        return ""
    except UnicodeDecodeError as error:
        raise OptionError(
            f"standard input is not {error.encoding} (at byte {error.start}): set PYTHONIOENCODING to its encoding"
        ) from error
