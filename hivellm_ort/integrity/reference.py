"""Verifies packages that the reference tool `expert-cli` signed.

Its signer lists the SHA-256 of every file of the package in `integrity.files`. The message is one line
`<path>:<digest>` for each, sorted by the UTF-8 bytes of the paths, joined by newlines, without one at the end.
The Ed25519 signature over it is in `integrity.signature` and in the member `signature.sig`.

The digest of `manifest.json` is that of the manifest before signing, with `"integrity": null` instead of the block.
These bytes are restored by cutting the block out of the text. Writing the parsed JSON again would not give them,
because the signer has its own format of numbers. The signer also changes the order of the entries of
`evaluation.metrics`. If these are 2 to 6 lines, their permutations are tried.

The block itself must be written exactly as the signer does. So what the signature does not cover is:

- the digits of `integrity.created_at`, which must therefore never be shown as verified;
- the order of the entries of `integrity.files` and of `evaluation.metrics`, which mean the same in any order;
- what the archive says besides names and contents: order of the members, times, modes, compression.

A package that was signed twice cannot be verified. The signer then lists the manifest with its first integrity
block, which the package no longer holds.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hivellm_ort.errors import IntegrityError
from hivellm_ort.integrity.ed25519 import PUBLIC_KEY, SIGNATURE, is_valid
from hivellm_ort.integrity.listing import compare, covered, field, listed_digests
from hivellm_ort.package.archive import Member
from hivellm_ort.package.manifest import MANIFEST

__all__ = ["SCHEME", "SIGNATURE_FILE", "verified_key"]

SCHEME = "expert-cli"
"""The publisher that the reference signer writes."""

SIGNATURE_FILE = "signature.sig"
"""The member that repeats the signature."""

_KEYS = ["created_at", "publisher", "pubkey", "signature_algorithm", "signature", "files"]
_PUBLISHER = re.compile(re.escape(SCHEME))
_ALGORITHM = re.compile("ed25519")
# The signer writes 0, 3, 6 or 9 digits of a second, the fewest that are exact.
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.(?:\d{3}){1,3})?\+00:00", re.ASCII)
# The entries of the top-level evaluation's metrics: a line each, a number or null.
_METRICS = re.compile(
    rb'\n  "evaluation": \{\n(?:    [^\n]*\n)*?    "metrics": \{\n'
    rb'((?:      "(?:[^"\\\n]|\\[^\n])*": (?:null|[-+.0-9eE]+),?\n){2,6})    \}'
)
_MAX_PERMUTED_BYTES = 256 << 10  # bounds the work of 720 permutations; real manifests have 10 KB


def verified_key(text: bytes, block: Mapping[str, Any], members: Mapping[str, Member]) -> str:
    """Return the public key that signed the package.

    Args:
        text: The bytes of `manifest.json`.
        block: Its integrity block, parsed.
        members: All other members of the package by name.

    Raises:
        IntegrityError: There is no valid signature; the message says what was changed.
    """
    if [*block] != _KEYS:
        raise IntegrityError(f"{MANIFEST}: /integrity has not the fields of a known signature")
    field(block, "created_at", _TIME)
    field(block, "publisher", _PUBLISHER)
    field(block, "signature_algorithm", _ALGORITHM)
    key = field(block, "pubkey", PUBLIC_KEY)
    signature = field(block, "signature", SIGNATURE)
    listed = listed_digests(block)
    if SIGNATURE_FILE in listed:
        raise IntegrityError("signed twice by expert-cli, which leaves nothing to verify the manifest by")
    if MANIFEST not in listed:
        raise IntegrityError(f"{MANIFEST} was not signed")
    rest = covered(listed, members)
    repeated = rest.pop(SIGNATURE_FILE, None)
    if repeated is None:
        raise IntegrityError(f"{SIGNATURE_FILE} is missing")
    if repeated.sha256 != hashlib.sha256(signature.encode()).hexdigest():
        raise IntegrityError(f"{SIGNATURE_FILE} differs from the signature in {MANIFEST}")
    compare({name: digest for name, digest in listed.items() if name != MANIFEST}, rest)
    # Every name but the manifest's is a member's by now, so none holds the characters that join the lines.
    message = "\n".join(f"{name}:{listed[name]}" for name in sorted(listed, key=str.encode))
    if not is_valid(key, signature, message.encode()):
        raise IntegrityError("the signature is not that of the listed files by the key beside it")
    _check_manifest(text, block, listed[MANIFEST])
    return key


def _check_manifest(text: bytes, block: Mapping[str, Any], digest: str) -> None:
    written = json.dumps(block, indent=2, ensure_ascii=False).replace("\n", "\n  ")
    before, found, after = text.partition(b'\n  "integrity": ' + written.encode())
    if not found:
        raise IntegrityError(f"{MANIFEST}: the integrity block is not written as expert-cli writes it")
    unsigned = before + b'\n  "integrity": null' + after
    if digest != hashlib.sha256(unsigned).hexdigest() and digest not in _permuted_digests(unsigned):
        raise IntegrityError(f"{MANIFEST} is not the one that was signed: changed, or signed twice")


def _permuted_digests(text: bytes) -> Iterator[str]:
    """Yield the digests of a manifest for each order of its evaluation metrics, a few hundred at most."""
    metrics = _METRICS.search(text) if len(text) <= _MAX_PERMUTED_BYTES else None
    if metrics is None:
        return
    lines = [line.removesuffix(b",") for line in metrics[1].splitlines()]
    before = hashlib.sha256(text[: metrics.start(1)])
    after = b"\n" + text[metrics.end(1) :]
    for order in itertools.permutations(lines):
        digest = before.copy()
        digest.update(b",\n".join(order) + after)
        yield digest.hexdigest()
