"""Published manifests load, and strict reading is as severe with them as it should be."""

# The expected value comes first.

from __future__ import annotations

from pathlib import Path

import pytest
from package_samples import HIVELLM

from hivellm_ort.errors import ManifestError
from hivellm_ort.package.archive import extract
from hivellm_ort.package.manifest import ExpertManifest
from hivellm_ort.package.manifest_schema import schema_problems

_own = sorted((Path(__file__).parents[2] / "models").glob("*/manifest.json"))
_published = sorted(HIVELLM.glob("manifests/*.json"))
_packages = sorted(HIVELLM.glob("packages/*.expert"))

# The fixture of schema 1.0 that the reference packager is tested with: placeholders, and no licence.
_FIRST_FORM = ["/name", "/base_model/sha256", "/adapters/0/sha256", "/license"]


def strict_pointers(path: Path) -> list[str]:
    """The pointers that strict reading names, in the order of the file."""
    try:
        ExpertManifest.from_file(path, strict=True)
    except ManifestError as error:
        return [line.split(": ")[1] for line in str(error).split("\n")]
    return []


@pytest.mark.parametrize("path", _own, ids=lambda path: path.parent.name)
def test_own_experts(path: Path) -> None:
    """The experts of this repository are good in strict mode."""
    manifest = ExpertManifest.from_file(path, strict=True)
    assert (path.parent.name, ()) == (manifest.name, manifest.warnings)


@pytest.mark.parametrize("path", _published or [None], ids=lambda path: path and path.stem)
def test_published_manifests(path: Path | None) -> None:
    """The manifests of published experts load without warnings, and are good in strict mode."""
    if path is None:
        pytest.skip("the published manifests are not here")
    manifest = ExpertManifest.from_file(path)
    expected = (path.stem, "2.0", ("Qwen3-0.6B",), "dora", 2.0, ())
    adapter = manifest.base_models[0].adapters[0]
    bases = tuple(base.short_name for base in manifest.base_models)
    ratio = (adapter.alpha or 0) / (adapter.r or 1)
    actual = (manifest.name, manifest.schema_version, bases, adapter.type, ratio, manifest.warnings)
    assert expected == actual
    assert (0.7, 0.8, 20) == (manifest.decoding.temperature, manifest.decoding.top_p, manifest.decoding.top_k)
    assert ("hivellm", 10, True) == (
        manifest.author,
        manifest.constraints.max_chain,
        0.7 < (manifest.routing.priority or 0) < 0.9,
    )
    assert ([], []) == (strict_pointers(path), schema_problems(path))


@pytest.mark.parametrize("path", _packages or [None], ids=lambda path: path and path.stem)
def test_packaged_manifests(tmp_path: Path, path: Path | None) -> None:
    """The manifests that the reference packager and signer wrote load, nulls and all."""
    if path is None:
        pytest.skip("the published packages are not here")
    extract(path, tmp_path)
    manifest = ExpertManifest.from_file(tmp_path / "manifest.json")
    assert path.name.startswith(manifest.name)
    assert "Qwen3-0.6B" == manifest.base_models[0].short_name
    strict = {"1.0": _FIRST_FORM, "2.0": []}[manifest.schema_version]
    assert strict == strict_pointers(tmp_path / "manifest.json")
    # Of these, the two digests that are words are warnings of tolerant reading.
    assert sum("sha256" in pointer for pointer in strict) == len(manifest.warnings)
