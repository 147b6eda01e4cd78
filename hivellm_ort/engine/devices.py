"""Choose the device of a base: from what the caller asked for to the execution provider that runs it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from hivellm_ort.contract import DecoderConfig
from hivellm_ort.engine.environment import distributions, import_onnxruntime, unavailable_reason
from hivellm_ort.engine.providers import CPU, PROVIDERS, TARGETS, Provider
from hivellm_ort.errors import OptionError, OptionTypeError, ProviderError, argument

__all__ = ["Device", "Options", "Placement", "ProviderOptions", "choose_placement", "fallback_hint"]

_logger = logging.getLogger("hivellm_ort")

ProviderOptions = Mapping[str, str | int | float | bool]
"""Options of an execution provider by name, as callers give them."""

Options = tuple[tuple[str, str], ...]
"""The same options as ONNX Runtime takes them, sorted by name."""


@dataclass(frozen=True)
class Device:
    """The device that a caller asked for.

    Attributes:
        kind: `auto`, or a key of `PROVIDERS`.
        device_id: Which device, if there are several.
        options: Provider options, as ONNX Runtime takes them.
        fallback: Whether the CPU may run the graphs if the device cannot.
    """

    kind: str = "auto"
    device_id: int = 0
    options: Options = ()
    fallback: bool = False

    @classmethod
    def of(
        cls,
        device: str | None = None,
        provider_options: ProviderOptions | None = None,
        *,
        fallback: bool = False,
    ) -> Device:
        """Read the arguments of `Expert.load`.

        Args:
            device: `auto` (the default), `cpu`, `cuda`, `cuda:1`, `dml`, `dml:0` or `coreml`.
            provider_options: Options of the execution provider. True and False become 1 and 0.
            fallback: Whether the CPU may take over.

        Returns:
            The device.

        Raises:
            ProviderError: There is no device of that name or number.
            OptionTypeError: The name of an option is not a text, or its value is neither a text nor a number.
            OptionError: An option repeats what `device` says.
        """
        found = re.fullmatch(r"([a-z]+)(?::([0-9]{1,4}))?", "auto" if device is None else str(device))
        kind = found[1] if found else ""
        if found is None or not (kind in PROVIDERS or (kind == "auto" and found[2] is None)):
            *names, last = (repr(name) for name in ("auto", *dict.fromkeys((CPU.device, *PROVIDERS))))
            raise ProviderError(
                f"device {device!r} is unknown to this version of hivellm-ort, whatever ONNX Runtime offers: use "
                f"{', '.join(names)} or {last}, with a number where there are several, as in 'cuda:1'"
            )
        device_id = int(found[2] or 0)
        if device_id and not PROVIDERS[kind].has_device_id:
            raise ProviderError(f"device {device!r}: there is one {kind} only; use {kind!r}")
        options = dict(_option(name, value) for name, value in _items(provider_options))
        if "device_id" in options:
            raise OptionError(
                f"{argument('provider_options')} device_id: name the number in the device, as in "
                f"{argument('device', 'cuda:1')}"
            )
        return cls(kind, device_id, tuple(sorted(options.items())), fallback)

    def __str__(self) -> str:
        return f"{self.kind}:{self.device_id}" if self.device_id else self.kind


@dataclass(frozen=True)
class Placement:
    """The execution provider and device that run a base. Equal placements can share sessions.

    Attributes:
        provider: The execution provider.
        device_id: Which device, if there are several.
        options: The provider options of the caller.
        fallback: Whether the CPU may take over if the provider does not start.
        reason: Why this provider was chosen.
        is_fallback: Whether this is the CPU in place of the device that was asked for.
    """

    provider: Provider
    device_id: int = 0
    options: Options = ()
    fallback: bool = False
    reason: str = field(default="", compare=False)
    is_fallback: bool = field(default=False, compare=False)

    @property
    def device(self) -> str:
        """The name of the device, as `cuda:1`."""
        provider = self.provider
        return f"{provider.device}:{self.device_id}" if provider.has_device_id else provider.device

    @property
    def provider_options(self) -> dict[str, str]:
        """All options that the provider is given."""
        device_id = {"device_id": str(self.device_id)} if self.provider.has_device_id else {}
        return {**dict(self.provider.options), **device_id, **dict(self.options)}

    @property
    def graph_capture(self) -> bool:
        """Whether the options make the provider capture and replay runs."""
        value = self.provider_options.get(self.provider.graph_capture_option, "")
        return value.lower() in ("1", "true")

    def announce(self, base: str) -> None:
        """Log which provider runs a base, and why. It is a warning if the device is not what was asked for.

        Args:
            base: The name of the base.
        """
        if self.is_fallback:
            _logger.warning("base %s runs on the CPU, as fallback allows: %s", base, self.reason)
            return
        runtime = f"{', '.join(distributions()) or 'onnxruntime'} {import_onnxruntime().__version__}"
        _logger.info("base %s runs on %s (%s): %s", base, self.provider.name, runtime, self.reason)


def fallback_hint() -> str:
    """Write the end of a message about an unavailable device.

    Returns:
        How to allow the CPU.
    """
    return f"or allow the CPU with {argument('fallback', True)}"


def choose_placement(device: Device, config: DecoderConfig) -> Placement:
    """Choose the execution provider for a base.

    Args:
        device: The device that was asked for.
        config: The `decoder.json` of the base.

    Returns:
        The provider and its device.

    Raises:
        ProviderError: No available provider runs the graphs of the base as `device` asks.
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
        # The device comes first: whoever asks for one that is missing must read that, not a fault of the graphs.
        fault = _device_fault(provider, device, config) or _graph_fault(provider, config)
        if fault is None:
            why = "; ".join(
                [f"device {str(device)!r}", f"its graphs are for target {config.target!r}", *reasons]
            )
            return _place(device, provider, why)
        reasons.append(f"{provider.name}: {fault}")
    why = f"device {str(device)!r}: " + "; ".join(reasons)
    if not device.fallback:
        raise ProviderError(f"{why}; {fallback_hint()}")
    return Placement(CPU, reason=why, is_fallback=True)


