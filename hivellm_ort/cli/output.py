"""What commands print, and how: every text of theirs goes through here to standard output or error."""

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
    """`--json` as the argument `as_json`, noted in the context that all commands of a process share."""

    def note(ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
        ctx.meta[JSON_OUTPUT] = value
        return value

    # Eager: what is wrong with the options after it is told as JSON too.
    return click.option("--json", "as_json", is_flag=True, is_eager=True, callback=note, help=help_text)


def echo(text: object = "", *, nl: bool = True, err: bool = False) -> None:
    """Print a text, with what could steer a terminal as escapes.

    What standard error cannot take is dropped: there is nobody to tell.

    Raises:
        OSError: standard output cannot be written.
    """
    _write(escaped(str(text).replace("\r\n", "\n")), nl=nl, err=err)


def echo_answer(text: str) -> None:
    """Print what a model wrote, without a newline: as it is for a program or a file, escaped on a terminal.

    Raises:
        OSError: standard output cannot be written.
    """
    _write(escaped(text) if sys.stdout is not None and sys.stdout.isatty() else text, nl=False)


def print_json(document: Any, *, indent: int | None = 2) -> None:
    """Print a document as JSON.

    It is UTF-8 where standard output is UTF-8, else everything beyond ASCII is escaped; what could steer a terminal
    is escaped always.

    Raises:
        OSError: standard output cannot be written.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    ascii_only = codecs.lookup(encoding).name != "utf-8"
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    # Line ends are JSON's own: those in strings are escapes already.
    safe = "".join(char if char == "\n" or escaped(char) == char else _json_escape(char) for char in text)
    _write(safe, nl=True)


def _json_escape(char: str) -> str:
    return json.dumps(char)[1:-1] if ord(char) > 0x7F else f"\\u{ord(char):04x}"


def _write(text: str, *, nl: bool, err: bool = False) -> None:
    try:
        # True: click leaves out escapes where there is no terminal, and an answer may have some.
        click.echo(text, nl=nl, err=err, color=True)
    except OSError as error:
        if err:
            silence("stderr")
            return
        raise OSError(error.errno, error.strerror, "standard output") from error


def silence(name: str) -> None:
    """Lead `stdout` or `stderr` to nowhere: what it still holds cannot be written, and Python would tell at exit."""
    stream = getattr(sys, name)
    with contextlib.suppress(OSError, ValueError, AttributeError):  # none, or no file
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)


def input_is_a_terminal() -> bool:
    """Whether somebody can be asked: standard input is there, and is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


class _Escaping(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record).replace("\r\n", "\n"))


@contextlib.contextmanager
def escaped_logs() -> Iterator[None]:
    """Have warnings, of Python and of every logger without a handler of its own, come out as `echo` has texts."""
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
    r"""Have every character and every stream be safe to print to.

    A character that an encoding lacks is written as an escape, such as `\u2192`. The number of a stream that was
    closed is taken, so that no file gets it.
    """
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:
            _take(number)
        elif number and isinstance(stream, io.TextIOWrapper):  # it may be an application's own
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
    """An argument as the command that runs has it, `--trust off`; None where it has no such flag."""
    ctx = click.get_current_context(silent=True)
    options = [one for one in ctx.command.params if isinstance(one, click.Option)] if ctx is not None else []
    flags = {one.name: one.opts[-1] for one in options}
    if value is False:
        return flags.get(f"no_{name}")
    flag = flags.get(name)
    return flag if flag is None or value is None or value is True else f"{flag} {value}"
