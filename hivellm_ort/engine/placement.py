"""Choose the execution provider that a base is put on."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass, field

from hivellm_ort.contract import DecoderConfig
from hivellm_ort.engine.devices import Device, Options
from hivellm_ort.engine.provider_table import CPU, PROVIDERS, TARGETS, Provider, trouble
from hivellm_ort.engine.providers import distributions, import_onnxruntime
from hivellm_ort.errors import ProviderError, argument

__all__ = ["Placement", "choose_placement", "fallback_hint"]

_logger = logging.getLogger("hivellm_ort")

_X86 = ("x86_64", "amd64", "i386", "i686", "x86")


@dataclass(frozen=True)
class Placement:
    """Where a base runs. Equal placements can share sessions.

    Attributes:
        provider: the execution provider.
        number: which of several devices.
        options: the user's provider options.
        fallback: whether the CPU may take over when the provider does not start.
        reason: why this one.
        instead: whether it is the CPU in place of what was asked for.
    """

    provider: Provider
    number: int = 0
    options: Options = ()
    fallback: bool = False
    reason: str = field(default="", compare=False)
    instead: bool = field(default=False, compare=False)

    @property
    def device(self) -> str:
        """Its name as a device, as `cuda:1`."""
        return f"{self.provider.device}:{self.number}" if self.provider.numbered else self.provider.device

    @property
    def provider_options(self) -> dict[str, str]:
        """Everything that the provider is given."""
        number = {"device_id": str(self.number)} if self.provider.numbered else {}
        return {**dict(self.provider.options), **number, **dict(self.options)}

    @property
    def cuda_graph(self) -> bool:
        """Whether the provider is told to record runs and repeat them."""
        told = self.provider_options.get(self.provider.recording, "")
        return told.lower() in ("1", "true")

    def announce(self, base: str) -> None:
        """Log what runs where and why: a warning where it is not what was asked for."""
        if self.instead:
            _logger.warning("base %s runs on the CPU, as fallback allows: %s", base, self.reason)
            return
        runtime = f"{', '.join(distributions()) or 'onnxruntime'} {import_onnxruntime().__version__}"
        _logger.info("base %s runs on %s (%s): %s", base, self.provider.name, runtime, self.reason)


def fallback_hint() -> str:
    """How a message about a device that is unavailable ends."""
    return f"or allow the CPU with {argument('fallback', True)}"


def choose_placement(device: Device, config: DecoderConfig) -> Placement:
    """Choose the execution provider for a base.

    Raises:
        ProviderError: no provider that is there can run the base's graphs as `device` asks.
    """
    if config.target not in TARGETS:
        raise ProviderError(
            f"base {config.name!r}: graphs for target {config.target!r} cannot be run by this version of "
            f"hivellm-ort, which knows {', '.join(sorted(TARGETS))}: update it, or export again"
        )
    reasons: list[str] = []
    for provider in PROVIDERS.values() if device.kind == "auto" else (PROVIDERS[device.kind],):
        if device.kind == "auto" and config.target not in provider.targets:
            continue
        # What is installed comes first: who asks for a device that is missing needs to hear of that.
        fault = _missing(provider, device, config) or _unfit(provider, config)
        if fault is None:
            why = "; ".join(
                [f"device {str(device)!r}", f"its graphs are for target {config.target!r}", *reasons]
            )
            return _placed(device, provider, why)
        reasons.append(f"{provider.name}: {fault}")
    why = f"device {str(device)!r}: " + "; ".join(reasons)
    if not device.fallback:
        raise ProviderError(f"{why}; {fallback_hint()}")
    return Placement(CPU, reason=why, instead=True)


def _missing(provider: Provider, device: Device, config: DecoderConfig) -> str | None:
    """Why a provider is not here, and what to do about it."""
    fault = trouble(provider, device.number)
    if fault is not None and device.kind != "auto" and config.target in CPU.targets:
        fault += f"; or use {argument('device', CPU.device)}"
    return fault


def _unfit(provider: Provider, config: DecoderConfig) -> str | None:
    """Why a provider does not run the graphs of a base."""
    if config.target not in provider.targets:
        fitting = next(other.device for other in PROVIDERS.values() if config.target in other.targets)
        target = provider.device if provider.device in provider.targets else "portable"
        return (
            f"base {config.name!r} was exported for target {config.target!r}; use {argument('device', fitting)}, "
            f"or export again with --target {target}"
        )
    dtype = config.graph.activation_dtype
    if provider is CPU and dtype != "float32" and platform.machine().lower() in _X86:
        return f"base {config.name!r} computes in {dtype}, which this kind of CPU is very slow at"
    return None


def _placed(device: Device, provider: Provider, reason: str) -> Placement:
    if provider is CPU:
        if device.options:
            names = ", ".join(name for name, _ in device.options)
            raise ProviderError(
                f"{argument('provider_options')} {names}: CPUExecutionProvider, which was chosen ({reason}), "
                "takes none; leave them out, or name another device"
            )
        return Placement(CPU, reason=reason)
    return Placement(provider, device.number, device.options, device.fallback, reason)
