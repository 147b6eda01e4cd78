"""`hivellm-ort`: its sub-commands, and how errors reach the shell."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from typing import Any

import click

from hivellm_ort import __version__
from hivellm_ort.cli.cache import cache
from hivellm_ort.cli.chat import chat
from hivellm_ort.cli.doctor import doctor
from hivellm_ort.cli.grammar import grammar
from hivellm_ort.cli.init import init
from hivellm_ort.cli.inspect import inspect
from hivellm_ort.cli.keys import keygen, trust
from hivellm_ort.cli.output import JSON_OUTPUT
from hivellm_ort.cli.pack import pack
from hivellm_ort.cli.run import run
from hivellm_ort.cli.sign import sign, verify
from hivellm_ort.errors import ExpertError

__all__ = ["main"]

_GROUP = "hivellm_ort.commands"


class _Commands(click.Group):
    """Built-in commands, and those that installed distributions register as entry points."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(entry.name for entry in entry_points(group=_GROUP))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            return command
        for entry in entry_points(group=_GROUP, name=cmd_name):
            loaded: click.Command = entry.load()
            return loaded
        return None

    def invoke(self, ctx: click.Context) -> Any:
        """Run a sub-command; an error of ours is a message and exit status 2, with --json an object too."""
        try:
            return super().invoke(ctx)
        except (ExpertError, ValueError) as error:
            if ctx.meta.get(JSON_OUTPUT):
                click.echo(json.dumps({"error": {"type": type(error).__name__, "message": str(error)}}))
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hivellm-ort")
def main() -> None:
    """Run and export HiveLLM experts on ONNX Runtime."""


for _command in (cache, chat, doctor, grammar, init, inspect, keygen, pack, run, sign, trust, verify):
    main.add_command(_command)
