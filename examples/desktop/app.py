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


class Errand:
    """Asks one question once all packages are loaded, and closes the window with the answer.

    Args:
        question: what is asked.
        packages: how many are loaded before.
    """

    def __init__(self, question: str, packages: int):
        self._question, self._missing = question, packages
        self.window: Window
        self.outcome: Answered | Failed | None = None

    def __call__(self, message: Message) -> None:
        """Go on when a package is loaded; leave with an answer or an error."""
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
@click.option("--device", help="cpu, cuda, dml, coreml; by default what is there for the base.")
@click.option("--fallback", is_flag=True, help="Run on the CPU where the device is unavailable.")
@click.option("--threads", type=click.IntRange(min=1), help="One per physical core by default.")
@click.option(
    "--trust",
    type=click.Choice(["require", "warn", "off"]),
    default="warn",
    show_default=True,
    help="What to do where no key you trust has signed a package.",
)
@click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens of one answer.")
@click.option("--temperature", type=float, help="0 is greedy; default: the experts' own.")
@click.option("--ask", metavar="QUESTION", help="Ask this, write the answer, and leave.")
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
    errand = Errand(ask, len(packages)) if ask is not None else None
    options = {"max_tokens": max_tokens, "temperature": temperature}
    worker = Worker(**loading)
    try:
        window = Window(worker, packages, options, errand)
    except BaseException as error:
        worker.close()  # its thread would keep the process alive
        if isinstance(error, TclError):
            raise click.ClickException(f"there is no display: {error}") from error
        raise
    signal.signal(signal.SIGINT, lambda *_: window.close())
    if errand:
        errand.window = window
    window.run()
    if errand:
        _deliver(errand, output)


def _deliver(errand: Errand, output: Path | None) -> None:
    if not isinstance(errand.outcome, Answered):
        raise click.ClickException(
            str(errand.outcome.error) if errand.outcome else "closed before the answer"
        )
    if output is None:
        click.echo(errand.outcome.result.text)
    else:
        output.write_text(errand.outcome.result.text, encoding="utf-8")


if __name__ == "__main__":
    # Frozen without a console, on Windows, there are no streams; what writes to them (help, progress) must not fail.
    with Path(os.devnull).open("w", encoding="utf-8") as nothing:
        sys.stdout, sys.stderr = sys.stdout or nothing, sys.stderr or nothing
        main()
