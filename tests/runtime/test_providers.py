"""Devices, and the one ONNX Runtime of an environment."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator

import pytest
from running import Packages, engine_of, engines

from hivellm_ort import ProviderError
from hivellm_ort.engine.providers import choose_provider, import_onnxruntime


@pytest.fixture
def fresh_import() -> Iterator[None]:
    """The search for ONNX Runtime is made anew in a test, and again after it."""
    import_onnxruntime.cache_clear()
    yield
    import_onnxruntime.cache_clear()


@pytest.mark.parametrize("device", ["cuda", "tpu", "", "cuda:0", "CPU "])
def test_unknown_device(device: str, packages: Packages) -> None:
    """The message names the device and the one the package was exported for; nothing stays loaded."""
    before = engines()
    with pytest.raises(ProviderError, match="'cpu'") as caught:
        packages.load("lora", device=device)
    assert repr(device) in str(caught.value)
    assert before == engines()


@pytest.mark.parametrize("device", [None, "auto", "cpu", "cpu:0"])
def test_known_device(device: str | None) -> None:
    """What was exported for the CPU runs there under each of its names."""
    assert "CPUExecutionProvider" == choose_provider(device, "cpu")


def test_target_of_another_version() -> None:
    """Graphs for a provider that this version does not know are refused by name."""
    with pytest.raises(ProviderError, match="'npu'"):
        choose_provider(None, "npu")


def test_names_of_one_device_share_an_engine(packages: Packages) -> None:
    """Experts of one base share its session however the same device was asked for."""
    with packages.load("lora") as one, packages.load("dora", device="auto") as two:
        assert engine_of(one) is engine_of(two)
        with packages.load("ia3", device="cpu") as three:
            assert engine_of(one) is engine_of(three)


@pytest.mark.usefixtures("fresh_import")
def test_two_distributions(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two distributions that overwrite each other are named, and nothing stays loaded."""
    both = {"onnxruntime": ["onnxruntime-gpu", "onnxruntime", "onnxruntime-gpu"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: both)
    before = engines()
    with pytest.raises(ProviderError, match="onnxruntime, onnxruntime-gpu; uninstall"):
        packages.load("lora")
    assert before == engines()


@pytest.mark.usefixtures("fresh_import")
def test_no_distribution(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ONNX Runtime the message says what to install."""
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"numpy": ["numpy"]})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    before = engines()
    with pytest.raises(ProviderError, match=r"hivellm-ort\[cpu\]"):
        packages.load("lora")
    assert before == engines()
