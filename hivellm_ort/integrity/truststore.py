"""The user's pinned public keys, in `trusted_keys.json`."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from hivellm_ort.errors import IntegrityError, LoadError, ManifestError
from hivellm_ort.filenames import shown
from hivellm_ort.integrity.ed25519 import PREFIX, checked_key
from hivellm_ort.integrity.verdict import short_key
from hivellm_ort.jsonfiles.reading import read_json
from hivellm_ort.package.folders import default_root
from hivellm_ort.paths import StrPath

__all__ = ["TrustStore", "checked_keys"]

_NAME = "trusted_keys.json"
_FORMAT = 1
_MAX_NAME = 80


class TrustStore:
    """Public keys pinned by name. Several processes may change it at once; readers always see a complete file.

    The file is in `HIVELLM_HOME` if that is set, else in the user's configuration folder. Clearing the cache of
    packages does not remove it.

    Args:
        path: Path of the file. Default: as above.

    Attributes:
        path: The file; it need not exist.
    """

    def __init__(self, path: StrPath | None = None) -> None:
        self.path = _default_path() if path is None else Path(path)

    def mapping(self) -> dict[str, str]:
        """Return public keys by name, in the order they were added; empty without a file.

        Raises:
            LoadError: The file cannot be read or is damaged.
        """
        try:
            if not self.path.exists():
                return {}
            return _read(read_json(self.path))
        except (OSError, ManifestError, IntegrityError) as error:
            raise LoadError(
                f"{self.path}: the pinned keys cannot be read: {error}; or move the file away and add them again"
            ) from error

    def add(self, name: str, key: str) -> None:
        """Pin a public key. Pinning the same key under the same name again changes nothing.

        Args:
            name: Name of the key's owner.
            key: `ed25519:` and 64 hex digits.

        Raises:
            IntegrityError: Name or key is malformed, or one of them is pinned already, to another key or name.
            LoadError: The file cannot be read or written.
        """
        _check_name(name)
        checked_key(key)
        with self._locked():
            keys = self.mapping()
            if keys.get(name) == key:
                return
            if name in keys:
                raise IntegrityError(
                    f"{shown(name)} is pinned to another key, {short_key(keys[name])}; ask the publisher why it "
                    "changed, then remove that one with 'hivellm-ort trust remove'"
                )
            self._save(checked_keys({**keys, name: key}))

    def remove(self, name_or_key: str) -> str:
        """Remove a pinned key.

        Returns:
            The name it had.

        Raises:
            IntegrityError: No such name or key is pinned.
            LoadError: The file cannot be read or written.
        """
        with self._locked():
            keys = self.mapping()
            name = next((name for name, key in keys.items() if name_or_key in (name, key)), None)
            if name is None:
                raise IntegrityError(f"{shown(name_or_key)} is not pinned; see 'hivellm-ort trust list'")
            del keys[name]
            self._save(keys)
        return name

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f"{self.path.name}.lock")):
                yield
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            raise LoadError(
                f"{self.path}: cannot be written: {getattr(error, 'strerror', None) or error}; "
                "check the permissions, or set HIVELLM_HOME to a folder that can be written"
            ) from error

    def _save(self, keys: Mapping[str, str]) -> None:
        scratch = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}.tmp")
        try:
            with scratch.open("x", encoding="utf-8") as file:
                json.dump({"format": _FORMAT, "keys": keys}, file, indent=2, ensure_ascii=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self.path)
        finally:
            scratch.unlink(missing_ok=True)


def checked_keys(keys: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of names and their public keys after checking their form.

    Raises:
        IntegrityError: A name or a key is malformed, or one key has two names.
    """
    names: dict[str, str] = {}
    for name, key in keys.items():
        _check_name(name)
        if not isinstance(key, str):
            raise IntegrityError(f"the key of {shown(name)} is not a text")
        checked_key(key)
        if key in names:
            raise IntegrityError(
                f"the key {short_key(key)} is pinned as {shown(names[key])} already; use that name, or remove it "
                "first with 'hivellm-ort trust remove'"
            )
        names[key] = name
    return dict(keys)


def _read(value: Mapping[str, Any]) -> dict[str, str]:
    if (
        value.keys() != {"format", "keys"}
        or value["format"] != _FORMAT
        or not isinstance(value["keys"], dict)
    ):
        raise IntegrityError(f"not of the form of format {_FORMAT}")
    return checked_keys(value["keys"])


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > _MAX_NAME or not name.isprintable() or name.startswith(PREFIX):
        raise IntegrityError(
            f"{shown(name)} is not a name for a key; give 1 to {_MAX_NAME} printable characters that are not a key"
        )


def _default_path() -> Path:
    if os.environ.get("HIVELLM_HOME"):
        return default_root() / _NAME
    import platformdirs

    return platformdirs.user_config_path("hivellm-ort", appauthor=False) / _NAME
