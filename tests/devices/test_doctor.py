"""`hivellm-ort doctor`."""

from __future__ import annotations

import json
import platform
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_runtimes import CPU, CUDA, Install

from hivellm_ort import __version__
from hivellm_ort.cli.main import main
from hivellm_ort.engine.environment import cpu_flags

CPUINFO_X86 = (
    "processor\t: 0\nmodel name\t: a CPU\nflags\t\t: fpu avx2 avx512_vnni amx_int8\n\nprocessor\t: 1\n"
)
CPUINFO_ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n"


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command on a store of its own."""
    monkeypatch.setenv("HIVELLM_HOME", str(tmp_path / "store"))
    return lambda *arguments: CliRunner().invoke(main, ["doctor", *arguments])


def document(result: Result) -> Any:
    """What the command printed as JSON."""
    return json.loads(result.stdout)


def test_an_environment_that_works(doctor: Callable[..., Result], runtime: Install, tmp_path: Path) -> None:
    """Versions, providers, devices and the store are told, and nothing is written."""
    runtime(CUDA, distribution="onnxruntime-gpu", gpus=1)
    result = doctor("--json")
    assert 0 == result.exit_code, result.output
    report = document(result)
    assert (True, __version__, platform.python_version()) == (
        report["ok"],
        report["hivellm_ort"],
        report["python"],
    )
    assert {
        "distributions": ["onnxruntime-gpu"],
        "version": "1.99.0",
        "providers": [CUDA, CPU],
        "error": None,
    } == report["onnxruntime"]
    devices = report["devices"]
    assert {"cpu": "cpu", "cuda": "cuda", "dml": None, "portable": "cuda"} == devices["auto"]
    assert [True, True, False, False] == [
        devices[name]["available"] for name in ("cpu", "cuda", "dml", "coreml")
    ]
    assert ["cpu", "portable"] == devices["cpu"]["targets"]
    assert {"llguidance", "numpy", "tokenizers"} == set(report["libraries"])
    assert {"root": str(tmp_path / "store"), "bytes": 0, "max_bytes": None, "error": None} == report["store"]
    assert [] == list(tmp_path.iterdir())


def test_text(doctor: Callable[..., Result], runtime: Install) -> None:
    """A line for each device says what it runs, or why not."""
    runtime(CUDA, distribution="onnxruntime-gpu", gpus=None)
    lines = doctor().stdout.splitlines()
    assert "runtime        onnxruntime-gpu 1.99.0: CUDAExecutionProvider, CPUExecutionProvider" in lines
    assert "device auto    graphs for portable: cpu" in lines
    assert "device auto    graphs for cuda: no device here runs them" in lines
    assert "device cpu     available, runs graphs for cpu, portable" in lines
    assert any(line.startswith("device cuda    no NVIDIA driver was found") for line in lines)


def test_no_onnxruntime(
    doctor: Callable[..., Result], installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has to be repaired is told, with status 1, and no traceback."""
    installed()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = doctor("--json")
    assert 1 == result.exit_code
    report = document(result)
    assert not report["ok"]
    assert "hivellm-ort[cpu]" in report["onnxruntime"]["error"]
    assert [False] * 4 == [
        device["available"] for name, device in report["devices"].items() if name != "auto"
    ]
    text = doctor()
    assert 1 == text.exit_code
    assert "runtime        ONNX Runtime is not installed" in text.stdout


def test_two_distributions(doctor: Callable[..., Result], installed: Callable[..., None]) -> None:
    """Both are listed, also where the module cannot be used."""
    installed("onnxruntime", "onnxruntime-directml")
    report = document(doctor("--json"))
    assert ["onnxruntime", "onnxruntime-directml"] == report["onnxruntime"]["distributions"]
    assert not report["ok"]


def test_store_that_cannot_be_read(
    doctor: Callable[..., Result], runtime: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong setting of the store is told as well."""
    runtime()
    monkeypatch.setenv("HIVELLM_CACHE_SIZE", "plenty")
    result = doctor("--json")
    assert 1 == result.exit_code
    assert "HIVELLM_CACHE_SIZE" in document(result)["store"]["error"]


def test_no_folder_but_the_store(
    doctor: Callable[..., Result],
    installed: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A report can be shown to others: folders of the machine are left out of what the system says."""
    library = Path(sysconfig.get_path("platlib"), "onnxruntime", "capi", "x.so")
    installed("onnxruntime")

    class Refusing:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "onnxruntime":
                raise ImportError(f"dlopen({library}, 2): no")

    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Refusing, *sys.meta_path])
    report = document(doctor("--json"))
    assert "x.so, 2): no" in report["onnxruntime"]["error"]
    assert str(tmp_path / "store") == report["store"].pop("root")
    text = json.dumps(report)
    assert [] == [folder for folder in (sys.prefix, str(Path.home()), str(tmp_path)) if folder in text]


@pytest.mark.parametrize(
    ("machine", "text", "expected"),
    [
        (
            "x86_64",
            CPUINFO_X86,
            {
                "avx2": True,
                "avx_vnni": False,
                "avx512f": False,
                "avx512_vnni": True,
                "amx_int8": True,
                "amx_bf16": False,
            },
        ),
        ("aarch64", CPUINFO_ARM, {"asimddp": True, "i8mm": True, "sve": False}),
        ("x86_64", "processor : 0\n", {}),
        ("arm64", None, {}),
    ],
    ids=["x86", "arm", "nothing said", "no such file"],
)
def test_cpu_flags(
    machine: str, text: str | None, expected: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flags of Linux are told for the machine's own kind, and nothing where nothing is known."""

    def read(*_: object, **__: object) -> str:
        if text is None:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", read)
    assert expected == cpu_flags()
