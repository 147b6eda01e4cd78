"""Devices as they are asked for: a name, a number, provider options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hivellm_ort.engine.provider_table import PROVIDERS
from hivellm_ort.errors import OptionError, OptionTypeError, ProviderError, argument

__all__ = ["Device", "Options", "ProviderOptions"]

ProviderOptions = Mapping[str, str | int | float | bool]
"""Options of an execution provider by name, as callers give them."""

Options = tuple[tuple[str, str], ...]
"""The same as ONNX Runtime takes them, sorted by name."""


@dataclass(frozen=True)
class Device:
    """What was asked for.

    Attributes:
        kind: `auto` or a key of `PROVIDERS`.
        number: which of several.
        options: provider options, as ONNX Runtime takes them.
        fallback: whether the CPU may run the graphs where the device does not.
    """

    kind: str = "auto"
    number: int = 0
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
            device: `auto` (as None), `cpu`, `cuda`, `cuda:1`, `dml`, `dml:0`, `coreml`.
            provider_options: options of the execution provider; True and False are given as 1 and 0.
            fallback: whether the CPU may take over.

        Raises:
            ProviderError: there is no device of that name or number.
            TypeError: an option's name is no text, or its value neither a text nor a number.
            ValueError: an option says what `device` says.
        """
        found = re.fullmatch(r"([a-z]+)(?::([0-9]{1,4}))?", "auto" if device is None else str(device))
        kind = found[1] if found else ""
        if found is None or not (kind in PROVIDERS or (kind == "auto" and found[2] is None)):
            raise ProviderError(
                f"device {device!r} is unknown to this version of hivellm-ort, whatever ONNX Runtime offers: use "
                "'auto', 'cpu', 'cuda', 'dml' or 'coreml', with a number where there are several, as in 'cuda:1'"
            )
        number = int(found[2] or 0)
        if number and not PROVIDERS[kind].numbered:
            raise ProviderError(f"device {device!r}: there is one {kind} only; use {kind!r}")
        options = dict(_option(name, value) for name, value in _items(provider_options))
        if "device_id" in options:
            raise OptionError(
                f"{argument('provider_options')} device_id: name the number in the device, as in "
                f"{argument('device', 'cuda:1')}"
            )
        return cls(kind, number, tuple(sorted(options.items())), fallback)

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}" if self.number else self.kind


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
