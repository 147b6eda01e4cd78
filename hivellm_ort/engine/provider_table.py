"""Which execution provider runs the graphs of which target, and whether it is here."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from hivellm_ort.engine.nvidia import cuda_devices
from hivellm_ort.engine.providers import distributions, import_onnxruntime

__all__ = ["CPU", "PROVIDERS", "TARGETS", "Provider", "trouble"]

_SYSTEMS = {"linux": "Linux", "win32": "Windows", "darwin": "macOS"}


@dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime.

    Attributes:
        device: its name as a device.
        name: its name in ONNX Runtime.
        targets: the targets whose graphs it runs.
        extra: the extra of hivellm-ort that installs it.
        systems: values of `sys.platform` that it exists on; empty for all.
        numbered: whether there may be several of the device.
        options: provider options that it gets where the user gives no others.
        sequential: whether it needs sequential execution without memory patterns.
        recording: the provider option with which it records runs and repeats them; empty where it cannot.
        memory: ONNX Runtime's name for the memory that adapters, keys and values are kept in; empty for the host's.
        cure: what to do where it does not start.
    """

    device: str
    name: str
    targets: frozenset[str]
    extra: str
    systems: tuple[str, ...] = ()
    numbered: bool = False
    options: tuple[tuple[str, str], ...] = ()
    sequential: bool = False
    recording: str = ""
    memory: str = ""
    cure: str = ""


CPU = Provider("cpu", "CPUExecutionProvider", frozenset({"cpu", "portable"}), "cpu")
"""The provider that every ONNX Runtime has."""

PROVIDERS = {
    provider.device: provider
    for provider in (
        Provider(
            "cuda",
            "CUDAExecutionProvider",
            frozenset({"cuda", "portable"}),
            "cuda",
            systems=("linux", "win32"),
            numbered=True,
            recording="enable_cuda_graph",
            memory="cuda",
            cure="it needs the libraries of CUDA and cuDNN in the versions it was built for: pip install "
            "'onnxruntime-gpu[cuda,cudnn]', or see https://onnxruntime.ai/docs/install/#cuda-and-cudnn",
        ),
        Provider(
            "dml",
            "DmlExecutionProvider",
            frozenset({"dml", "portable"}),
            "directml",
            systems=("win32",),
            numbered=True,
            sequential=True,
            memory="dml",
            cure="it needs Windows 10 (1903) or newer and a GPU driver for DirectX 12: update both, or try another "
            "number; dml:0 is the first adapter",
        ),
        CPU,
        # After the CPU, so that auto never takes it: it splits these graphs into many parts and is slower.
        Provider(
            "coreml",
            "CoreMLExecutionProvider",
            frozenset({"portable"}),
            "cpu",
            systems=("darwin",),
            options=(("ModelFormat", "MLProgram"),),
            cure="it needs macOS 12 or newer",
        ),
    )
}
"""Every provider by the name of its device; `auto` takes the first that is there and runs the graphs."""

TARGETS = frozenset[str]().union(*(provider.targets for provider in PROVIDERS.values()))
"""Every target whose graphs some provider runs."""


def trouble(provider: Provider, number: int = 0) -> str | None:
    """Why a device of this provider is unavailable here and what to do about it; None where nothing is known.

    Raises:
        ProviderError: ONNX Runtime itself cannot be used.
    """
    if provider is CPU:
        return None
    runtime = import_onnxruntime()
    offered = runtime.get_available_providers()
    if provider.name not in offered:
        if provider.systems and sys.platform not in provider.systems:
            return f"it exists on {' and '.join(_SYSTEMS[system] for system in provider.systems)} only"
        installed = ", ".join(distributions()) or "onnxruntime"
        return (
            f"the installed {installed} {runtime.__version__} offers only {', '.join(offered)}: pip uninstall "
            f"{installed}, then pip install 'hivellm-ort[{provider.extra}]'"
        )
    return _gpu_trouble(number) if provider.device == "cuda" else None


def _gpu_trouble(number: int) -> str | None:
    count = cuda_devices()
    if count is None:
        return "no NVIDIA driver was found: install the driver (in a container, give it the GPUs)"
    if count == 0:
        return "the NVIDIA driver shows no GPU: nvidia-smi says why; CUDA_VISIBLE_DEVICES may hide it"
    if number >= count:
        last = f" to cuda:{count - 1}" if count > 1 else ""
        return f"there is no GPU number {number}: use cuda:0{last}"
    return None
