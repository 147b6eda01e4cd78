"""Environments with another ONNX Runtime than the one of the tests."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterator

import pytest
from fake_runtimes import CPU, FakeRuntime, Install

from hivellm_ort.engine import environment, providers


@pytest.fixture
def fresh() -> Iterator[None]:
    """The search for ONNX Runtime is made anew in a test, and again after it."""
    for cached in (environment.import_onnxruntime, environment.distributions):
        cached.cache_clear()
    yield
    for cached in (environment.import_onnxruntime, environment.distributions):
        cached.cache_clear()


@pytest.fixture
def installed(fresh: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make distributions be there that bring the module `onnxruntime`."""

    def install(*names: str) -> None:
        monkeypatch.setattr(
            importlib.metadata, "packages_distributions", lambda: {"onnxruntime": list(names)}
        )

    return install


@pytest.fixture
def runtime(installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make an ONNX Runtime with these providers be the one of the environment, on a machine with `gpus`."""

    def install(*offered: str, distribution: str = "onnxruntime", gpus: int | None = None) -> FakeRuntime:
        fake = FakeRuntime([*offered, CPU])
        installed(distribution)
        monkeypatch.setitem(sys.modules, "onnxruntime", fake.module())
        monkeypatch.setattr(providers, "cuda_devices", lambda: gpus)
        return fake

    return install
