"""The window: everything here runs in Tk's thread."""

from __future__ import annotations

import tkinter as tk
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty
from tkinter import filedialog, ttk
from typing import Any

from look import PAD, apply_styles, text_field, use_screen_resolution
from worker import Answered, Closed, Failed, Loaded, Logged, Message, Piece, Worker

from hivellm_ort import InferenceResult

__all__ = ["ROUTED", "Window"]

ROUTED = "whichever fits the question"
"""What the picker shows for no particular expert."""

_POLL_MS = 30


class Window:
    """A window in which experts are opened and asked. `run` shows it until it is closed.

    Args:
        worker: The thread that loads and asks.
        packages: Packages to load at once.
        options: Options of every answer, as for `ExpertManager.generate_stream`.
        listener: Gets every message, after the window has shown it.
    """

    def __init__(
        self,
        worker: Worker,
        packages: Sequence[Path] = (),
        options: dict[str, Any] | None = None,
        listener: Callable[[Message], None] | None = None,
    ):
        self._worker, self._options, self._listener = worker, options or {}, listener
        self._loading = 0
        self._asking = self._closing = False
        use_screen_resolution()
        self.root = tk.Tk()
        self.root.title("HiveLLM experts")
        self.root.minsize(520, 420)
        self.root.geometry("820x620")
        self.root.protocol("WM_DELETE_WINDOW", self.close)
        apply_styles(self.root)
        self._build()
        self._refresh()
        for path in packages:
            self.load(path)
        self.root.after(_POLL_MS, self._poll)

    def run(self) -> None:
        """Show the window until it is closed."""
        self.root.mainloop()

    def load(self, path: Path) -> None:
        """Load a package."""
        self._loading += 1
        self.error.set("")
        self.state.set(f"Loading {path.name if self._loading == 1 else f'{self._loading} packages'} …")
        self._worker.load(path)
        self._refresh()

    def ask(self) -> None:
        """Ask the question in the field, if there is one and nothing else runs."""
        question = self.question.get("1.0", "end-1c").strip()
        name = self.picker.get()
        if self._busy or not (question and name):
            return
        schema = self.schema.get("1.0", "end-1c").strip() or None
        self._asking = True
        self.error.set("")
        self.speed.set("")
        self.state.set("Answering …")
        self._write(f"{question}\n", "question")
        self.question.tag_add("sel", "1.0", "end")  # the next text replaces it
        self._worker.ask(None if name == ROUTED else name, question, schema=schema, **self._options)
        self._refresh()

    def close(self) -> None:
        """Stop what runs, free the memory, and then close the window."""
        if not self._closing:
            self._closing = True
            self.state.set("Closing …")
            self._worker.close()
            self._refresh()

    def _build(self) -> None:
        frame = ttk.Frame(self.root, padding=PAD)
        frame.pack(fill="both", expand=True)
        frame.columnconfigure(0, weight=1)
        frame.rowconfigure(1, weight=1)
        self._build_top(frame).grid(row=0, sticky="ew")
        self._build_answer(frame).grid(row=1, sticky="nsew", pady=PAD)
        self._build_question(frame).grid(row=2, sticky="ew")
        self._build_status(frame).grid(row=3, sticky="ew", pady=(PAD, 0))

    def _build_top(self, parent: ttk.Frame) -> ttk.Frame:
        frame = ttk.Frame(parent)
        ttk.Label(frame, text="Expert").pack(side="left")
        self.picker = ttk.Combobox(frame, state="readonly")
        self.picker.pack(side="left", fill="x", expand=True, padx=PAD)
        self.open_button = ttk.Button(frame, text="Open package …", command=self._open)
        self.open_button.pack(side="left")
        return frame

    def _build_answer(self, parent: ttk.Frame) -> ttk.Frame:
        frame = ttk.Frame(parent)
        self.answer = text_field(frame, height=10, state="disabled", takefocus=False)
        self.answer.tag_configure(
            "question", font="TkHeadingFont", foreground="#1f4e8c", spacing1=6, spacing3=4
        )
        self.answer.tag_configure("note", font="TkSmallCaptionFont", foreground="#666666", spacing3=6)
        bar = ttk.Scrollbar(frame, command=self.answer.yview)
        self.answer.configure(yscrollcommand=bar.set)
        bar.pack(side="right", fill="y")
        self.answer.pack(side="left", fill="both", expand=True)
        return frame

    def _build_question(self, parent: ttk.Frame) -> ttk.Frame:
        frame = ttk.Frame(parent)
        frame.columnconfigure(1, weight=1)
        for row, label in enumerate(("Schema", "Question")):
            ttk.Label(frame, text=label).grid(row=row, sticky="nw", padx=(0, PAD), pady=4)
        self.schema = text_field(frame, height=3)
        self.question = text_field(frame, height=3)
        self.schema.grid(row=0, column=1, columnspan=2, sticky="ew", pady=(0, PAD))
        self.question.grid(row=1, column=1, sticky="ew")
        self.question.bind("<Return>", self._on_return)
        buttons = ttk.Frame(frame)
        buttons.grid(row=1, column=2, sticky="n", padx=(PAD, 0))
        self.ask_button = ttk.Button(buttons, text="Ask", style="Ask.TButton", command=self.ask)
        self.stop_button = ttk.Button(buttons, text="Stop", command=self._worker.stop)
        self.ask_button.pack(fill="x")
        self.stop_button.pack(fill="x", pady=(4, 0))
        self.question.focus_set()
        return frame

    def _build_status(self, parent: ttk.Frame) -> ttk.Frame:
        frame = ttk.Frame(parent)
        frame.columnconfigure(0, weight=1)
        self.error, self.state, self.provider, self.speed = (tk.StringVar(self.root) for _ in range(4))
        banner = ttk.Label(frame, textvariable=self.error, style="Error.TLabel", padding=PAD)
        banner.bind("<Configure>", lambda event: banner.configure(wraplength=event.width - 2 * PAD))

        def show(*_: str) -> None:
            if self.error.get():
                banner.grid(row=0, columnspan=3, sticky="ew", pady=(0, PAD))
            else:
                banner.grid_remove()

        self.error.trace_add("write", show)
        ttk.Label(frame, textvariable=self.state).grid(row=1, column=0, sticky="w")
        self.progress = ttk.Progressbar(frame, mode="indeterminate", length=120)
        right = ttk.Frame(frame)
        right.grid(row=1, column=2, sticky="e")
        for variable in (self.provider, self.speed):
            ttk.Label(right, textvariable=variable, style="Quiet.TLabel").pack(side="left", padx=(PAD, 0))
        return frame

    def _poll(self) -> None:
        """Show the messages that the worker has sent since the last time."""
        self.root.after(_POLL_MS, self._poll)
        pieces: list[str] = []
        while True:
            try:
                message = self._worker.messages.get_nowait()
            except Empty:
                break
            if isinstance(message, Piece):
                pieces.append(message.text)
            else:
                self._write("".join(pieces))
                pieces.clear()
                self._show(message)
            if self._listener is not None:
                self._listener(message)
            if isinstance(message, Closed):
                self.root.destroy()
                return
        self._write("".join(pieces))

    def _show(self, message: Message) -> None:
        match message:
            case Loaded(info, provider):
                self.provider.set(provider)
                self._loading -= 1
                names = [name for name in self.picker["values"] if name not in (ROUTED, info.name)] + [
                    info.name
                ]
                self.picker["values"] = [ROUTED, *names] if len(names) > 1 else names
                self.picker.set(info.name)
                if not self._loading:
                    self.state.set(f"{info.package} {info.version}: {info.kind} on {info.base}")
            case Answered(result):
                self._asking = False
                self._write("\n", "answer")
                self._write(f"{_summary(result)}\n", "note")
                self.state.set("Stopped" if result.finish_reason == "cancelled" else "Ready")
                self.speed.set(f"{result.tokens_per_second:.0f} tokens/s")
            case Failed(error):
                if self._asking:  # nothing is loaded meanwhile
                    self._asking = False
                    self._write("\n", "answer")
                else:
                    self._loading -= 1
                self.error.set(f"{type(error).__name__}: {error}")
                self.state.set("Failed")
            case Logged(text):
                self._write(f"{text}\n", "note")
        self._refresh()

    @property
    def _busy(self) -> bool:
        return self._loading > 0 or self._asking or self._closing

    def _refresh(self) -> None:
        """Enable the buttons that can be used, and show whether something runs."""
        busy = self._busy
        for button, on in (
            (self.open_button, not busy),
            (self.ask_button, not busy and bool(self.picker.get())),
            (self.stop_button, self._asking and not self._closing),
        ):
            button["state"] = "normal" if on else "disabled"
        if busy and not self.progress.winfo_ismapped():
            self.progress.grid(row=1, column=1, padx=PAD)
            self.progress.start(15)
        elif not busy:
            self.progress.stop()
            self.progress.grid_remove()

    def _write(self, text: str, tag: str = "answer") -> None:
        if not text:
            return
        at_end = self.answer.yview()[1] == 1.0  # else the user reads earlier text
        self.answer["state"] = "normal"
        self.answer.insert("end", text, tag)
        self.answer["state"] = "disabled"
        if at_end:
            self.answer.see("end")

    def _open(self) -> None:
        kinds = [("Experts", "*.expert"), ("All files", "*")]
        for path in filedialog.askopenfilenames(parent=self.root, title="Open packages", filetypes=kinds):
            self.load(Path(path))

    def _on_return(self, event: tk.Event[tk.Text]) -> str | None:
        if int(event.state) & 1:  # Shift
            return None
        self.ask()
        return "break"


def _summary(result: InferenceResult) -> str:
    timings = result.timings
    return (
        f"{result.expert}: {result.completion_tokens} tokens ({result.finish_reason}), the first after "
        f"{timings.queue + timings.prefill:.2f} s"
    )
