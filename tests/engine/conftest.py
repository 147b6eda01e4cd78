"""Bundles of one tiny model for every target: those of the golden packages, others exported once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from forms import Bundles
from golden.sources import BASES, save_base
from support.extras import requires_export
from support.golden import BASE, bundle, golden, members, with_base

from hivellm_ort.adapters.prepared_adapter import PreparedAdapter
from hivellm_ort.contract import ADAPTER_FILE

KINDS = ("lora", "dora")
# Where the golden packages have a bundle: package and target.
_GOLDEN = {
    ("cpu", "fp32+int8"): ("forms", "cpu"),
    ("cuda", "bf16"): ("forms", "cuda"),
    ("dml", "fp16"): ("half", "dml"),
    ("portable", "fp16"): ("half", "portable"),
}


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is made once."""
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="session")
def base(work: Path) -> Callable[[str, str], Path]:
    """The bundle of the model by target and precision, with the cache's type behind a plus."""
    made: dict[tuple[str, str], Path] = {("cpu", "fp32"): BASE}

    def make(target: str, precision: str) -> Path:
        key = (target, precision)
        if key in made:
            return made[key]
        folder = work / "-".join(("base", *key))
        if key in _GOLDEN:
            made[key] = bundle(_GOLDEN[key][0], folder, _GOLDEN[key][1])
            return made[key]
        requires_export()
        from hivellm_export.pipeline import export

        model = work / "tiny"
        if not model.is_dir():
            save_base(model, BASES["tiny"])
        weights, _, cache = precision.partition("+")
        export(model, [], folder, target=target, precision=weights, cache=cache or None)
        made[key] = folder
        return folder

    return make


@pytest.fixture(scope="session")
def package(base: Callable[[str, str], Path], work: Path) -> Callable[..., Path]:
    """The folder of packages, one an expert, by target and precision, with the cache's type behind a plus."""
    made: dict[tuple[str, str], Path] = {}

    def make(target: str, precision: str) -> Path:
        key = (target, precision)
        if key not in made:
            own = base(*key)
            folder = work / "-".join(key)
            folder.mkdir()
            for kind in KINDS:
                with_base(kind, folder / f"expert-{kind}-tiny.v1.0.0.expert", base=own)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def bundles(base: Callable[[str, str], Path], work: Path) -> Bundles:
    """See `Bundles`."""

    def make(target: str, precision: str) -> tuple[Path, dict[str, PreparedAdapter]]:
        folder = base(target, precision)
        if target == "cuda":  # the CPU provider runs a changed copy
            requires_export()
            from standins import runnable

            folder = runnable(folder)
        adapters = {}
        for kind in KINDS:
            path = work / f"{kind}.safetensors"
            path.write_bytes(members(golden(kind))[f"onnx/{ADAPTER_FILE}"])
            adapters[kind] = PreparedAdapter.from_file(path)
        return folder, adapters

    return Bundles(make)
