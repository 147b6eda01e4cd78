"""Signed packages for the tests of this folder."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.signing import SEED, TIME, public, reference_signed

from hivellm_ort.errors import ManifestError
from hivellm_ort.integrity.native import signed_manifest
from hivellm_ort.integrity.verdict import Verdict
from hivellm_ort.integrity.verification import verify
from hivellm_ort.package.archive import Member
from hivellm_ort.package.member_names import is_never_loaded
from hivellm_ort.package.store import UnpackedPackage

HIVELLM = Path(__file__).parents[2].parent / "shared" / "hivellm"
"""Published packages and manifests; not part of the repository."""

OTHER_SEED = bytes(range(1, 33))

Files = dict[str, bytes]


KEYS = {"publisher": public()}

MANIFEST: dict[str, Any] = {
    "name": "expert-demo",
    "version": "0.1.0",
    "schema_version": "2.0",
    "description": "Verträge, 日本語",
    "base_models": [{"name": "Qwen3-0.6B", "adapters": [{"type": "dora", "r": 16, "alpha": 32}]}],
    "training": {"config": {"learning_rate": 0.25, "epochs": 3.0}},
    "evaluation": None,
    "integrity": None,
    "license": "Apache-2.0",
}

CONTENTS: Files = {
    "README.md": b"# Demo\n",
    "adapter_model.safetensors": b"weights",
    "grammar.gbnf": b"root ::= [a-z]+\n",
    "tests/über.txt": b"x",
}


@functools.cache
def member(name: str, data: bytes) -> Member:
    """A file as `extract` notes it."""
    return Member(name, len(data), hashlib.sha256(data).hexdigest())


def unpacked(root: Path, files: Files) -> UnpackedPackage:
    """A package of these files as the store would give it; only its manifest is on disk."""
    root.mkdir(exist_ok=True)
    path = root / "manifest.json"
    path.unlink(missing_ok=True)  # file systems write a file through that is truncated, which takes longer
    path.write_bytes(files["manifest.json"])
    members = [member(name, data) for name, data in files.items()]
    return UnpackedPackage(
        root=root,
        sha256=hashlib.sha256("".join(m.sha256 for m in members).encode()).hexdigest(),
        adapter=None,
        bundles=(),
        members=tuple(m for m in members if not is_never_loaded(m.name)),
        skipped=tuple(m for m in members if is_never_loaded(m.name)),
        notes=(),
    )


def native(contents: Files = CONTENTS, manifest: dict[str, Any] = MANIFEST, seed: bytes = SEED) -> Files:
    """The files of a package with our signature."""
    members = [member(name, data) for name, data in contents.items()]
    text = signed_manifest(manifest, members, seed, publisher="Publisher", created_at=TIME)
    return {"manifest.json": text, **contents}


def signed_by_description(fields: dict[str, Any], contents: Files) -> Files:
    """A package with our signature, made from the description of the scheme alone.

    Args:
        fields: What to put into the integrity block before signing.
        contents: The members beside the manifest.
    """
    block = {
        "scheme": "hivellm-ort/1",
        "created_at": TIME,
        "publisher": "Someone else",
        "pubkey": public(),
        "signature_algorithm": "ed25519",
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
        **fields,
        "signature": "",
    }
    stripped = (json.dumps({"name": "x", "integrity": block}, indent=2) + "\n").encode()
    lines = [
        f"{hashlib.sha256(data).hexdigest()} {len(data)} {name}\n".encode()
        for name, data in {**contents, "manifest.json": stripped}.items()
    ]
    message = b"hivellm-ort package 1\n" + b"".join(sorted(lines, key=lambda line: line.split(b" ", 2)[2]))
    signature = Ed25519PrivateKey.from_private_bytes(SEED).sign(message).hex()
    text = stripped.replace(b'"signature": ""', f'"signature": "{signature}"'.encode())
    return {"manifest.json": text, **contents}


def reference(
    contents: Files = CONTENTS, manifest: dict[str, Any] = MANIFEST, seed: bytes = SEED, **options: Any
) -> Files:
    """The files of a package as the reference tool signs it; the options are those of `reference_signed`."""
    return reference_signed(contents, manifest, seed, **options)


def archive(path: Path, files: Files | Sequence[tuple[str, bytes]]) -> Path:
    """Write files as a package, in their order and as often as they are named."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items() if isinstance(files, dict) else files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path.write_bytes(gzip.compress(buffer.getvalue(), compresslevel=0, mtime=0))
    return path


def folder(path: Path, files: Files) -> UnpackedPackage:
    """Write files into a folder and open it as `open_package` does."""
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return UnpackedPackage(root=path, sha256="", adapter=None, bundles=(), members=(), skipped=(), notes=())


def one_byte_changes(data: bytes, positions: Iterable[int], flip: int = 1) -> Iterator[tuple[int, bytes]]:
    """The data with the byte at each position changed by an exclusive or."""
    for position in positions:
        yield position, data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :]


def status(root: Path, files: Files) -> str:
    """Return the verdict's status; `unreadable` for a manifest that is not JSON any more."""
    try:
        return verify(unpacked(root, files), KEYS).status
    except ManifestError:
        return "unreadable"


def verdict(root: Path, files: Files) -> Verdict:
    """The verdict on these files."""
    return verify(unpacked(root, files), KEYS)


def tampered(files: Files) -> dict[str, Files]:
    """The same package with one thing done to its members, by what was done."""
    (first, data), *rest = [(name, data) for name, data in files.items() if name != "manifest.json"]
    manifest = files["manifest.json"]
    others = {"manifest.json": manifest, **dict(rest)}
    return {
        "added": {**files, "extra.txt": b"x"},
        "added pickle": {**files, "extra.bin": b"x"},
        "added empty": {**files, "extra.txt": b""},
        "removed": others,
        "renamed": {f"{first}2": data, **others},
        "moved": {f"docs/{first}": data, **others},
        "swapped": {**files, first: rest[0][1], rest[0][0]: data},
        "emptied": {**files, first: b""},
        "grown": {**files, first: data + b"\n"},
    }
