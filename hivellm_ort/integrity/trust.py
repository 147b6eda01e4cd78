"""Decides by its signature whether a package may be loaded."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from hivellm_ort.errors import IntegrityError, LoadError, OptionError, argument
from hivellm_ort.forking import in_child
from hivellm_ort.integrity.truststore import TrustStore, checked_keys
from hivellm_ort.integrity.verdict import Verdict
from hivellm_ort.integrity.verification import verify
from hivellm_ort.package.store import UnpackedPackage
from hivellm_ort.paths import StrPath

__all__ = ["Policy", "Trust", "check"]

Policy = Literal["require", "warn", "off"]

_LOG = logging.getLogger("hivellm_ort")
_warned: set[str] = set()
_warned_lock = threading.Lock()


def _reset_lock() -> None:
    global _warned_lock
    _warned_lock = threading.Lock()


in_child(_reset_lock)


@dataclass(frozen=True, slots=True)
class Trust:
    """Which signers to trust, and what to do with other packages.

    Attributes:
        policy: `require` loads only packages signed by a pinned key. `warn` loads unsigned packages and unknown keys
            with a warning, and refuses invalid signatures. `off` loads everything.
        keys: Names and public keys of the pinned signers; None for those of the user's `TrustStore`.

    Raises:
        OptionError: Another policy, or a malformed name or key.
    """

    policy: Policy = "warn"
    keys: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise OptionError(f"trust policy {self.policy!r}: it must be 'require', 'warn' or 'off'")
        if self.keys is not None:
            object.__setattr__(self, "keys", checked_keys(self.keys))

    def pinned(self) -> Mapping[str, str]:
        """Return the pinned keys by name.

        Raises:
            LoadError: The user's list cannot be read.
        """
        return TrustStore().mapping() if self.keys is None else self.keys


def check(package: UnpackedPackage, trust: Trust, *, where: StrPath | None = None) -> Verdict:
    """Verify a package, and refuse it if the policy says so.

    Each package is warned about once per process, each folder once per path.

    Args:
        package: The opened package.
        trust: The policy and the pinned keys.
        where: Name of the package in messages. Default: its folder or its digest.

    Returns:
        The verdict on a package that may be loaded.

    Raises:
        IntegrityError: The policy refuses the package.
        LoadError: It cannot be verified; not with the policy `off`.
    """
    try:
        verdict = verify(package, {})
        # The user's list is read only if there is a key to look up.
        if verdict.status == "unknown key":
            verdict = verdict.against(trust.pinned())
    except LoadError as error:
        if trust.policy != "off":
            raise
        return Verdict(status="failed", reason=str(error))
    if verdict.status == "verified" or trust.policy == "off":
        return verdict
    name = os.fspath(where or "") or (f"package {package.sha256[:12]}…" if package.sha256 else package.root)
    if verdict.status == "failed" or trust.policy == "require":
        raise IntegrityError(f"{name}: {verdict}; {_cure(verdict)}")
    if _first_time(package.sha256 or str(package.root.resolve())):
        _LOG.warning("%s: %s; to end this warning, %s", name, verdict, _cure(verdict))
    return verdict


def _cure(verdict: Verdict) -> str:
    if verdict.status == "unknown key":
        return (
            "pin the key, only after checking the whole of it with the publisher: "
            f"hivellm-ort trust add {verdict.key} --name NAME"
        )
    if verdict.status == "unsigned":
        return (
            "sign it if it is yours ('hivellm-ort sign'), else ask its publisher for a signed package; or load it "
            f"with {argument('trust', 'off')}"
        )
    return "do not use the package; fetch it again from its publisher"


def _first_time(identity: str) -> bool:
    with _warned_lock:
        if identity in _warned:
            return False
        _warned.add(identity)
        return True
