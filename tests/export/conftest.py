"""Tiny models, made once a session; without the export extra these tests are skipped."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.extras import requires_export

requires_export()

from support import tiny
from support.exporting import Refusal

from hivellm_export.pipeline import export
from hivellm_ort.contract import ADAPTER_FILE


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


@pytest.fixture(scope="session")
def expert_folder(
    model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """An expert's folder by adapter kind and architecture; to be copied before it is changed."""
    made: dict[tuple[str, str], Path] = {}

    def make(kind: str = "lora", architecture: str = "llama") -> Path:
        if (kind, architecture) not in made:
            folder = tmp_path_factory.mktemp("experts") / f"{kind}-{architecture}"
            tiny.save_adapter(folder, model_folder(architecture), tiny.adapter_config(kind))
            made[kind, architecture] = tiny.with_manifest(folder)
        return made[kind, architecture]

    return make


@pytest.fixture(scope="session")
def bundle(
    model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """The bundle of a tiny model by architecture and precision."""
    made: dict[tuple[str, str], Path] = {}

    def make(architecture: str, precision: str) -> Path:
        if (architecture, precision) not in made:
            folder = tmp_path_factory.mktemp("bundles") / f"{architecture}-{precision}"
            export(model_folder(architecture), [], folder, precision=precision)
            made[architecture, precision] = folder
        return made[architecture, precision]

    return make


@pytest.fixture(scope="session")
def target_bundle(
    model_folder: Callable[[str], Path],
    expert_folder: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, str, str], Path]:
    """The bundle of a tiny model by architecture, target and precision; in it a DoRA expert's adapter file."""
    made: dict[tuple[str, ...], Path] = {}

    def make(architecture: str, target: str, precision: str) -> Path:
        key = (architecture, target, precision)
        if key not in made:
            folder = tmp_path_factory.mktemp("targets") / "-".join(key)
            experts = [expert_folder("dora", architecture)]
            model = model_folder(architecture)
            report = export(model, experts, folder, target=target, precision=precision, thin=True)
            with tarfile.open(folder / report.packages[0].file) as package:
                member = package.extractfile(f"onnx/{ADAPTER_FILE}")
                assert member is not None
                (folder / "base" / ADAPTER_FILE).write_bytes(member.read())
            made[key] = folder / "base"
        return made[key]

    return make


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refusal:
    """Run `hivellm-ort export` on a wrong input; see `Refusal`."""
    return Refusal(tmp_path, monkeypatch)
