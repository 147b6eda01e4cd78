"""What commands print: the option `--json`, which `main` must know of when one fails, and texts of packages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["JSON_OUTPUT", "json_option", "printable"]

JSON_OUTPUT = "hivellm_ort.json"

_Command = TypeVar("_Command", bound=Callable[..., Any])


def json_option(help_text: str) -> Callable[[_Command], _Command]:
    """`--json` as the argument `as_json`, noted in the context that all commands of a process share."""

    def note(ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
        ctx.meta[JSON_OUTPUT] = value
        return value

    return click.option("--json", "as_json", is_flag=True, callback=note, help=help_text)


def printable(text: str) -> str:
    """A text that comes from a package, on one line and without what could steer the terminal."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
