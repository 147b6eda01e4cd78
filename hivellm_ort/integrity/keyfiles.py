"""Key files in the format of the reference tool, so that both tools can use them.

A private key is the 32 raw bytes of its seed. The public key lies beside it, with the suffix `.pub`:
`ed25519:` and 64 hex digits, without a newline.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from pathlib import Path

from hivellm_ort.errors import IntegrityError, LoadError, OptionError
from hivellm_ort.integrity.ed25519 import PREFIX, SEED_BYTES, checked_key, new_seed, public_key
from hivellm_ort.paths import StrPath
from hivellm_ort.textfile import decode_text

__all__ = ["generate_key", "public_path", "read_private_key", "read_public_key"]

_LOG = logging.getLogger("hivellm_ort")
_MAX_PUBLIC_BYTES = 1024


def public_path(path: Path) -> Path:
    """Return the path of the public key that belongs to a private key file."""
    return path.with_suffix(".pub")


def generate_key(path: StrPath) -> str:
    """Make a key and write its two files. Neither may exist before, and after an error neither exists.

    Only the user may read the private key (mode 0600; on Windows the folder's access list decides).

    Args:
        path: The private key file.

    Returns:
        The public key.

    Raises:
        LoadError: A file exists already or cannot be written.
        OptionError: The path has the suffix of public keys.
    """
    path = Path(path)
    if not path.name:
        raise OptionError(f"{str(path)!r} names no file: give the private key a name, such as publisher.key")
    public = public_path(path)
    if public == path:
        raise OptionError(f"{path}: .pub is for the public key; give the private key another suffix")
    seed = new_seed()
    key = public_key(seed)
    _create(path, seed, mode=0o600)
    try:
        _create(public, key.encode(), mode=0o644)
    except BaseException:
        path.unlink()
        raise
    return key


def read_private_key(path: StrPath) -> bytes:
    """Read a private key file. Warn if other users of the machine can read it.

    Returns:
        The seed, 32 bytes.

    Raises:
        IntegrityError: The file does not hold exactly 32 bytes.
        LoadError: It cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            seed = file.read(SEED_BYTES + 1)
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise LoadError(
            f"{path}: the private key cannot be read: {error.strerror}; check the path"
        ) from error
    if len(seed) != SEED_BYTES:
        raise IntegrityError(
            f"{path}: a private key has exactly {SEED_BYTES} raw bytes; name the file 'hivellm-ort keygen' wrote"
        )
    if os.name == "posix" and mode & (stat.S_IRGRP | stat.S_IROTH):
        _LOG.warning("%s: other users can read this private key; run chmod 600 on it", path)
    return seed


def read_public_key(source: StrPath) -> str:
    """Return a public key from its text or its file.

    Args:
        source: A string that begins with `ed25519:`, else the path of a `.pub` file.

    Raises:
        IntegrityError: It is not a public key.
        LoadError: The file cannot be read.
    """
    if isinstance(source, str) and source.startswith(PREFIX):
        return checked_key(source)
    source = os.fspath(source)
    try:
        with Path(source).open("rb") as file:
            data = file.read(_MAX_PUBLIC_BYTES)
    except (OSError, ValueError) as error:  # the latter: a path with a NUL
        raise LoadError(
            f"{source}: the public key cannot be read: {getattr(error, 'strerror', None) or error}; "
            f"give a .pub file, or {PREFIX} and 64 hex digits"
        ) from error
    try:
        return checked_key(decode_text(data).rstrip())
    except UnicodeDecodeError as error:
        raise IntegrityError(
            f"{source}: the file is not a public key, because it is not text in {error.encoding.upper()}; "
            "name the .pub file"
        ) from error
    except IntegrityError as error:
        raise IntegrityError(f"{source}: {error}") from error


def _create(path: Path, data: bytes, *, mode: int) -> None:
    """Write a new file completely, or leave none."""
    binary = getattr(os, "O_BINARY", 0)  # without it Windows writes two bytes for a newline
    try:
        number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | binary, mode)
    except FileExistsError:
        raise LoadError(
            f"{path}: is there already, and keys are never overwritten; name another path"
        ) from None
    except OSError as error:
        raise LoadError(f"{path}: cannot be written: {error.strerror}; name another path") from error
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        with contextlib.suppress(OSError):
            path.unlink()
        if isinstance(error, OSError):
            raise LoadError(f"{path}: cannot be written: {error.strerror}; check the free space") from error
        raise
