"""Whatever a manifest holds, it loads or is refused with a ManifestError.

`HIVELLM_FUZZ_EXAMPLES` sets the number of examples of each test.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from package_samples import COMPLETE, FIRST_SCHEMA

from hivellm_ort.errors import ManifestError
from hivellm_ort.package.manifest import ExpertManifest

EXAMPLES = int(os.environ.get("HIVELLM_FUZZ_EXAMPLES", "300"))
TEXT = json.dumps(COMPLETE, indent=1).encode()


def pointers(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths of all values inside a value."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [found for key in keys for found in [(*path, key), *pointers(value[key], (*path, key))]]


_any_text = st.text(st.characters(codec=None), max_size=6)  # halves of surrogate pairs too
_keys = (
    st.sampled_from(sorted({str(path[-1]) for path in pointers({**FIRST_SCHEMA, **COMPLETE})})) | _any_text
)
_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(
        ["", "1.0", "2.0", "3.1", "dora", "ia3", "expert-x", "ab" * 32, 10**400, 10**4000, 0, -1, 1]
    )
    | _any_text
)
_json = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=12,
)
_changes = st.lists(
    st.tuples(st.sampled_from(pointers(COMPLETE)), _keys, _json, st.sampled_from(["set", "add", "remove"])),
    min_size=1,
    max_size=4,
)
_edits = st.lists(
    st.tuples(
        st.integers(0, len(TEXT)),
        st.integers(0, 12),
        st.binary(max_size=4)
        | st.sampled_from(
            [
                b"null",
                b"[",
                b"]",
                b"{",
                b"}",
                b'"',
                b",",
                b"NaN",
                b"1e999",
                b"-",
                b"\\",
                b"\\ud800",
                b'"name": 1,',
            ]
        ),
    ),
    min_size=1,
    max_size=4,
)


def outcome(read: Any) -> ExpertManifest | ManifestError:
    """What reading ends with; any other exception fails the test."""
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


def check(tolerant: ExpertManifest | ManifestError, strict: ExpertManifest | ManifestError) -> None:
    """Strict reading refuses at least what the tolerant one refuses or warns of, and reads the same."""
    if isinstance(strict, ExpertManifest):
        assert repr(tolerant) == repr(strict)
        assert () == strict.warnings
    elif isinstance(tolerant, ManifestError) and tolerant.pointer is not None:
        assert f" {ascii(tolerant.pointer[:20])[1:-1]}" in str(strict)


def check_dict(manifest: dict[str, Any]) -> None:
    """Read a dict both ways; it stays as it is."""
    before = repr(manifest.keys())
    check(
        outcome(lambda: ExpertManifest.from_dict(manifest, where="m.json")),
        outcome(lambda: ExpertManifest.from_dict(manifest, where="m.json", strict=True)),
    )
    assert before == repr(manifest.keys())


@settings(max_examples=EXAMPLES)
@given(manifest=st.dictionaries(_keys, _json, max_size=8))
def test_any_object(manifest: dict[str, Any]) -> None:
    """Any JSON object gives a manifest or a ManifestError."""
    check_dict(manifest)


@settings(max_examples=EXAMPLES)
@given(changes=_changes)
@example(changes=[(("base_models",), "base_models", [{"name": "a", "adapters": [None]}] * 60, "set")])
def test_any_change_of_a_good_manifest(changes: list[tuple[Any, str, Any, str]]) -> None:
    """A good manifest with any values set, added or removed gives a manifest or a ManifestError."""
    manifest = copy.deepcopy(COMPLETE)
    for path, key, value, change in changes:
        at: Any = manifest
        for step in path[:-1]:
            if not isinstance(at, dict | list) or not _has(at, step):
                break
            at = at[step]
        else:
            if change == "add" and isinstance(at, dict):
                at[key] = value
            elif isinstance(at, dict | list) and _has(at, path[-1]):
                if change == "remove":
                    del at[path[-1]]
                else:
                    at[path[-1]] = value
    check_dict(manifest)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples are written."""
    return tmp_path_factory.mktemp("fuzz") / "m.json"


@settings(max_examples=EXAMPLES)
@given(edits=_edits)
def test_any_bytes(file: Path, edits: list[tuple[int, int, bytes]]) -> None:
    """A good file with any bytes replaced, inserted or removed gives a manifest or a ManifestError."""
    data = TEXT
    for at, length, piece in edits:
        data = data[:at] + piece + data[at + length :]
    file.write_bytes(data)
    tolerant = outcome(lambda: ExpertManifest.from_file(file))
    check(tolerant, outcome(lambda: ExpertManifest.from_file(file, strict=True)))
    if isinstance(tolerant, ManifestError):
        lines = data.split(b"\n")
        assert tolerant.line is not None
        assert tolerant.column is not None
        assert 1 <= tolerant.line <= len(lines)
        assert 1 <= tolerant.column <= len(lines[tolerant.line - 1]) + 1


def _has(container: Any, key: Any) -> bool:
    return key in container if isinstance(container, dict) else isinstance(key, int) and key < len(container)
