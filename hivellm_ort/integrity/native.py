r"""Our own signature of a package, the scheme `hivellm-ort/1`.

The manifest. `manifest.json` is UTF-8 text. The last key of its object is `integrity`, and that block has
exactly these keys in this order::

    "integrity": {
      "scheme": "hivellm-ort/1",
      "created_at": "2026-11-22T09:40:30Z",           RFC 3339, UTC, whole seconds
      "publisher": "HiveLLM",                         any text; a claim, as long as the key is not pinned
      "pubkey": "ed25519:<64 lower-case hex digits>",
      "signature_algorithm": "ed25519",
      "files": {"<path>": "<SHA-256, 64 lower-case hex digits>", …},
      "signature": "<128 lower-case hex digits>"
    }

`files` holds every member but `manifest.json`, sorted by the UTF-8 bytes of the paths. It serves to name the
file that was changed; the signature does not need it. The text ends with exactly these bytes, `\n` being the
one byte 0A::

    "signature": "<128 lower-case hex digits>"\n  }\n}\n

How the rest of the manifest is laid out does not matter: it is signed byte by byte, and never parsed and
written again in order to verify it. The stripped manifest is the file without those 128 digits.

The message. It is UTF-8 text: the line `hivellm-ort package 1`, then for each member of the package, sorted by
the UTF-8 bytes of its path, the line `<SHA-256> <size> <path>`: the digest in 64 lower-case hex digits, the size
in bytes as a decimal number, one space between them, `/` between the parts of the path. Each line, the last one
too, ends with the byte 0A. For `manifest.json` digest and size are those of the stripped manifest. Members are
the regular files that the archive really holds, each path once; files that macOS and Windows add (`._NAME`,
`.DS_Store`, `Thumbs.db`, `desktop.ini`) are members only where `files` lists them. A path never holds a control
character, so no two lists of members give the same message.

The signature is that of pure Ed25519 (RFC 8032) over the message.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from hivellm_ort.errors import IntegrityError, ManifestError
from hivellm_ort.integrity import ed25519
from hivellm_ort.integrity.listing import compare, covered, field, listed_digests
from hivellm_ort.package.archive import Member
from hivellm_ort.package.manifest import MANIFEST

__all__ = ["SCHEME", "signed_manifest", "verified_key"]

SCHEME = "hivellm-ort/1"
"""Name of the scheme."""

_KEYS = ["scheme", "created_at", "publisher", "pubkey", "signature_algorithm", "files", "signature"]
_END = b'"\n  }\n}\n'
_TAIL = re.compile(rb'"signature": "[0-9a-f]{128}"\n  \}\n\}\n\Z')
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_ALGORITHM = re.compile("ed25519")
_TEXT = re.compile(r".*", re.DOTALL)


def signed_manifest(
    manifest: Mapping[str, Any], members: Iterable[Member], seed: bytes, *, publisher: str, created_at: str
) -> bytes:
    """Return a manifest that carries the signature of its package.

    Args:
        manifest: The parsed manifest; an integrity block in it is replaced.
        members: All other members of the package.
        seed: The private key.
        publisher: Name of the signer.
        created_at: Time of signing, as the scheme writes it.

    Returns:
        The bytes of `manifest.json`.

    Raises:
        ManifestError: The manifest cannot be written.
    """
    rest = sorted(members, key=_path_bytes)
    block = {
        "scheme": SCHEME,
        "created_at": created_at,
        "publisher": publisher,
        "pubkey": ed25519.public_key(seed),
        "signature_algorithm": "ed25519",
        "files": {member.name: member.sha256 for member in rest},
        "signature": "",
    }
    whole = {key: value for key, value in manifest.items() if key != "integrity"} | {"integrity": block}
    try:
        stripped = (json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError as error:
        raise ManifestError(f"{MANIFEST}: half of a surrogate pair; correct the escape") from error
    signature = ed25519.sign(seed, _message(stripped, rest))
    return stripped.removesuffix(_END) + signature.encode() + _END


def verified_key(
    text: bytes, manifest: Mapping[str, Any], block: Mapping[str, Any], members: Mapping[str, Member]
) -> str:
    """Return the public key that signed the package.

    Args:
        text: The bytes of `manifest.json`.
        manifest: The same, parsed.
        block: Its integrity block.
        members: All other members of the package by name.

    Raises:
        IntegrityError: There is no valid signature. The message says what was changed.
    """
    if _TAIL.search(text[-200:]) is None or [*manifest][-1] != "integrity" or [*block] != _KEYS:
        raise IntegrityError(f"{MANIFEST} does not end with an integrity block as {SCHEME} writes it")
    field(block, "created_at", _TIME)
    field(block, "publisher", _TEXT)
    field(block, "signature_algorithm", _ALGORITHM)
    key = field(block, "pubkey", ed25519.PUBLIC_KEY)
    signature = field(block, "signature", ed25519.SIGNATURE)
    listed = listed_digests(block)
    members = covered(listed, members)
    compare(listed, members)
    stripped = text[: -len(_END) - len(signature)] + _END
    if not ed25519.is_valid(key, signature, _message(stripped, members.values())):
        raise IntegrityError(f"{MANIFEST} or the signature in it was changed after signing")
    return key


def _message(stripped: bytes, members: Iterable[Member]) -> bytes:
    manifest = Member(MANIFEST, len(stripped), hashlib.sha256(stripped).hexdigest())
    lines = [f"{m.sha256} {m.size} {m.name}\n" for m in sorted([manifest, *members], key=_path_bytes)]
    return ("hivellm-ort package 1\n" + "".join(lines)).encode()


def _path_bytes(member: Member) -> bytes:
    return member.name.encode()
