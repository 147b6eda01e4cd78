"""One virtual environment per peer, with pinned versions, made when it is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ENVIRONMENTS", "PEERS", "Environment", "SetupError", "make_environment", "python_of", "run"]

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
        variables: environment variables of the installation.
        unwanted: what is taken out again, because it is not used and does not fit.
    """

    requirements: tuple[str, ...]
    runtime: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    unwanted: tuple[str, ...] = ()


# AMX off: its prefill kernels crash on some machines that have AMX. The rest is what a Xeon of 2019 has.
_LLAMA_FLAGS = (
    "-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX2=ON "
    "-DGGML_FMA=ON -DGGML_F16C=ON -DLLAVA_BUILD=OFF"
)

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
        {"CMAKE_ARGS": _LLAMA_FLAGS},
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
    if python.exists() and stamp.is_file() and json.loads(stamp.read_text()) == list(wanted.requirements):
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
    run(f"{peer}: packages", [*pip, *first, *rest], wanted.variables)
    if wanted.unwanted:
        run(f"{peer}: left out", [str(python), "-m", "pip", "uninstall", "-y", *wanted.unwanted])
    stamp.write_text(json.dumps(list(wanted.requirements)))
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
