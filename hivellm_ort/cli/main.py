"""The program `hivellm-ort`: its subcommands, and how errors reach the shell."""

from __future__ import annotations

import contextlib
import errno
import sys
import traceback
from collections.abc import Iterator, Sequence
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
from hivellm_ort.cli.output import (
    JSON_OUTPUT,
    echo,
    escaped_logs,
    name_as_flag,
    prepare_streams,
    print_json,
    silence,
)
from hivellm_ort.cli.pack import pack
from hivellm_ort.cli.run import run
from hivellm_ort.cli.serve import serve
from hivellm_ort.cli.sign import sign, verify
from hivellm_ort.errors import ExpertError, arguments_named_by
from hivellm_ort.printable import escaped

__all__ = ["main"]

_GROUP = "hivellm_ort.commands"
_CLOSED_PIPE = 141  # as a shell reports a program that SIGPIPE ended
_REPORT = "This is a bug of hivellm-ort. Please report it with the lines above and what 'hivellm-ort doctor' prints."


class _Commands(click.Group):
    """The built-in commands, and those that installed distributions register as entry points."""

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
        """Run as a program: messages name options, and printed text can neither break nor steer a console."""
        prepare_streams()
        with arguments_named_by(name_as_flag), escaped_logs():
            return super().main(args, *others, **extra)

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        """Read the options of `hivellm-ort` itself."""
        with _told(None):
            return super().make_context(*arguments, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a sub-command."""
        with _told(ctx):
            return super().invoke(ctx)


@contextlib.contextmanager
def _told(ctx: click.Context | None) -> Iterator[None]:
    """Print an error and exit with its status; with --json, also print it as an object.

    Errors that the user can correct end in a message and exit status 2: those of this package and of the system. Any
    other error is a bug: a traceback and exit status 1. If nobody reads standard output any more, nothing is printed.
    """
    try:
        yield
    except click.ClickException as error:
        message = error.format_message()
        _tell(ctx, error, message)
        if sys.stderr is not None:  # click would use standard output instead
            try:
                (error if escaped(message) == message else _escaped(error, message)).show()
            except OSError:  # nobody reads it
                silence("stderr")
        raise click.exceptions.Exit(error.exit_code) from error
    except (click.Abort, click.exceptions.Exit):
        raise
    except (ExpertError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            silence("stdout")
            raise click.exceptions.Exit(_CLOSED_PIPE) from error
        _tell(ctx, error, str(error))
        if isinstance(error, OSError):
            silence("stdout")  # standard output may be what cannot be written
        echo(f"error: {error}", err=True)
        raise click.exceptions.Exit(2) from error
    except Exception as error:
        _tell(ctx, error, str(error))
        echo(traceback.format_exc(), err=True, nl=False)
        echo(_REPORT, err=True)
        raise click.exceptions.Exit(1) from error


def _escaped(error: click.ClickException, message: str) -> click.ClickException:
    """Escape the message of an error of click, which quotes arguments."""
    if isinstance(error, click.UsageError):
        return click.UsageError(escaped(message), error.ctx)
    return click.ClickException(escaped(message))


def _tell(ctx: click.Context | None, error: Exception, message: str) -> None:
    if ctx is None or not ctx.meta.get(JSON_OUTPUT):
        return
    try:
        print_json({"error": {"type": type(error).__name__, "message": message}}, indent=None)
    except OSError:  # which may be the error itself
        silence("stdout")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hivellm-ort")
def main() -> None:
    """Run, export and sign experts: small language models on ONNX Runtime.

    An expert is a LoRA or DoRA adapter that teaches a base model one task. It is shipped as a package, one .expert
    file.

    In a clone of the repository, 'hivellm-ort demo' exports three experts and runs them.
    """


for _command in (cache, chat, doctor, grammar, init, inspect, keygen, pack, run, serve, sign, trust, verify):
    main.add_command(_command)
