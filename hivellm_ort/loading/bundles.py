"""Base bundles, and how the best of several is chosen for a device."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hivellm_ort.contract import DECODER_JSON, DecoderConfig
from hivellm_ort.engine.devices import Device, Placement, choose_placement, fallback_hint
from hivellm_ort.engine.environment import unavailable_reason
from hivellm_ort.engine.providers import CPU, PROVIDERS
from hivellm_ort.errors import ProviderError
from hivellm_ort.package.links import check_folder

__all__ = ["Bundle", "has_best_provider", "rank_bundles"]

_LOG = logging.getLogger("hivellm_ort")
# The order of precisions for one model and provider: first small and accurate, then accurate, then small.
_PREFERRED = ("int8", "fp16", "bf16", "fp32", "w8a8", "int4")


@dataclass(frozen=True)
class Bundle:
    """A base bundle: its folder and its `decoder.json`."""

    folder: Path
    config: DecoderConfig

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read a bundle's `decoder.json`. The folder is the user's own, so links in it are followed.

        Raises:
            ManifestError: The folder is not a base bundle, or has another version of the contract.
            IntegrityError: The folder contains a named pipe, a device or a socket, or a link to one.
        """
        if folder.is_dir():
            check_folder(folder, _followed)
        return cls(folder, DecoderConfig.from_file(folder / DECODER_JSON))


def _followed(link: Path) -> str | None:
    return None if link.is_file() or link.is_dir() else "is not a file: put the file itself there"


def rank_bundles(bundles: Sequence[Bundle], device: Device, *, owner: str, exact: str = "") -> list[Bundle]:
    """Return the bundles that a device runs, the best first. If there are several, the reason is logged.

    They are ordered by provider, as `auto` tries them. For one provider the bundle `exact` comes first, then graphs
    for that provider, then portable graphs; last decides the precision. If the device runs none and fallback is
    allowed, the result is the bundles for the CPU, or else all bundles.

    Args:
        bundles: At least one bundle.
        device: The requested device.
        owner: The owner of the bundles, for messages.
        exact: Digest of the bundle with which an adapter was exported.

    Raises:
        ProviderError: The device runs none of them. The message names their targets and a cure.
    """
    found, faults = _placed(bundles, dataclasses.replace(device, fallback=False))
    if not found and device.fallback:
        found = _placed(bundles, Device("cpu"))[0] or [(Placement(CPU), bundle) for bundle in bundles]
    targets = list(dict.fromkeys(bundle.config.target for bundle in bundles))
    listed = ", ".join(targets)
    if not found:
        start, end = f"device {str(device)!r}: ", f"; {fallback_hint()}"
        causes = "; ".join(dict.fromkeys(fault.removeprefix(start).removesuffix(end) for fault in faults))
        end = end if any(fault.endswith(end) for fault in faults) else ""
        if _is_missing(device) and not set(PROVIDERS[device.kind].targets) & set(targets):
            raise ProviderError(f"{start}{causes}{end} ({owner} has graphs for {listed} only)")
        raise ProviderError(f"{start}{owner} has graphs for {listed}, which it does not run: {causes}{end}")
    found.sort(key=lambda pair: _rank(pair[0], pair[1], exact))
    if len(bundles) > 1:
        first, *others = (
            f"{bundle.config.target} {bundle.config.precision} on {placement.provider.name} ({placement.reason})"
            for placement, bundle in found
        )
        rest = "".join(f"; not {each}" for each in [*others, *faults])
        _LOG.info("%s has graphs for %s; used are those for %s%s", owner, listed, first, rest)
    return [bundle for _, bundle in found]


def _is_missing(device: Device) -> bool:
    """Return whether the request names a device that is not available here."""
    return device.kind != "auto" and unavailable_reason(PROVIDERS[device.kind], device.device_id) is not None


def has_best_provider(bundle: Bundle, device: Device) -> bool:
    """Return whether a device runs a bundle with its best provider, so that no other bundle can be better.

    Raises:
        ProviderError: ONNX Runtime itself cannot be used.
    """
    found, _ = _placed([bundle], dataclasses.replace(device, fallback=False))
    if not found or device.kind != "auto":
        return bool(found)
    chosen = found[0][0].provider
    earlier = itertools.takewhile(lambda provider: provider is not chosen, PROVIDERS.values())
    return all(unavailable_reason(provider) is not None for provider in earlier)


def _placed(bundles: Sequence[Bundle], device: Device) -> tuple[list[tuple[Placement, Bundle]], list[str]]:
    """Return the bundles that a device runs, each with its placement, and the reasons why it does not run others."""
    found, faults = [], []
    for bundle in bundles:
        try:
            found.append((choose_placement(device, bundle.config), bundle))
        except ProviderError as error:
            faults.append(str(error))
    return found, faults


def _rank(placement: Placement, bundle: Bundle, exact: str) -> tuple[int, bool, bool, int, str]:
    config, provider = bundle.config, placement.provider
    precision = _PREFERRED.index(config.precision) if config.precision in _PREFERRED else len(_PREFERRED)
    order = list(PROVIDERS).index(provider.device)
    return order, config.sha256 != exact, config.target != provider.targets[0], precision, str(bundle.folder)
