"""The real base model and the three real experts, exported once in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.extras import requires_export

requires_export()

ROOT = Path(__file__).parents[2]
EXPERTS = ("expert-sql", "expert-elastic", "expert-json")


@pytest.fixture(scope="session")
def base_file() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file: from the cache, or downloaded and checked."""
    from hivellm_export.fetch import fetch_base
    from hivellm_ort.package.store import Store

    return fetch_base(Store().root / "downloads")


@pytest.fixture(scope="session")
def exported(base_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the thin packages of all experts, and their fp32 bundle in `base/`."""
    from hivellm_export.pipeline import export

    output = tmp_path_factory.mktemp("fp32") / "out"
    export(base_file, [ROOT / "models" / name for name in EXPERTS], output, precision="fp32", thin=True)
    return output


@pytest.fixture(scope="session")
def shared_experts() -> Path:
    """The folder with reference outputs of transformers and PEFT."""
    folder = ROOT.parent / "shared" / "experts"
    if not folder.is_dir():
        pytest.skip("the reference outputs are not beside this checkout")
    return folder
