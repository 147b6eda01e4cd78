"""One virtual environment per peer, with pinned versions, made when it is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.machine import processor

__all__ = [
    "ENVIRONMENTS",
    "PEERS",
    "Environment",
    "SetupError",
    "compiler_settings",
    "make_environment",
    "python_of",
    "run",
]

_STAMP = "benchmark.json"
_TORCH = "torch==2.13.0"


class SetupError(Exception):
    """A step of setting up a peer failed; the message says which one."""


@dataclass(frozen=True)
class Environment:
    """What a peer needs.

    Attributes:
        requirements: what pip installs, model conversion included; torch first, so that its index serves it.
        runtime: the distributions that running needs; their closure is the installed size.
        compiled: whether pip compiles it for this machine's CPU, so that it is of no use on another.
        unwanted: what is taken out again, because it is not used and does not fit.
    """

    requirements: tuple[str, ...]
    runtime: tuple[str, ...]
    compiled: bool = False
    unwanted: tuple[str, ...] = ()


ENVIRONMENTS = {
    "transformers": Environment(
        (
            _TORCH,
            "transformers==5.23.0",
            "peft==0.21.2",
            "accelerate==1.15.0",
            "numpy==2.4.6",
            "safetensors==0.8.0",
        ),
        ("torch", "transformers", "peft"),
    ),
    "genai": Environment(
        (
            _TORCH,
            "accelerate==1.15.0",
            "numpy==2.4.6",
            "onnx==1.23.2",
            "onnx-ir==1.1.0",
            "onnxruntime==1.31.1",
            "onnxruntime-genai==0.18.0",
            "safetensors==0.8.0",
            "transformers==5.23.0",
        ),
        ("onnxruntime-genai", "onnxruntime"),
    ),
    "llamacpp": Environment(
        ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy==2.4.6", "safetensors==0.8.0"),
        ("llama-cpp-python",),
        compiled=True,
    ),
    "optimum": Environment(
        (
            _TORCH,
            "transformers==4.57.6",
            "optimum==2.1.0",
            "optimum-onnx==0.1.0",
            "onnx==1.23.2",
            "onnxruntime==1.31.1",
            "numpy==2.4.6",
            "safetensors==0.8.0",
            "accelerate==1.15.0",
        ),
        ("optimum-onnx", "onnxruntime"),
    ),
    "openvino": Environment(
        (
            _TORCH,
            "openvino-genai==2026.4.1.0",
            "optimum-intel==2.2.0",
            "nncf==3.4.0",
            "transformers==5.5.4",
            "numpy==2.4.6",
        ),
        ("openvino-genai", "numpy"),
        # For images only; where torch is a CPU build, pip's torchvision is for another and fails to import.
        unwanted=("torchvision",),
    ),
    "onnx-genai": Environment(
        ("onnx-genai==0.1.0.dev6", "onnxruntime==1.31.1", "onnx==1.23.2", "numpy==2.4.6"),
        ("onnx-genai",),
    ),
}
PEERS = ("ours", *ENVIRONMENTS)
"""Every system there is; `ours` runs in the environment of the harness."""


def python_of(work: Path, peer: str) -> Path:
    """The interpreter of a peer's environment."""
    if peer == "ours":
        return Path(sys.executable)
    folder = work / "environments" / peer
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def compiler_settings() -> dict[str, str]:
    """Environment variables with which llama.cpp is compiled for this machine."""
    settings = {
        "CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF",
        "PIP_NO_CACHE_DIR": "1",  # pip would take a wheel that it built with other settings, or on another machine
    }
    if any(name.startswith("amx") for name in processor()[1]):
        # Its prefill kernels crash on some machines that have AMX.
        without = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
        settings |= {"CFLAGS": without, "CXXFLAGS": without}
    return settings


def _stamp(wanted: Environment) -> dict[str, Any]:
    """What an environment was made with, and, where something was compiled, for which CPU."""
    stamp: dict[str, Any] = {"requirements": list(wanted.requirements)}
    if wanted.compiled:
        name, flags = processor()
        stamp |= {"settings": compiler_settings(), "flags": sorted(flags) or [name]}
    return stamp


def make_environment(work: Path, peer: str, *, torch_index: str | None, only_ready: bool) -> Path:
    """Make the environment of `peer` unless it is there; returns its interpreter.

    Args:
        work: the working folder.
        peer: one of `PEERS`.
        torch_index: a package index for torch alone; None for pip's own.
        only_ready: make nothing.

    Raises:
        SetupError: a step failed, or the environment is not there and `only_ready`.
    """
    python = python_of(work, peer)
    if peer == "ours":
        return python
    wanted = ENVIRONMENTS[peer]
    folder, stamp = work / "environments" / peer, work / "environments" / peer / _STAMP
    made_with = _stamp(wanted)
    if python.exists() and stamp.is_file() and json.loads(stamp.read_text()) == made_with:
        return python
    if only_ready:
        raise SetupError("its environment is not set up: run without --quick once")
    run(f"{peer}: environment", [sys.executable, "-m", "venv", "--clear", str(folder)])
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    first, rest = wanted.requirements[:1], wanted.requirements[1:]
    index = ["--index-url", torch_index] if torch_index and first == (_TORCH,) else []
    if index:
        run(f"{peer}: torch", [*pip, *index, *first])
        first = ()
    run(f"{peer}: packages", [*pip, *first, *rest], compiler_settings() if wanted.compiled else None)
    if wanted.unwanted:
        run(f"{peer}: left out", [str(python), "-m", "pip", "uninstall", "-y", *wanted.unwanted])
    stamp.write_text(json.dumps(made_with))
    return python


def run(what: str, command: Sequence[str], variables: dict[str, str] | None = None) -> None:
    """Run one step of a set-up.

    Raises:
        SetupError: it cannot start, or its exit status is not 0; the message ends with the last lines it printed.
    """
    print(f"[set-up] {what}", file=sys.stderr, flush=True)
    begin = time.monotonic()
    # Everything is local: nothing may look on the hub for what a folder lacks.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", **(variables or {})}
    try:
        done = subprocess.run(
            list(command),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise SetupError(f"{what}: cannot start {command[0]}: {error}") from error
    if done.returncode:
        tail = " / ".join(done.stdout.strip().splitlines()[-3:])[-400:]
        raise SetupError(f"{what}: exit status {done.returncode}: {tail}")
    print(f"[set-up] {what}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
