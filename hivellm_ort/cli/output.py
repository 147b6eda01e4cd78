"""How commands print: all their text goes through this module to standard output or standard error."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from hivellm_ort.printable import escaped

__all__ = [
    "JSON_OUTPUT",
    "echo",
    "echo_answer",
    "escaped_logs",
    "input_is_a_terminal",
    "json_option",
    "name_as_flag",
    "prepare_streams",
    "print_json",
    "silence",
]

JSON_OUTPUT = "hivellm_ort.json"

_Command = TypeVar("_Command", bound=Callable[..., Any])


def json_option(help_text: str) -> Callable[[_Command], _Command]:
    """Add `--json` to a command, as its argument `as_json`.

    The context, which all commands of a process share, notes it too: errors are then printed as JSON.

    Args:
        help_text: Help of the option.
    """

    def note(ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
        ctx.meta[JSON_OUTPUT] = value
        return value

    # Eager, so that errors in later options are printed as JSON too.
    return click.option("--json", "as_json", is_flag=True, is_eager=True, callback=note, help=help_text)


def echo(text: object = "", *, nl: bool = True, err: bool = False) -> None:
    """Print a text. Characters that could steer a terminal are escaped.

    Args:
        text: What to print.
        nl: Whether to end the line.
        err: Whether to print to standard error. Its failures are ignored: nobody could read about them.

    Raises:
        OSError: Standard output cannot be written.
    """
    _write(escaped(str(text).replace("\r\n", "\n")), nl=nl, err=err)


def echo_answer(text: str) -> None:
    """Print text of a model without a line break: escaped on a terminal, unchanged to a file or program.

    Raises:
        OSError: Standard output cannot be written.
    """
    _write(escaped(text) if sys.stdout is not None and sys.stdout.isatty() else text, nl=False)


def print_json(document: Any, *, indent: int | None = 2) -> None:
    """Print a document as JSON.

    If standard output is not UTF-8, characters beyond ASCII are escaped. Characters that could steer a terminal are
    always escaped.

    Args:
        document: Anything that JSON can hold.
        indent: Spaces per level; None for one line.

    Raises:
        OSError: Standard output cannot be written.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    ascii_only = codecs.lookup(encoding).name != "utf-8"
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    # Line breaks are those of the layout: JSON escapes the ones in strings.
    safe = "".join(char if char == "\n" or escaped(char) == char else _json_escape(char) for char in text)
    _write(safe, nl=True)


def _json_escape(char: str) -> str:
    return json.dumps(char)[1:-1] if ord(char) > 0x7F else f"\\u{ord(char):04x}"


def _write(text: str, *, nl: bool, err: bool = False) -> None:
    try:
        # Without color=True click removes terminal escapes from text for files, and an answer may contain some.
        click.echo(text, nl=nl, err=err, color=True)
    except OSError as error:
        if err:
            silence("stderr")
            return
        raise OSError(error.errno, error.strerror, "standard output") from error


def silence(name: str) -> None:
    """Redirect `stdout` or `stderr` to nowhere, so that Python does not fail at exit to write what is left."""
    stream = getattr(sys, name)
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no stream, or not a file
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)


def input_is_a_terminal() -> bool:
    """Return whether a user can be asked: standard input is open and is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


class _Escaping(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record).replace("\r\n", "\n"))


@contextlib.contextmanager
def escaped_logs() -> Iterator[None]:
    """Print warnings of Python and log messages escaped as `echo` does, for loggers without a handler."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Escaping())
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)


def prepare_streams() -> None:
    r"""Make the standard streams safe to print to.

    A character that the encoding lacks is written as an escape, such as `\u2192`. The descriptor of a closed stream
    is occupied, so that no file opened later gets it.
    """
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:
            _take(number)
        elif number and isinstance(stream, io.TextIOWrapper):  # an application may have replaced it
            stream.reconfigure(errors="backslashreplace")


def _take(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)


def name_as_flag(name: str, value: str | int | None) -> str | None:
    """Write an argument as an option of the running command, such as `--trust off`.

    Args:
        name: The argument's name.
        value: Its value; None for the name alone.

    Returns:
        The option; None if the command has no such option.
    """
    ctx = click.get_current_context(silent=True)
    options = [one for one in ctx.command.params if isinstance(one, click.Option)] if ctx is not None else []
    flags = {one.name: one.opts[-1] for one in options}
    if value is False:
        return flags.get(f"no_{name}")
    flag = flags.get(name)
    return flag if flag is None or value is None or value is True else f"{flag} {value}"
