"""Exports that must fail, seen from the shell, and files to make them fail with."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from hivellm_ort.cli.main import main

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

Tensors = dict[str, np.ndarray]


class Refusal:
    """Runs `hivellm-ort export … --json` and checks what is the same for every refusal.

    The exit status is 2; standard output is one JSON object, standard error the same message on a line and nothing
    else; the output folder, the folders above it and the temporary folder are as they were.
    """

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        self._parent = tmp_path / "parent"
        self._parent.mkdir()
        (self._parent / "other.txt").write_text("kept")
        self._monkeypatch = monkeypatch
        self._temporary = tmp_path / "temporary"
        self._temporary.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(self._temporary))

    def __call__(
        self, base: Path, *experts: Path, options: tuple[str, ...] = (), output: Path | None = None
    ) -> tuple[str, str]:
        """Type and message of the error."""
        place = output or self._parent / "new" / "out"
        arguments = ["export", "--base", str(base), "--output", str(place), "--json"]
        arguments += [] if "--precision" in options else ["--precision", "fp32"]
        for expert in experts:
            arguments += ["--expert", str(expert)]
        arguments += options
        self._monkeypatch.setattr(sys, "argv", ["hivellm-ort", *arguments])
        before = contents(self._parent)
        result = CliRunner().invoke(main, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise AssertionError("the command ended with a traceback") from result.exception
        assert 2 == result.exit_code, result.output
        assert before == contents(self._parent)
        assert [] == list(self._temporary.iterdir())
        error = json.loads(result.stdout)["error"]
        assert {"type", "message"} == set(error)
        assert f"error: {error['message']}\n" == result.stderr
        return error["type"], error["message"]


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return every file below `folder` with its bytes, and every folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def copied(folder: Path, place: Path) -> Path:
    """Return a copy that a test may change."""
    return Path(shutil.copytree(folder, place))


def edit_json(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_tensors(path: Path, change: Callable[[Tensors], object]) -> None:
    """Change the tensors of a safetensors file in place."""
    tensors = load_file(path)
    change(tensors)
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path, {"format": "pt"})


def truncate(path: Path, *, to: int) -> None:
    """Truncate a file."""
    path.write_bytes(path.read_bytes()[:to])
