"""The base's weights read back from a bundle, and adapters prepared from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import tiny

from hivellm_export.pipeline import export
from hivellm_ort import LoadError
from hivellm_ort.adapters.base_weights import BaseWeights
from hivellm_ort.contract import DECODER_JSON, DecoderConfig, StoredWeights

ModelFolder = Callable[[str], Path]
BundleFolder = Callable[[str, str], Path]
TargetBundle = Callable[[str, str, str], Path]


def opened(folder: Path) -> tuple[BaseWeights, DecoderConfig]:
    """The weights of a bundle, and its configuration."""
    config = DecoderConfig.from_file(folder / DECODER_JSON)
    return BaseWeights(folder, config), config


def one_step(weight: np.ndarray, precision: str, block: int = 32) -> np.ndarray:
    """[N, K]: by how much a value may be off: in a quantised block, a step of its largest magnitude."""
    if precision == "fp32":
        return np.zeros_like(weight)
    if precision in ("fp16", "bf16"):
        return np.abs(weight) * (2.0**-8 if precision == "bf16" else 2.0**-11) + 1e-7
    if precision == "w8a8":  # smoothing makes some columns much coarser than others
        return np.broadcast_to(np.abs(weight).max(axis=1, keepdims=True) / 127 * 8, weight.shape)
    bits = int(precision[-1])
    blocks = np.pad(weight, ((0, 0), (0, -weight.shape[1] % block))).reshape(len(weight), -1, block)
    largest = np.repeat(np.abs(blocks).max(axis=2), block, axis=1)[:, : weight.shape[1]]
    # k-quant, which int4 uses where it restores more, clips a little beyond one step.
    return largest / (1 << (bits - 1)) * (1.25 if bits == 4 else 1.001)


@pytest.mark.parametrize(
    ("target", "precision"),
    [
        ("cpu", "fp32"),
        ("cpu", "int8"),
        ("cpu", "w8a8"),
        ("cpu", "int4"),
        ("cuda", "fp16"),
        ("cuda", "bf16"),
        ("cuda", "int4"),
        ("portable", "fp16"),
    ],
)
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_module_is_read_back(
    architecture: str, target: str, precision: str, model_folder: ModelFolder, target_bundle: TargetBundle
) -> None:
    """Every weight and bias that adapters may change has the model's values, within one step of its type."""
    source = load_file(model_folder(architecture) / "model.safetensors")
    weights, config = opened(target_bundle(architecture, target, precision))
    for site in config.sites:
        block = (config.weights or config.half_weights)[site.name].block
        for part in site.parts:
            found = weights.tensor(f"{part.module}.weight")
            assert (np.float32, (part.size, site.in_features)) == (found.dtype, found.shape)
            wanted = source[f"{part.module}.weight"]
            assert (np.abs(found - wanted) <= one_step(wanted, precision, block)).all()
            if precision == "w8a8":
                assert 0.015 * np.linalg.norm(wanted) > np.linalg.norm(found - wanted)
            if part.bias:
                bias = source[f"{part.module}.bias"]
                exact = precision if config.half_weights else "fp32"
                step = one_step(bias, "fp16" if exact == "int4" else exact)
                assert (np.abs(weights.tensor(f"{part.module}.bias") - bias) <= step).all()


def test_merged_bundle_takes_no_adapter(
    model_folder: ModelFolder, expert_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """A bundle with an adapter in its weights says so instead of giving them."""
    export(model_folder("llama"), [expert_folder()], tmp_path / "out", precision="fp32", merged=True)
    from hivellm_ort.package.store import Store

    (folder,) = Store(tmp_path / "store").unpack(next((tmp_path / "out").glob("*.expert"))).bundles
    with pytest.raises(LoadError, match="merged"):
        opened(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 1 << 60}, "is not an offset"),
        ({"scales": None}, "None is not an offset"),
        ({"bits": 3}, "3 bits"),
        ({"bits": 4, "block": 7}, "blocks of 7"),
        ({"block": 0}, "blocks of 0"),
        ({"zero_points": 1 << 60}, "is not an offset"),
    ],
)
def test_places_outside_the_file(change: dict[str, Any], message: str, bundle: BundleFolder) -> None:
    """A place that is not in weights.bin, or a form that is not known, is refused by name."""
    folder = bundle("llama", "int8")
    config = DecoderConfig.from_file(folder / DECODER_JSON)
    broken = {
        name: StoredWeights(**{**dataclasses.asdict(stored), **change})
        for name, stored in config.weights.items()
    }
    weights = BaseWeights(folder, dataclasses.replace(config, weights=broken))
    with pytest.raises(LoadError, match=message):
        weights.tensor("model.layers.0.mlp.down_proj.weight")


def test_bundle_that_does_not_say_where(bundle: BundleFolder, tmp_path: Path) -> None:
    """A bundle of an earlier contract, of other sites, or without its file says what to do."""
    folder = bundle("llama", "fp32")
    config = DecoderConfig.from_file(folder / DECODER_JSON)
    with pytest.raises(LoadError, match=r"contract 1\.1.*export the base again"):
        BaseWeights(folder, dataclasses.replace(config, weights={}, contract_version="1.1"))
    with pytest.raises(LoadError, match=r"weights\.bin .* cannot be read"):
        BaseWeights(tmp_path, config)
    weights = BaseWeights(folder, config)
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.down_proj.bias", "nothing"):
        with pytest.raises(LoadError, match=f"no offset for {name}"):
            weights.tensor(name)
