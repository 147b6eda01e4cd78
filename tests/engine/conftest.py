"""Bundles of one tiny model for every target, made once a session; without the export extra they are skipped."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

for _name in ("torch", "transformers", "peft", "optimum", "onnx_ir"):
    pytest.importorskip(_name, reason="needs the export extra")

_TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_TESTS / "runtime"), str(_TESTS / "export")]

import tiny  # noqa: E402
from exporting import edit_tensors  # noqa: E402
from forms import Bundles  # noqa: E402
from standins import runnable  # noqa: E402

from hivellm_export.pipeline import export  # noqa: E402
from hivellm_ort.adapters.prepared import PreparedAdapter  # noqa: E402
from hivellm_ort.contract import ADAPTER_FILE  # noqa: E402

CONTEXT = 512
KINDS = ("lora", "dora")


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is made once."""
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="session")
def model(work: Path) -> Path:
    """A qwen3: norms of query and key, several heads a key, tied embeddings."""
    folder = tiny.save_model(work / "model", "qwen3", max_position_embeddings=CONTEXT)
    # <|im_end|> is never the most likely token: answers are as long as a test wants them.
    edit_tensors(
        folder / "model.safetensors", lambda tensors: tensors["model.embed_tokens.weight"][2].fill(0)
    )
    return folder


@pytest.fixture(scope="session")
def experts(model: Path, work: Path) -> list[Path]:
    """A LoRA and a DoRA expert on it."""
    return [
        tiny.with_manifest(
            tiny.save_adapter(work / kind, model, tiny.adapter_config(kind), seed=seed), f"expert-{kind}"
        )
        for seed, kind in enumerate(KINDS, 1)
    ]


@pytest.fixture(scope="session")
def package(model: Path, experts: list[Path], work: Path) -> Callable[..., Path]:
    """The folder of packages, one an expert, by target and precision, with the cache's type behind a plus."""
    made: dict[tuple[str, ...], Path] = {}

    def make(target: str, precision: str) -> Path:
        key = (target, precision)
        if key not in made:
            made[key] = work / "-".join(key)
            weights, _, cache = precision.partition("+")
            export(model, experts, made[key], target=target, precision=weights, cache=cache or None)
        return made[key]

    return make


@pytest.fixture(scope="session")
def bundles(package: Callable[..., Path], work: Path) -> Bundles:
    """See `Bundles`."""

    def make(target: str, precision: str) -> tuple[Path, dict[str, PreparedAdapter]]:
        adapters = {}
        for kind in KINDS:
            folder = work / f"bundle-{target}-{precision}-{kind}"
            with tarfile.open(next(package(target, precision).glob(f"*{kind}*.expert"))) as archive:
                archive.extractall(folder, filter="data")
            adapters[kind] = PreparedAdapter.from_file(folder / "onnx" / ADAPTER_FILE)
        return runnable(folder / "onnx"), adapters

    return Bundles(make)
