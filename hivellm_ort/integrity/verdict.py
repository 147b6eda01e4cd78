"""The outcome of checking the signature of a package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["Status", "Verdict", "short_key"]

Status = Literal["verified", "unknown key", "unsigned", "failed"]
_SHORT = len("ed25519:") + 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome of verifying one package.

    Attributes:
        status: `verified`: signed by a pinned key. `unknown key`: signed, by a key that is not pinned.
            `unsigned`: nothing claims to be a signature. `failed`: something does, and it is not valid.
        key: The public key of a valid signature, `ed25519:` and 64 hex digits; None without one.
        signer: The name under which the key is pinned; None unless verified.
        reason: Why it failed, or a note on an unsigned package; None if there is nothing to say.
        scheme: `hivellm-ort/1`, or `expert-cli` for the reference signer; None if neither was found.
    """

    status: Status
    key: str | None = None
    signer: str | None = None
    reason: str | None = None
    scheme: str | None = None

    def against(self, keys: Mapping[str, str]) -> Verdict:
        """Return this verdict as `verified` if the signature is valid and its key is among `keys`.

        Args:
            keys: Names and their public keys.
        """
        if self.status != "unknown key":
            return self
        signer = next((name for name, key in keys.items() if key == self.key), None)
        return self if signer is None else replace(self, status="verified", signer=signer)

    def __str__(self) -> str:
        if self.status == "verified":
            return f"verified by {self.signer}"
        if self.status == "unknown key":
            return f"signed by unknown key {short_key(self.key or '')}"
        return f"failed: {self.reason}" if self.status == "failed" else "unsigned"


def short_key(key: str) -> str:
    """Return the first 16 hex digits of a public key, for display only. Never compare keys by it."""
    return f"{key[:_SHORT]}…"
