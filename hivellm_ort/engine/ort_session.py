"""Start a session on the device that was chosen, and see that it runs there."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

from hivellm_ort.engine.cpu import cpu_flags
from hivellm_ort.engine.placement import Placement, fallback_hint
from hivellm_ort.engine.provider_table import CPU
from hivellm_ort.engine.providers import import_onnxruntime
from hivellm_ort.errors import ProviderError

__all__ = ["start_session"]

_logger = logging.getLogger("hivellm_ort")

# What the providers say of causes that have a cure of their own.
_CURES = {
    "invalid device ordinal": "there is no GPU of that number: nvidia-smi -L lists them",
    "driver version is insufficient": "the NVIDIA driver is too old for this ONNX Runtime: update the driver",
    "887A0002": "there is no adapter of that number: dml:0 is the first",
}


def start_session(path: Path, placement: Placement, *, threads: int | None) -> Any:
    """Start a session of the graph in `path`.

    Args:
        path: the graph.
        placement: where it shall run.
        threads: intra-op threads; None leaves it to ONNX Runtime.

    Returns:
        The session; the first of its `get_providers()` is the one that runs it.

    Raises:
        ProviderError: the provider does not start, or would run nothing of the graph.
        Exception: what ONNX Runtime raises for a graph that it cannot load on the CPU, of a dozen types.
    """
    ort = import_onnxruntime()
    if placement.provider is not CPU:
        try:
            return _on_device(ort, path, placement, threads)
        except ProviderError as error:
            if not placement.fallback:
                raise
            _logger.warning("%s runs on the CPU, as fallback allows: %s", path.name, error)
    return ort.InferenceSession(str(path), _options(ort, threads), providers=[CPU.name], enable_fallback=0)


def _on_device(ort: ModuleType, path: Path, placement: Placement, threads: int | None) -> Any:
    provider = placement.provider
    if provider.device == "cuda" and hasattr(ort, "preload_dlls"):
        # Finds the libraries that pip installed. It prints what it misses, and standard output is the answer's.
        with contextlib.redirect_stdout(sys.stderr):
            ort.preload_dlls()
    options = _options(ort, threads)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if provider.sequential:
        options.enable_mem_pattern = False
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    providers = [(provider.name, placement.provider_options)]
    try:
        # Without ONNX Runtime's own fallback, which prints and goes on with the CPU.
        session = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime raises a dozen types of its own
        raise _refusal(placement, path, " ".join(str(error).split())) from error
    if provider.name not in session.get_providers():
        raise _refusal(placement, path, "ONNX Runtime left it out; its own message is on standard error")
    nodes = _nodes(session)
    if nodes and not nodes[provider.name]:
        raise _refusal(placement, path, f"it would run none of the graph's {nodes.total()} nodes")
    counts = ", ".join(f"{count} on {name}" for name, count in nodes.most_common())
    _logger.info("%s started on device %s; nodes: %s", path.name, placement.device, counts or "not known")
    return session


def _options(ort: ModuleType, threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # On x86 without VNNI sums of two 8-bit products overflow 16 bits: w8a8 then takes slower, exact kernels. ONNX
    # Runtime would take them with AMX too, which has no such sums.
    if not cpu_flags().get("amx_int8"):
        options.add_session_config_entry("session.x64quantprecision", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _nodes(session: Any) -> Counter[str]:
    """How many nodes each provider runs; empty where this ONNX Runtime does not tell."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    nodes: Counter[str] = Counter()
    for part in tell() if tell is not None else ():
        nodes[part.ep_name] += len(part.get_nodes())
    return nodes


def _refusal(placement: Placement, path: Path, cause: str) -> ProviderError:
    cure = next((cure for sign, cure in _CURES.items() if sign in cause), placement.provider.cure)
    return ProviderError(
        f"device {placement.device!r} ({placement.provider.name}) does not start for {path.name}: {cause}; {cure}; "
        f"{fallback_hint()}"
    )
