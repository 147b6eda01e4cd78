"""How the window looks: the native theme where there is one, and fields of text in one style."""

from __future__ import annotations

import contextlib
import sys
import tkinter as tk
from tkinter import font, ttk
from typing import Any

__all__ = ["PAD", "be_sharp", "dress", "text_field"]

PAD = 8
"""Pixels between things."""


def be_sharp() -> None:
    """Tell Windows that the window draws itself at the resolution of the screen; to be called before there is one."""
    if sys.platform == "win32":
        import ctypes

        with contextlib.suppress(
            AttributeError, OSError
        ):  # before Windows 8.1, and where it was told already
            ctypes.windll.shcore.SetProcessDpiAwareness(1)


def dress(root: tk.Tk) -> None:
    """Choose the theme, and name the styles that the window uses."""
    style = ttk.Style(root)
    if root.tk.call("tk", "windowingsystem") == "x11":
        # Windows and macOS have a look of their own; the default one of X11 is from another century.
        style.theme_use("clam")
        for name in ("TkDefaultFont", "TkTextFont", "TkFixedFont", "TkHeadingFont"):
            font.nametofont(name, root).configure(size=10)
    root.configure(background=style.lookup("TFrame", "background"))
    style.configure("Ask.TButton", font="TkHeadingFont")
    style.configure("Quiet.TLabel", foreground="#555555")
    style.configure("Error.TLabel", background="#fbe4e2", foreground="#8c1d18")


def text_field(parent: ttk.Frame, **options: Any) -> tk.Text:
    """A field of several lines in a font of one width."""
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
