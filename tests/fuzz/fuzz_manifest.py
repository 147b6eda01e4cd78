"""`manifest.json`: it loads or is refused with a ManifestError that has a place, and strict reading refuses more."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mutations import bytes_changed, json_changed, mutated, words_changed
from package_samples import COMPLETE, FIRST_SCHEMA, SECOND_SCHEMA

from hivellm_ort.errors import ManifestError
from hivellm_ort.package.manifest import ExpertManifest

_FILE = Path(tempfile.mkdtemp(prefix="hivellm-fuzz-")) / "m.json"


def _keys(value: Any) -> Iterator[str]:
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key
        yield from _keys(inner)
    for inner in value if isinstance(value, list) else ():
        yield from _keys(inner)


WORDS = [*sorted({*_keys(COMPLETE), *_keys(FIRST_SCHEMA)}), "1.0", "2.0", "3.1", "dora", "ia3", "ab" * 32]
_PIECES = [
    "null",
    "[",
    "]",
    "{",
    "}",
    '"',
    ",",
    ":",
    "NaN",
    "1e999",
    "-",
    "\\",
    "\\ud800",
    '"name": 1,',
    "\ufeff",
]
_WAYS = (json_changed(WORDS), json_changed(WORDS), words_changed(_PIECES), bytes_changed)


def samples() -> list[bytes]:
    """Manifests of both schemas, and the encodings of a text file."""
    texts = [json.dumps(one, indent=1) for one in (COMPLETE, FIRST_SCHEMA, SECOND_SCHEMA)]
    return [*(text.encode() for text in texts), texts[1].encode("utf-16"), texts[1].encode("utf-8-sig")]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Another manifest."""
    return mutated(data, rng, _WAYS)


def target(data: bytes) -> None:
    """Read a manifest file both ways, and as a dict, which may hold what JSON does not."""
    _FILE.write_bytes(data)
    tolerant = _outcome(lambda: ExpertManifest.from_file(_FILE))
    _compare(tolerant, _outcome(lambda: ExpertManifest.from_file(_FILE, strict=True)))
    if isinstance(tolerant, ManifestError):
        lines = data.replace(b"\r", b"\n").split(b"\n")
        assert tolerant.line is not None
        assert tolerant.column is not None
        assert 1 <= tolerant.line <= len(lines)
        assert 1 <= tolerant.column <= len(data) + 1
    value = None
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(data)
    if isinstance(value, dict):
        before = list(value)
        _compare(
            _outcome(lambda: ExpertManifest.from_dict(value, where="m.json")),
            _outcome(lambda: ExpertManifest.from_dict(value, where="m.json", strict=True)),
        )
        assert before == list(value)


def _outcome(read: Callable[[], ExpertManifest]) -> ExpertManifest | ManifestError:
    try:
        result = read()
    except ManifestError as error:
        for line in str(error).split("\n"):
            assert line.startswith("m.json:"), line
            assert line.isprintable(), line
            assert len(line) < 1000, line
        return error
    assert any(base.adapters for base in result.base_models)
    assert result.name.strip()
    return result


def _compare(tolerant: ExpertManifest | ManifestError, strict: ExpertManifest | ManifestError) -> None:
    """Strict reading refuses at least what the tolerant one refuses or warns of, and reads the same."""
    if isinstance(strict, ExpertManifest):
        assert repr(tolerant) == repr(strict)
        assert () == strict.warnings
    elif isinstance(tolerant, ManifestError) and tolerant.pointer is not None:
        assert f" {ascii(tolerant.pointer[:20])[1:-1]}" in str(strict)
