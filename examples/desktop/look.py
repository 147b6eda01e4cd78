"""How the window looks: the native theme if there is one, and text fields in one style."""

from __future__ import annotations

import contextlib
import sys
import tkinter as tk
from tkinter import font, ttk
from typing import Any

__all__ = ["PAD", "apply_styles", "text_field", "use_screen_resolution"]

PAD = 8
"""Pixels between widgets."""


def use_screen_resolution() -> None:
    """Tell Windows that the window draws at the resolution of the screen. Call it before there is a window."""
    if sys.platform == "win32":
        import ctypes

        with contextlib.suppress(AttributeError, OSError):  # before Windows 8.1, and if it was set already
            ctypes.windll.shcore.SetProcessDpiAwareness(1)


def apply_styles(root: tk.Tk) -> None:
    """Choose the theme, and define the styles that the window uses."""
    style = ttk.Style(root)
    if root.tk.call("tk", "windowingsystem") == "x11":
        # Windows and macOS have a native theme. The default of X11 looks old.
        style.theme_use("clam")
        for name in ("TkDefaultFont", "TkTextFont", "TkFixedFont", "TkHeadingFont"):
            font.nametofont(name, root).configure(size=10)
    root.configure(background=style.lookup("TFrame", "background"))
    style.configure("Ask.TButton", font="TkHeadingFont")
    style.configure("Quiet.TLabel", foreground="#555555")
    style.configure("Error.TLabel", background="#fbe4e2", foreground="#8c1d18")


def text_field(parent: ttk.Frame, **options: Any) -> tk.Text:
    """A field of several lines in a fixed-width font."""
    return tk.Text(
        parent,
        width=40,  # grows with the window
        wrap="word",
        font="TkFixedFont",
        relief="flat",
        padx=PAD,
        pady=6,
        background="white",
        foreground="#1a1a1a",
        insertbackground="#1a1a1a",
        highlightthickness=1,
        highlightbackground="#c8ccd2",
        highlightcolor="#2f6fbf",
        undo=True,
        **options,
    )
