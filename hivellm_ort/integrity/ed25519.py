"""Ed25519 keys and signatures as text. The library that computes them is loaded when one is needed."""

from __future__ import annotations

import re

from hivellm_ort.errors import IntegrityError
from hivellm_ort.filenames import shown

__all__ = [
    "PREFIX",
    "PUBLIC_KEY",
    "SEED_BYTES",
    "SIGNATURE",
    "checked_key",
    "is_valid",
    "new_seed",
    "public_key",
    "sign",
]

PREFIX = "ed25519:"
"""The prefix of a public key."""

SEED_BYTES = 32
"""Size of a private key."""

PUBLIC_KEY = re.compile(r"ed25519:[0-9a-f]{64}")
"""The form of a public key."""

SIGNATURE = re.compile(r"[0-9a-f]{128}")
"""The form of a signature."""


def checked_key(text: str) -> str:
    """Return a public key after checking its form.

    Raises:
        IntegrityError: It is malformed.
    """
    if PUBLIC_KEY.fullmatch(text) is None:
        raise IntegrityError(
            f"{shown(text)} is not a public key; give ed25519: and 64 lower-case hex digits, or the .pub file"
        )
    return text


def new_seed() -> bytes:
    """Return a new private key: a seed of 32 bytes from the system's random generator."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate().private_bytes_raw()


def public_key(seed: bytes) -> str:
    """Return the public key that belongs to a private key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return PREFIX + Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw().hex()


def sign(seed: bytes, message: bytes) -> str:
    """Sign a message and return the signature, 128 hex digits."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(seed).sign(message).hex()


def is_valid(key: str, signature: str, message: bytes) -> bool:
    """Return whether a well-formed signature of the message is valid under the key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.removeprefix(PREFIX)))
    try:
        public.verify(bytes.fromhex(signature), message)
    except InvalidSignature:
        return False
    return True
