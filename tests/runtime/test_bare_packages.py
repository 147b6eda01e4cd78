"""Packages as the reference packager makes them: PEFT's files at the root and no `onnx/`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.golden import bundle
from support.running import PROMPT, Packages

from hivellm_ort import AdapterError, BaseMismatchError, Expert, IntegrityError, LoadError
from hivellm_ort.adapters.prepared_adapter import PreparedAdapter
from hivellm_ort.contract import DECODER_JSON, DecoderConfig
from hivellm_ort.loading import parts
from hivellm_ort.package.archive import write
from hivellm_ort.package.store import Store

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER = {"type": "dora", "r": 4, "alpha": 8, "target_modules": ["q_proj"]}
SECOND: dict[str, Any] = {
    "name": "expert-bare",
    "version": "1.0.0",
    "schema_version": "2.0",
    "base_models": [{"name": "F:/Node\\models/Tiny", "sha256": "", "adapters": [ADAPTER]}],
}
FIRST: dict[str, Any] = {
    "name": "expert-bare",
    "version": "1.0.0",
    "base_model": {"name": "tiny"},
    "adapters": [ADAPTER],
}

Pack = Callable[..., Path]


@pytest.fixture(scope="module")
def bundles(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base bundle of the experts by precision."""
    work = tmp_path_factory.mktemp("bundles")
    shutil.copytree(packages.base, work / "fp32")
    for precision in ("int8", "int4"):
        bundle(precision, work / precision)
    return {path.name: path for path in work.iterdir()}


@pytest.fixture
def pack(packages: Packages, tmp_path: Path) -> Pack:
    """Make a package of an adapter with any manifest. Its files are at the path `at`."""

    def make(
        kind: str = "dora", manifest: dict[str, Any] = SECOND, at: tuple[str, ...] = ("",), suffix: str = ""
    ) -> Path:
        folder = packages.lora_folder.with_name(kind)
        members: list[tuple[str, Path | bytes]] = [("manifest.json", json.dumps(manifest).encode())]
        for place in at:
            prefix = f"{place}/" if place else ""
            members += [(prefix + name, folder / name) for name in (CONFIG, WEIGHTS)]
        members += [("tokenizer.json", b"placeholder"), ("README.md", b"# Bare")]
        path = tmp_path / f"bare{suffix}.expert"
        write(path, members)
        return path

    return make


def answer(package: Path, cache: Path, **options: Any) -> tuple[int, ...]:
    """Twenty greedy tokens."""
    with Expert.load(package, cache_dir=cache, threads=1, **options) as expert:
        return expert.generate(PROMPT, temperature=0, max_tokens=20).tokens


def expected(packages: Packages, kind: str) -> tuple[int, ...]:
    """The answer of the exported package."""
    with packages.load(kind) as expert:
        return expert.generate(PROMPT, temperature=0, max_tokens=20).tokens


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_answers_as_the_exported_package(
    kind: str, packages: Packages, bundles: dict[str, Path], pack: Pack, tmp_path: Path
) -> None:
    """On an fp32 bundle the adapter is prepared to the same numbers as at export, and answers the same."""
    wanted = expected(packages, kind)
    assert wanted == answer(pack(kind), tmp_path / "cache", base=bundles["fp32"])
    assert len(set(wanted)) > 1
    (path,) = (tmp_path / "cache" / "adapters").glob("*.safetensors")
    exported = Store(packages.cache).unpack(getattr(packages, kind)).adapter
    assert exported is not None
    made, original = PreparedAdapter.from_file(path), PreparedAdapter.from_file(exported)
    assert original.modules.keys() == made.modules.keys()
    for name, module in original.modules.items():
        for field in dataclasses.fields(module):
            np.testing.assert_array_equal(
                getattr(made.modules[name], field.name), getattr(module, field.name)
            )


@pytest.mark.parametrize(("precision", "tolerance"), [("int8", 0.002), ("int4", 0.03)])
def test_magnitudes_on_a_quantised_bundle(
    precision: str, tolerance: float, packages: Packages, bundles: dict[str, Path], pack: Pack, tmp_path: Path
) -> None:
    """DoRA's norms come from the dequantised weights, which differ from the model's by the rounding."""
    answer(pack("dora"), tmp_path / "cache", base=bundles[precision])
    (path,) = (tmp_path / "cache" / "adapters").glob("*.safetensors")
    exported = Store(packages.cache).unpack(packages.dora).adapter
    assert exported is not None
    made, original = PreparedAdapter.from_file(path), PreparedAdapter.from_file(exported)
    ratios = np.concatenate(
        [np.asarray(made.modules[name].scale) / module.scale for name, module in original.modules.items()]
    )
    assert 0 < np.abs(ratios - 1).mean() < tolerance


