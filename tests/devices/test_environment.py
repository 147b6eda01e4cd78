"""Environments in which ONNX Runtime cannot be used, and what is said of each."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import platform
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from hivellm_ort import ProviderError
from hivellm_ort.engine import providers
from hivellm_ort.engine.environment import import_onnxruntime

Installed = Callable[..., None]


class _Broken(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A module `onnxruntime` whose import raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name == "onnxruntime" else None

    def exec_module(self, _: ModuleType) -> None:
        raise self.error


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Exception], None]]:
    """Make `import onnxruntime` raise."""

    def install(error: Exception) -> None:
        monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
        monkeypatch.setattr(sys, "meta_path", [_Broken(error), *sys.meta_path])

    return install


def refusal() -> str:
    """The message with which ONNX Runtime is refused, on one line."""
    with pytest.raises(ProviderError) as caught:
        import_onnxruntime()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_none(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ONNX Runtime the message says what to install."""
    installed()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert refusal().startswith(
        "ONNX Runtime is not installed: install exactly one of: pip install 'hivellm-ort[cpu]'"
    )


def test_two(installed: Installed) -> None:
    """Two distributions that overwrite each other are named once each, sorted."""
    installed("onnxruntime-gpu", "onnxruntime", "onnxruntime-gpu")
    assert "overwrite each other: onnxruntime, onnxruntime-gpu; uninstall all of them" in refusal()


def test_one_of_two_was_uninstalled(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of the folder imports as an empty module."""
    installed("onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    assert "uninstall onnxruntime and delete the folder" in refusal()


def test_files_are_missing(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution that is listed, and whose files are gone, is to be installed again."""
    installed("onnxruntime-directml")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install --force-reinstall onnxruntime-directml" in refusal()


def test_dependency_is_missing(installed: Installed, broken: Callable[[Exception], None]) -> None:
    """A module that ONNX Runtime itself needs is named."""
    installed("onnxruntime")
    broken(ModuleNotFoundError("No module named 'flatbuffers'", name="flatbuffers"))
    assert "onnxruntime needs the module flatbuffers" in refusal()


@pytest.mark.parametrize(("machine", "file"), [("AMD64", "x64"), ("ARM64", "arm64")])
def test_visual_cpp_runtime(
    machine: str,
    file: str,
    installed: Installed,
    broken: Callable[[Exception], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A DLL that does not load on Windows gives the link to the runtime for this processor."""
    installed("onnxruntime")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    broken(
        ImportError(
            "DLL load failed while importing onnxruntime_pybind11_state: A dynamic link library (DLL) "
            "initialization routine failed."
        )
    )
    assert f"https://aka.ms/vs/17/release/vc_redist.{file}.exe" in refusal()


@pytest.mark.parametrize(
    "text",
    [
        "dlopen(onnxruntime_pybind11_state.so, 0x0002): tried: 'x' (mach-o file, but is an\n incompatible "
        "architecture (have 'x86_64', need 'arm64'))",
        "onnxruntime_pybind11_state.so: wrong ELF class: ELFCLASS64",
        "DLL load failed while importing onnxruntime_pybind11_state: %1 is not a valid Win32 application.",
    ],
    ids=["macos", "linux", "windows"],
)
def test_python_for_another_processor(
    text: str, installed: Installed, broken: Callable[[Exception], None]
) -> None:
    """Each system's words for it give the same cure."""
    installed("onnxruntime")
    broken(ImportError(text))
    message = refusal()
    assert "built for different processors" in message
    assert f"this Python runs as {platform.machine()}" in message


def test_python_of_32_bits(
    installed: Installed, broken: Callable[[Exception], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no wheel for it, and pip does not say why."""
    installed()
    broken(ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime"))
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    assert "this Python has 32 bits" in refusal()


@pytest.mark.parametrize(
    "error",
    [ImportError("cannot import name 'RunOptions'"), RuntimeError("CUDA version"), OSError("libc.so.6: no")],
    ids=["name", "runtime", "file"],
)
def test_anything_else(error: Exception, installed: Installed, broken: Callable[[Exception], None]) -> None:
    """Any other error of the import is shown, with what to do."""
    installed("onnxruntime-gpu")
    broken(error)
    message = refusal()
    assert message.startswith(f"onnxruntime-gpu cannot be imported ({error}): uninstall it, then install")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Make the NVIDIA driver's library be this."""
    providers.cuda_devices.cache_clear()

    def install(library: Any) -> None:
        def load(_: str) -> Any:
            if library is None:
                raise OSError("cannot open shared object file")
            return library

        monkeypatch.setattr("ctypes.CDLL", load)

    yield install
    providers.cuda_devices.cache_clear()


class _Driver:
    """A driver library that answers as told."""

    def __init__(self, status: int, count: int) -> None:
        self.status = status
        self.count = count

    def cuInit(self, _: int) -> int:
        return self.status

    def cuDeviceGetCount(self, where: Any) -> int:
        where._obj.value = self.count
        return 0


@pytest.mark.parametrize(
    ("library", "expected"), [(None, None), (_Driver(100, 0), 0), (_Driver(0, 0), 0), (_Driver(0, 3), 3)]
)
def test_what_the_driver_shows(
    library: _Driver | None, expected: int | None, driver: Callable[[Any], None]
) -> None:
    """No library, a library that does not start, and a number of GPUs are told apart."""
    driver(library)
    assert expected == providers.cuda_devices()
