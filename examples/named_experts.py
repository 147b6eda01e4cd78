"""What the command line examples share: the option `--expert NAME=PATH` and others, loading, and consoles."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, Unpack

import click

from hivellm_ort import ExpertManager, LoadOptions

__all__ = ["expert_options", "load", "take_any_console"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def expert_options(command: _Command) -> _Command:
    """The options `--expert`, `--base`, `--threads` and `--trust`, which `load` takes."""
    for option in (
        click.option(
            "--trust",
            type=click.Choice(["require", "warn", "off"]),
            default="warn",
            show_default=True,
            help="What to do if no key you trust has signed a package.",
        ),
        click.option("--threads", type=click.IntRange(min=1), help="One per physical core by default."),
        click.option("--base", type=click.Path(path_type=Path), help="Base bundle of thin packages."),
        click.option(
            "--expert",
            "experts",
            metavar="NAME=PATH",
            multiple=True,
            required=True,
            callback=_named,
            help="A name and a package; repeat it for more experts.",
        ),
    ):
        command = option(command)
    return command


def load(experts: dict[str, Path], **options: Unpack[LoadOptions]) -> ExpertManager:
    """A manager with these experts, loaded with these options.

    Raises:
        LoadError: One of them cannot be loaded. Then nothing stays in memory.
    """
    manager = ExpertManager(**options)
    try:
        manager.load_experts(experts)
    except BaseException:
        manager.close()
        raise
    return manager


def take_any_console() -> None:
    r"""Make a console that lacks a character, such as a pipe on Windows, write it as `\u2192`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _named(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    experts: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name and equals and path):
            raise click.BadParameter(f"{value!r} is not NAME=PATH, such as sql=expert-sql.expert")
        if name in experts:
            raise click.BadParameter(f"{name!r} is given twice")
        experts[name] = Path(path)
    return experts