def _device_fault(provider: Provider, device: Device, config: DecoderConfig) -> str | None:
    """Say why the device of a provider is unavailable, and what to do about it."""
    fault = unavailable_reason(provider, device.device_id)
    if fault is not None and device.kind != "auto" and config.target in CPU.targets:
        fault += f"; or use {argument('device', CPU.device)}"
    return fault


def _graph_fault(provider: Provider, config: DecoderConfig) -> str | None:
    """Say why a provider does not run the graphs of a base."""
    if config.target in provider.targets:
        return provider.graph_fault(config)
    fitting = next(other.device for other in PROVIDERS.values() if config.target in other.targets)
    return (
        f"base {config.name!r} was exported for target {config.target!r}; use {argument('device', fitting)}, "
        f"or export again with --target {provider.targets[0]}"
    )


def _place(device: Device, provider: Provider, reason: str) -> Placement:
    if provider is CPU:
        if device.options:
            names = ", ".join(name for name, _ in device.options)
            raise ProviderError(
                f"{argument('provider_options')} {names}: {provider.name}, which was chosen ({reason}), "
                "takes none; leave them out, or name another device"
            )
        return Placement(CPU, reason=reason)
    return Placement(provider, device.device_id, device.options, device.fallback, reason)


def _items(options: ProviderOptions | None) -> list[tuple[object, object]]:
    if options is None:
        return []
    if not isinstance(options, Mapping):
        raise OptionTypeError(
            f"provider_options is {type(options).__name__}, not a mapping of names to values"
        )
    return list(options.items())


def _option(name: object, value: object) -> tuple[str, str]:
    if not isinstance(name, str) or not name:
        raise OptionTypeError(f"provider_options: the name {name!r} is not a text")
    if not isinstance(value, str | int | float):
        raise OptionTypeError(
            f"provider_options[{name!r}] is {type(value).__name__}; give a text, a number or a bool"
        )
    return name, str(int(value)) if isinstance(value, bool) else str(value)
