"""The signing key of the tests, and a second implementation of the reference signer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["REFERENCE_TIME", "SEED", "TIME", "public", "reference_signed"]

SEED = bytes(range(32))
TIME = "2026-11-22T09:40:30Z"
REFERENCE_TIME = "2026-11-22T09:40:30.911600831+00:00"


def public(seed: bytes = SEED) -> str:
    """Return the public key of a private key."""
    return "ed25519:" + Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw().hex()


def reference_signed(
    contents: dict[str, bytes],
    manifest: dict[str, Any],
    seed: bytes = SEED,
    *,
    reorder: Callable[[Iterable[str]], Iterable[str]] = list,
    created_at: str = REFERENCE_TIME,
) -> dict[str, bytes]:
    """Return the files of a package, signed like the reference tool does.

    Args:
        contents: The members beside the manifest.
        manifest: The manifest; with an integrity block it is one signed before.
        seed: The private key.
        reorder: The new order of the evaluation's metrics.
        created_at: The time to write.
    """
    text = json.dumps(manifest, indent=2, ensure_ascii=False).encode()
    files = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    files["manifest.json"] = hashlib.sha256(text).hexdigest()
    message = "\n".join(
        f"{name}:{files[name]}" for name in sorted(files, key=lambda name: name.encode("utf-8"))
    )
    signature = Ed25519PrivateKey.from_private_bytes(seed).sign(message.encode()).hex()
    signed = dict(manifest)
    if signed.get("evaluation"):
        metrics = signed["evaluation"]["metrics"]
        signed["evaluation"] = {**signed["evaluation"], "metrics": {k: metrics[k] for k in reorder(metrics)}}
    signed["integrity"] = {
        "created_at": created_at,
        "publisher": "expert-cli",
        "pubkey": public(seed),
        "signature_algorithm": "ed25519",
        "signature": signature,
        "files": files,
    }
    text = json.dumps(signed, indent=2, ensure_ascii=False).encode()
    return {**contents, "signature.sig": signature.encode(), "manifest.json": text}
