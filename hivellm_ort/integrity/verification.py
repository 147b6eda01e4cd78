"""Verifies the signature of a package."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from hivellm_ort.errors import IntegrityError, LoadError
from hivellm_ort.filenames import shown
from hivellm_ort.integrity import native, reference
from hivellm_ort.integrity.listing import members_of
from hivellm_ort.integrity.verdict import Verdict
from hivellm_ort.jsonfiles.reading import read_json
from hivellm_ort.package.manifest import MANIFEST
from hivellm_ort.package.store import UnpackedPackage

__all__ = ["verify"]

_SCHEMA_KEYS = {"timestamp", "public_key", "signature"}  # of the published JSON schema
_CLAIMS = ("scheme", "signature", "pubkey", "public_key")


def verify(package: UnpackedPackage, keys: Mapping[str, str]) -> Verdict:
    """Verify the signature of a package, in our scheme or the reference tool's.

    The digests of a `.expert` file were computed while unpacking. The files of a folder are read only if its
    manifest carries a signature. Links and unsigned files are refused in a folder too.

    Args:
        package: The opened package.
        keys: Names of signers and their public keys, `ed25519:` and 64 hex digits.

    Returns:
        The verdict. An invalid signature is a verdict too, not an error.

    Raises:
        ManifestError: The manifest cannot be read.
        LoadError: A file of the folder cannot be read.
    """
    path = package.root / MANIFEST
    # A folder as PEFT saves it has no manifest, and so no signature.
    manifest = read_json(path) if path.is_file() or package.sha256 else {}
    scheme: str | None = None
    try:
        scheme = _scheme(manifest)
        if scheme is None:
            return _unsigned(package, manifest)
        key = _signing_key(package, manifest, scheme)
    except IntegrityError as error:
        return Verdict(status="failed", reason=str(error), scheme=scheme)
    except OSError as error:
        raise LoadError(
            f"{package.root}: cannot be verified: {error.strerror}; check the files and their permissions"
        ) from error
    return Verdict(status="unknown key", key=key, scheme=scheme).against(keys)


def _scheme(manifest: Mapping[str, Any]) -> str | None:
    """Return the scheme of the manifest's signature; None if there is no signature."""
    block = manifest.get("integrity")
    if block is None:
        return None
    if not isinstance(block, dict):
        raise IntegrityError(f"{MANIFEST}: /integrity is not an object")
    if all(block.get(key) in (None, "") for key in _CLAIMS) or _is_schema_form(block):
        return None
    if "scheme" not in block:
        return reference.SCHEME
    name = block["scheme"]
    if name != native.SCHEME:
        named = shown(name) if isinstance(name, str) else "of another type"
        raise IntegrityError(
            f"{MANIFEST}: /integrity/scheme {named} is not known; a newer hivellm-ort may know it"
        )
    return native.SCHEME


def _is_schema_form(block: Mapping[str, Any]) -> bool:
    return block.keys() <= _SCHEMA_KEYS and all(isinstance(value, str | None) for value in block.values())


def _unsigned(package: UnpackedPackage, manifest: Mapping[str, Any]) -> Verdict:
    if package.members:
        stripped = any(member.name == reference.SIGNATURE_FILE for member in package.members)
    else:
        stripped = os.path.lexists(package.root / reference.SIGNATURE_FILE)
    if stripped:
        raise IntegrityError(
            f"{reference.SIGNATURE_FILE} is there, but its integrity block was taken out of {MANIFEST}"
        )
    block = manifest.get("integrity")
    reason = None
    if block is not None:
        claims = any(block.get(key) for key in _CLAIMS)
        reason = (
            "the integrity block is of a form that defines no message"
            if claims
            else "the integrity block holds no signature"
        )
    return Verdict(status="unsigned", reason=reason)


def _signing_key(package: UnpackedPackage, manifest: Mapping[str, Any], scheme: str) -> str:
    members = members_of(package)
    text = (package.root / MANIFEST).read_bytes()
    noted = members.pop(MANIFEST, None)
    if noted is None or noted.sha256 != hashlib.sha256(text).hexdigest():
        raise IntegrityError(f"{MANIFEST} was changed after it was unpacked")
    block = manifest["integrity"]
    if scheme == native.SCHEME:
        return native.verified_key(text, manifest, block, members)
    return reference.verified_key(text, block, members)