def test_prepared_once(
    bundles: dict[str, Path], pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second load takes the prepared adapter from the cache; another bundle gets one of its own."""
    package, cache = pack(), tmp_path / "cache"
    first = answer(package, cache, base=bundles["fp32"])
    answer(package, cache, base=bundles["int8"])
    assert 2 == len(list((cache / "adapters").glob("*.safetensors")))

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("prepared again")

    monkeypatch.setattr(parts, "prepare", fail)
    assert first == answer(package, cache, base=bundles["fp32"])


@pytest.mark.parametrize("form", [FIRST, SECOND], ids=["v1", "v2"])
@pytest.mark.parametrize("place", ["models/Tiny", "models/other/int8", "models/anything"])
def test_base_found_by_name(
    form: dict[str, Any],
    place: str,
    packages: Packages,
    bundles: dict[str, Path],
    pack: Pack,
    tmp_path: Path,
) -> None:
    """Without base= a bundle in `models/` is found by the manifest's name for it, however it is spelt."""
    folder = tmp_path / "cache" / place
    shutil.copytree(bundles["fp32"], folder)
    config = DecoderConfig.from_file(folder / DECODER_JSON)
    if place == "models/Tiny":  # by the folder's name alone
        (folder / DECODER_JSON).write_bytes(dataclasses.replace(config, name="other").to_bytes())
    else:
        (folder / DECODER_JSON).write_bytes(dataclasses.replace(config, name="TINY").to_bytes())
    assert expected(packages, "dora") == answer(pack("dora", form), tmp_path / "cache")


def test_base_of_another_package(packages: Packages, pack: Pack, tmp_path: Path) -> None:
    """The base that an exported package brought into the cache serves a bare one of the same name."""
    answer(packages.lora, tmp_path / "cache")
    assert expected(packages, "dora") == answer(pack("dora"), tmp_path / "cache")


def test_base_found_by_digest(
    packages: Packages, bundles: dict[str, Path], pack: Pack, tmp_path: Path
) -> None:
    """A digest in the manifest decides, not names. A bundle of other weights is not used."""
    digest = DecoderConfig.from_file(bundles["fp32"] / DECODER_JSON).source_sha256
    pinned = [{**SECOND["base_models"][0], "name": "someone's base", "sha256": f"sha256:{digest}"}]
    other = [{**SECOND["base_models"][0], "sha256": "0" * 64}]
    shutil.copytree(bundles["fp32"], tmp_path / "cache" / "models" / "tiny")
    package = pack("dora", {**SECOND, "base_models": pinned})
    assert expected(packages, "dora") == answer(package, tmp_path / "cache")
    package = pack("dora", {**SECOND, "base_models": other}, suffix="2")
    with pytest.raises(LoadError, match="needs a base bundle of Tiny, and none was found"):
        answer(package, tmp_path / "cache")
    with pytest.raises(BaseMismatchError, match=r"Tiny \(000000000000…\).*the base given is tiny"):
        answer(package, tmp_path / "cache", base=bundles["fp32"])


def test_same_name_for_other_weights(bundles: dict[str, Path], pack: Pack, tmp_path: Path) -> None:
    """Two bundles of one name and different weights are not guessed between; two precisions of one are fine."""
    models = tmp_path / "cache" / "models"
    for precision in ("fp32", "int8"):
        shutil.copytree(bundles[precision], models / precision)
    assert answer(pack(), tmp_path / "cache", base=bundles["int8"]) == answer(pack(), tmp_path / "cache")
    config = DecoderConfig.from_file(models / "fp32" / DECODER_JSON)
    changed = dataclasses.replace(config, source_sha256="1" * 64)
    (models / "fp32" / DECODER_JSON).write_bytes(changed.to_bytes())
    with pytest.raises(LoadError, match=r"several base models are called Tiny .*pass base="):
        answer(pack(), tmp_path / "cache")


def test_several_base_models(
    packages: Packages, bundles: dict[str, Path], pack: Pack, tmp_path: Path
) -> None:
    """Of several base models in one manifest the one at hand is taken, with the adapter at its path."""
    models = [
        {"name": "Huge-70B", "adapters": [{**ADAPTER, "path": "huge"}]},
        {"name": "tiny", "adapters": [{**ADAPTER, "path": "small/adapter"}]},
    ]
    manifest = {**SECOND, "base_models": models}
    package = pack("dora", manifest, at=("weights/small/adapter",))
    with pytest.raises(LoadError, match="needs a base bundle of Huge-70B, tiny, and none was found"):
        answer(package, tmp_path / "cache")
    wanted = expected(packages, "dora")
    assert wanted == answer(package, tmp_path / "cache", base=bundles["fp32"])
    shutil.copytree(bundles["fp32"], tmp_path / "cache" / "models" / "tiny")
    assert wanted == answer(package, tmp_path / "cache")
    renamed = {**SECOND, "base_models": [{**model, "name": f"x-{model['name']}"} for model in models]}
    with pytest.raises(
        BaseMismatchError, match="has adapters for x-Huge-70B, x-tiny; the base given is tiny"
    ):
        answer(pack("dora", renamed, suffix="2"), tmp_path / "cache", base=bundles["fp32"])


@pytest.mark.parametrize(
    ("path", "at"),
    [
        ("qwen3-06b/adapter", ""),
        ("qwen3-06b/adapter", "qwen3-06b/adapter"),
        ("qwen3-06b/adapter", "weights/qwen3-06b/adapter"),
        ("weights/qwen3-06b/checkpoint-1250", "weights/qwen3-06b/checkpoint-1250"),
        (f"qwen3-06b/adapter/{WEIGHTS}", "weights/qwen3-06b/adapter"),
        (None, "weights/qwen3-06b/checkpoint-1250"),
        ("F:\\adapters\\x", "weights/qwen3-06b/final"),
        ("../../elsewhere", ""),
    ],
)
def test_places_of_the_adapter(
    path: str | None, at: str, packages: Packages, bundles: dict[str, Path], pack: Pack, tmp_path: Path
) -> None:
    """At the root, at `adapters[].path` as folder or file, under `weights/`, or in the only checkpoint."""
    models = [{"name": "tiny", "adapters": [{**ADAPTER, "path": path}]}]
    package = pack("dora", {**SECOND, "base_models": models}, at=(at,))
    assert expected(packages, "dora") == answer(package, tmp_path / "cache", base=bundles["fp32"])


def test_several_checkpoints(
    packages: Packages, bundles: dict[str, Path], pack: Pack, tmp_path: Path
) -> None:
    """Of several checkpoints the one that `packaging_checkpoint` names; without it they are listed."""
    at = ("weights/checkpoint-100", "weights/checkpoint-200")
    with pytest.raises(
        AdapterError, match=r"2 adapters \('weights/checkpoint-100', 'weights/checkpoint-200'\)"
    ):
        answer(pack("dora", at=at), tmp_path / "cache", base=bundles["fp32"])
    named = {**SECOND, "training": {"packaging_checkpoint": "checkpoint-200"}}
    package = pack("dora", named, at=at, suffix="2")
    assert expected(packages, "dora") == answer(package, tmp_path / "cache", base=bundles["fp32"])


def test_folder(packages: Packages, bundles: dict[str, Path], pack: Pack, tmp_path: Path) -> None:
    """An unpacked package, or an expert's own folder, loads as the file does."""
    unpacked = Store(tmp_path / "store").unpack(pack("dora")).root
    assert expected(packages, "dora") == answer(unpacked, tmp_path / "cache", base=bundles["fp32"])


def test_what_cannot_be_loaded(
    packages: Packages, bundles: dict[str, Path], pack: Pack, tmp_path: Path
) -> None:
    """A missing adapter, another base's adapter, a wrong digest, a merged base: each says what is wrong."""
    cache = tmp_path / "cache"
    with pytest.raises(AdapterError, match="neither at the package's root nor where"):
        answer(pack("dora", at=()), cache, base=bundles["fp32"])
    other = tmp_path / "other"
    other.mkdir()
    for path in packages.lora_folder.with_name("other").iterdir():
        shutil.copy(path, other)
    (other / "manifest.json").write_text(json.dumps(SECOND))
    with pytest.raises(BaseMismatchError, match="another base model"):
        answer(other, cache, base=bundles["fp32"])
    wrong = [{**SECOND["base_models"][0], "adapters": [{**ADAPTER, "sha256": "0" * 64}]}]
    with pytest.raises(IntegrityError, match=rf"{WEIGHTS} differs from the SHA-256 that the manifest states"):
        answer(pack("dora", {**SECOND, "base_models": wrong}, suffix="2"), cache, base=bundles["fp32"])
    content = (packages.lora_folder.with_name("dora") / WEIGHTS).read_bytes()
    right = [
        {
            **SECOND["base_models"][0],
            "adapters": [{**ADAPTER, "sha256": hashlib.sha256(content).hexdigest()}],
        }
    ]
    assert answer(pack("dora", {**SECOND, "base_models": right}, suffix="3"), cache, base=bundles["fp32"])
    (merged,) = Store(packages.cache).unpack(packages.merged).bundles
    with pytest.raises(LoadError, match="merged in"):
        answer(pack("dora", suffix="4"), cache, base=merged)
    with pytest.raises(LoadError, match="not a base bundle"):
        answer(pack("dora", suffix="5"), cache, base=tmp_path)
    assert {"adapters", "packages", "records"} >= {
        path.name for path in cache.iterdir() if path.is_dir() and any(path.iterdir())
    } - {"tmp", "blobs"}
