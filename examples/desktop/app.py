"""Ask experts in a window.

python examples/desktop/app.py out/*.expert
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from tkinter import TclError
from typing import Any

import click
from window import Window
from worker import Answered, Failed, Loaded, Message, Worker

__all__ = ["main"]


class SingleQuestion:
    """Asks one question when all packages are loaded, and closes the window after the answer.

    Args:
        question: The question.
        packages: How many packages are loaded first.
    """

    def __init__(self, question: str, packages: int):
        self._question, self._missing = question, packages
        self.window: Window
        self.outcome: Answered | Failed | None = None

    def __call__(self, message: Message) -> None:
        """Ask when the last package is loaded. Close the window after an answer or an error."""
        if isinstance(message, Loaded):
            self._missing -= 1
            if not self._missing:
                self.window.question.insert("1.0", self._question)
                self.window.ask()
        elif isinstance(message, Answered | Failed):
            self.outcome = message
            self.window.close()


@click.command()
@click.argument("packages", nargs=-1, type=click.Path(path_type=Path))
@click.option("--base", type=click.Path(path_type=Path), help="Base bundle of thin packages.")
@click.option("--device", help="cpu, cuda, dml or coreml; by default the best that runs the base.")
@click.option("--fallback", is_flag=True, help="Run on the CPU if the device is unavailable.")
@click.option("--threads", type=click.IntRange(min=1), help="One per physical core by default.")
@click.option(
    "--trust",
    type=click.Choice(["require", "warn", "off"]),
    default="warn",
    show_default=True,
    help="What to do if no key you trust has signed a package.",
)
@click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens of one answer.")
@click.option("--temperature", type=float, help="0 is greedy; default: the experts' own.")
@click.option("--ask", metavar="QUESTION", help="Ask this, write the answer and exit.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where --ask writes; default: standard output.",
)
def main(
    packages: tuple[Path, ...],
    max_tokens: int | None,
    temperature: float | None,
    ask: str | None,
    output: Path | None,
    **loading: Any,
) -> None:
    """Ask experts in a window. PACKAGES are opened at once; the last one is chosen."""
    if ask is not None and not packages:
        raise click.UsageError("--ask needs a package to ask")
    single = SingleQuestion(ask, len(packages)) if ask is not None else None
    options = {"max_tokens": max_tokens, "temperature": temperature}
    worker = Worker(**loading)
    try:
        window = Window(worker, packages, options, single)
    except BaseException as error:
        worker.close()  # its thread would keep the process alive
        if isinstance(error, TclError):
            raise click.ClickException(f"there is no display: {error}") from error
        raise
    signal.signal(signal.SIGINT, lambda *_: window.close())
    if single:
        single.window = window
    window.run()
    if single:
        _deliver(single, output)


def _deliver(single: SingleQuestion, output: Path | None) -> None:
    if not isinstance(single.outcome, Answered):
        raise click.ClickException(
            str(single.outcome.error) if single.outcome else "closed before the answer"
        )
    if output is None:
        click.echo(single.outcome.result.text)
    else:
        output.write_text(single.outcome.result.text, encoding="utf-8")


if __name__ == "__main__":
    # A program frozen without a console has no streams on Windows. Writing to them (help, progress) must not fail.
    with Path(os.devnull).open("w", encoding="utf-8") as nothing:
        sys.stdout, sys.stderr = sys.stdout or nothing, sys.stderr or nothing
        main()
