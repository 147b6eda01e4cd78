"""What commands print: JSON, texts of packages, names of arguments, on consoles of any encoding."""

from __future__ import annotations

import codecs
import io
import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["JSON_OUTPUT", "json_option", "name_as_flag", "never_fail_to_encode", "print_json", "printable"]

JSON_OUTPUT = "hivellm_ort.json"

_Command = TypeVar("_Command", bound=Callable[..., Any])


def json_option(help_text: str) -> Callable[[_Command], _Command]:
    """`--json` as the argument `as_json`, noted in the context that all commands of a process share."""

    def note(ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
        ctx.meta[JSON_OUTPUT] = value
        return value

    # Eager: what is wrong with the options after it is told as JSON too.
    return click.option("--json", "as_json", is_flag=True, is_eager=True, callback=note, help=help_text)


def print_json(document: Any, *, indent: int | None = 2) -> None:
    """Print a document as JSON: in UTF-8 where standard output is UTF-8, else everything beyond ASCII is escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    escaped = codecs.lookup(encoding).name != "utf-8"
    click.echo(json.dumps(document, indent=indent, ensure_ascii=escaped))


def never_fail_to_encode() -> None:
    r"""Have standard output and error write a character that their encoding lacks as an escape, such as `\u2192`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # there may be none, or an application's own
            stream.reconfigure(errors="backslashreplace")


def name_as_flag(name: str, value: str | int | None) -> str | None:
    """An argument as the command that runs has it, `--trust off`; None where it has no such flag."""
    ctx = click.get_current_context(silent=True)
    options = [one for one in ctx.command.params if isinstance(one, click.Option)] if ctx is not None else []
    flags = {one.name: one.opts[-1] for one in options}
    if value is False:
        return flags.get(f"no_{name}")
    flag = flags.get(name)
    return flag if flag is None or value is None or value is True else f"{flag} {value}"


def printable(text: str) -> str:
    """A text that comes from a package, on one line and without what could steer the terminal."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
