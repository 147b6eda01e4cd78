"""`hivellm-ort`: its sub-commands, and how errors reach the shell."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Sequence
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
from hivellm_ort.cli.output import JSON_OUTPUT, name_as_flag, never_fail_to_encode, print_json
from hivellm_ort.cli.pack import pack
from hivellm_ort.cli.run import run
from hivellm_ort.cli.sign import sign, verify
from hivellm_ort.errors import ExpertError, arguments_named_by

__all__ = ["main"]

_GROUP = "hivellm_ort.commands"
_REPORT = (
    "This is a fault of hivellm-ort, not yours: please report it, with the lines above and what 'hivellm-ort doctor' "
    "prints."
)


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

    def main(self, args: Sequence[str] | None = None, *others: Any, **extra: Any) -> Any:
        """Run as a program: messages name flags, and no console fails to take what is printed."""
        never_fail_to_encode()
        with arguments_named_by(name_as_flag):
            return super().main(args, *others, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a sub-command; with --json an error is an object too.

        What a user can mend is a message and exit status 2: errors of ours, and what the system refuses. Anything
        else is our fault: a traceback and exit status 1.
        """
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            _tell(ctx, error, error.format_message())
            raise
        except (click.Abort, click.exceptions.Exit):
            raise
        except (ExpertError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # whoever read standard output has left; click ends quietly
            _tell(ctx, error, str(error))
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)
        except Exception as error:
            _tell(ctx, error, str(error))
            click.echo(traceback.format_exc(), err=True, nl=False)
            click.echo(_REPORT, err=True)
            ctx.exit(1)


def _tell(ctx: click.Context, error: Exception, message: str) -> None:
    if ctx.meta.get(JSON_OUTPUT):
        print_json({"error": {"type": type(error).__name__, "message": message}}, indent=None)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hivellm-ort")
def main() -> None:
    """Run and export HiveLLM experts on ONNX Runtime."""


for _command in (cache, chat, doctor, grammar, init, inspect, keygen, pack, run, sign, trust, verify):
    main.add_command(_command)
