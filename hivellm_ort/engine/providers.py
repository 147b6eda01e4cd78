"""The table of execution providers: what each one runs, what it needs, and what to do when it does not start.

To add a provider, add an entry to `PROVIDERS`. No other file of the engine describes one.
"""

from __future__ import annotations

import functools
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass

from hivellm_ort.contract import DecoderConfig

__all__ = ["CPU", "EXTRAS", "PROVIDERS", "TARGETS", "Provider", "cuda_devices"]

_X86 = ("x86_64", "amd64", "i386", "i686", "x86")


@dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime.

    Attributes:
        device: The name of its device, as in `device="cuda"`.
        name: The name of the provider in ONNX Runtime.
        targets: The export targets whose graphs it runs. The first one is made for it.
        extra: The extra of hivellm-ort that installs it.
        systems: The values of `sys.platform` where it exists. Empty means everywhere.
        has_device_id: Whether a machine may have several of the device. It then takes the option `device_id`.
        options: Its default provider options.
        sequential: Whether it needs sequential execution without memory patterns.
        preload_dlls: Whether `onnxruntime.preload_dlls` must load its libraries first.
        graph_capture_option: The provider option that makes it capture and replay runs. Empty if there is none.
        memory: The device type of its OrtValues, as ONNX Runtime names it. Adapters, keys and values are kept there.
            Empty for the memory of the host.
        device_fault: Takes a device id. Returns why that device is unavailable although ONNX Runtime offers the
            provider, or None.
        graph_fault: Takes the `decoder.json` of a base. Returns why the provider should not run that base although
            its target fits, or None.
        start_faults: Causes of a failed start that have a cure of their own: a part of ONNX Runtime's message, and
            the cure.
        cure: What to do about any other failed start.
    """

    device: str
    name: str
    targets: tuple[str, ...]
    extra: str
    systems: tuple[str, ...] = ()
    has_device_id: bool = False
    options: tuple[tuple[str, str], ...] = ()
    sequential: bool = False
    preload_dlls: bool = False
    graph_capture_option: str = ""
    memory: str = ""
    device_fault: Callable[[int], str | None] = lambda _: None
    graph_fault: Callable[[DecoderConfig], str | None] = lambda _: None
    start_faults: tuple[tuple[str, str], ...] = ()
    cure: str = ""

    def cure_for(self, cause: str) -> str:
        """Find what to do about a failed start.

        Args:
            cause: The message of ONNX Runtime.

        Returns:
            What to do.
        """
        return next((cure for sign, cure in self.start_faults if sign in cause), self.cure)


@functools.cache
def cuda_devices() -> int | None:
    """Count the GPUs that the NVIDIA driver shows to this process. The CUDA toolkit is not needed.

    Returns:
        The number of GPUs after `CUDA_VISIBLE_DEVICES`. None if there is no driver.
    """
    import ctypes

    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def _cuda_fault(device_id: int) -> str | None:
    count = cuda_devices()
    if count is None:
        return "no NVIDIA driver was found: install the driver (in a container, give it the GPUs)"
    if count == 0:
        return "the NVIDIA driver shows no GPU: nvidia-smi says why; CUDA_VISIBLE_DEVICES may hide it"
    if device_id >= count:
        last = f" to cuda:{count - 1}" if count > 1 else ""
        return f"there is no GPU number {device_id}: use cuda:0{last}"
    return None


def _half_precision_fault(config: DecoderConfig) -> str | None:
    dtype = config.graph.activation_dtype
    if dtype != "float32" and platform.machine().lower() in _X86:
        return f"base {config.name!r} computes in {dtype}, which this kind of CPU is very slow at"
    return None


CPU = Provider(
    device="cpu",
    name="CPUExecutionProvider",
    targets=("cpu", "portable"),
    extra="cpu",
    graph_fault=_half_precision_fault,
)
"""The provider that every ONNX Runtime has."""

_CUDA = Provider(
    device="cuda",
    name="CUDAExecutionProvider",
    targets=("cuda", "portable"),
    extra="cuda",
    systems=("linux", "win32"),
    has_device_id=True,
    preload_dlls=True,
    graph_capture_option="enable_cuda_graph",
    memory="cuda",
    device_fault=_cuda_fault,
    start_faults=(
        ("invalid device ordinal", "there is no GPU of that number: nvidia-smi -L lists them"),
        (
            "driver version is insufficient",
            "the NVIDIA driver is too old for this ONNX Runtime: update the driver",
        ),
    ),
    cure="it needs the libraries of CUDA and cuDNN in the versions it was built for: pip install "
    "'onnxruntime-gpu[cuda,cudnn]', or see https://onnxruntime.ai/docs/install/#cuda-and-cudnn",
)
_DIRECTML = Provider(
    device="dml",
    name="DmlExecutionProvider",
    targets=("dml", "portable"),
    extra="directml",
    systems=("win32",),
    has_device_id=True,
    sequential=True,
    memory="dml",
    start_faults=(("887A0002", "there is no adapter of that number: dml:0 is the first"),),
    cure="it needs Windows 10 (1903) or newer and a GPU driver for DirectX 12: update both, or try another "
    "number; dml:0 is the first adapter",
)
_COREML = Provider(
    device="coreml",
    name="CoreMLExecutionProvider",
    targets=("portable",),
    extra="cpu",
    systems=("darwin",),
    options=(("ModelFormat", "MLProgram"),),
    cure="it needs macOS 12 or newer",
)

# CoreML comes after the CPU, so that `auto` never takes it: it splits these graphs into many parts and is slower.
PROVIDERS = {provider.device: provider for provider in (_CUDA, _DIRECTML, CPU, _COREML)}
"""Every provider by the name of its device. `auto` takes the first one that is available and runs the graphs."""

TARGETS = frozenset(target for provider in PROVIDERS.values() for target in provider.targets)
"""Every target whose graphs some provider runs."""

EXTRAS = tuple(dict.fromkeys(provider.extra for provider in (CPU, *PROVIDERS.values())))
"""Every extra that installs an ONNX Runtime. An environment has exactly one of them."""
