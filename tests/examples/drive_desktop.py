"""Uses the window of `examples/desktop` as a person would, and prints as JSON what it saw. Started by the test."""

from __future__ import annotations

import json
import sys
import threading
import tkinter as tk
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "desktop"))

from window import ROUTED, Window
from worker import Answered, Failed, Loaded, Message, Piece, Worker

from hivellm_ort.serving.pool import BASES

SCHEMA = "CREATE TABLE orders (id INT, total NUMERIC);"


class Session:
    """Goes on with each message that the window has shown.

    Args:
        sql: a package.
        json: another.
        bad: a file that is none.
        max_tokens: most tokens of an answer.
    """

    def __init__(self, sql: Path, json: Path, bad: Path, max_tokens: int):
        self.seen: dict[str, Any] = {"errors": [], "ticks": 0}
        self._bad = bad
        options = {"temperature": 0, "max_tokens": max_tokens}
        self.window = Window(Worker(threads=1, trust="off"), [sql, json], options, self._on_message)
        self.window.root.report_callback_exception = self._on_error  # type: ignore[method-assign]
        self._names = [sql.stem, json.stem]
        self._steps = self._script()
        self._awaited: tuple[type[Message], ...] = next(self._steps)
        self.window.root.after(1, self._tick)

    def _script(self) -> Iterator[tuple[type[Message], ...]]:
        """What is done, and for which message it waits in between."""
        window, seen = self.window, self.seen
        seen["buttons while loading"] = self._buttons()
        seen["bar while loading"] = bool(window.progress.winfo_manager())
        yield (Loaded,)
        yield (Loaded,)
        seen["choice"] = list(window.picker["values"])
        seen["chosen"] = window.picker.get()
        seen["provider"] = window.provider.get()

        window.picker.set(self._names[0])
        window.schema.insert("1.0", SCHEMA)
        window.question.insert("1.0", "Count all orders")
        window.root.update_idletasks()
        before = seen["ticks"]
        window.question.focus_force()
        window.question.event_generate("<Return>")
        seen["buttons while answering"] = self._buttons()
        yield (Answered,)
        seen["ticks while answering"] = seen["ticks"] - before
        seen["shown"] = window.answer.get("1.0", "end-1c")
        seen["speed"] = window.speed.get()
        seen["buttons after it"] = self._buttons()

        window.schema.delete("1.0", "end")
        self._type("Fix this invalid JSON", ROUTED)
        yield (Piece,)
        window.stop_button.invoke()
        yield (Answered,)
        seen["state after stop"] = window.state.get()

        window.load(self._bad)
        yield (Failed,)
        window.root.update_idletasks()
        seen["error"] = window.error.get()
        seen["bar after an error"] = bool(window.progress.winfo_manager())

        self._type("hello", ROUTED)  # fits nobody
        yield (Failed,)
        seen["second error"] = window.error.get()

        self._type("and now by name", self._names[1])
        seen["error while asking again"] = window.error.get()
        yield (Piece,)
        window.root.tk.eval(window.root.protocol("WM_DELETE_WINDOW"))
        seen["buttons while closing"] = self._buttons()
        yield ()

    def _type(self, question: str, expert: str) -> None:
        self.window.picker.set(expert)
        self.window.question.delete("1.0", "end")
        self.window.question.insert("1.0", question)
        self.window.ask_button.invoke()

    def _buttons(self) -> str:
        """Which of open, ask and stop can be pressed."""
        window = self.window
        buttons = {"open": window.open_button, "ask": window.ask_button, "stop": window.stop_button}
        return " ".join(name for name, button in buttons.items() if str(button["state"]) == "normal")

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Answered):
            result = message.result
            self.seen.setdefault("answers", []).append([result.expert, result.finish_reason, result.text])
        if isinstance(message, self._awaited):
            self._awaited = next(self._steps)

    def _on_error(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        self.seen["errors"].append("".join(traceback.format_exception(kind, error, trace)))
        self.window.close()

    def _tick(self) -> None:
        self.seen["ticks"] += 1
        self.window.root.after(5, self._tick)


def main() -> None:
    """Drive the window until it is closed."""
    sql, other, bad, max_tokens = sys.argv[1:]
    session = Session(Path(sql), Path(other), Path(bad), int(max_tokens))
    session.window.run()
    for thread in threading.enumerate():
        if thread.name == "experts":
            thread.join(10)
    # tqdm's, a daemon, stays where there was a progress bar.
    session.seen["threads"] = [thread.name for thread in threading.enumerate() if not thread.daemon]
    session.seen["bases"] = len(BASES.bases)
    try:
        session.window.root.winfo_exists()
    except tk.TclError:
        session.seen["destroyed"] = True
    sys.stdout.write(json.dumps(session.seen))


if __name__ == "__main__":
    main()
