"""The option `--json`, which every command has, and which `main` must know of when one fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["JSON_OUTPUT", "json_option"]

JSON_OUTPUT = "hivellm_ort.json"

_Command = TypeVar("_Command", bound=Callable[..., Any])


def json_option(help_text: str) -> Callable[[_Command], _Command]:
    """`--json` as the argument `as_json`, noted in the context that all commands of a process share."""

    def note(ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
        ctx.meta[JSON_OUTPUT] = value
        return value

    return click.option("--json", "as_json", is_flag=True, callback=note, help=help_text)
