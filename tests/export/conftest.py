"""Tiny models, made once a session; without the export extra these tests are skipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

for _name in ("torch", "transformers", "peft", "optimum", "onnx_ir"):
    pytest.importorskip(_name, reason="needs the export extra")

import tiny  # noqa: E402


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model by architecture."""
    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = tiny.save_model(
                tmp_path_factory.mktemp("models") / architecture, architecture
            )
        return made[architecture]

    return make
