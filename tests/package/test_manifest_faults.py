"""Broken manifests are refused with the place of the fault."""

# The expected value comes first.

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from package_samples import FIRST_SCHEMA, SECOND_SCHEMA, changed

from hivellm_ort.errors import ManifestError
from hivellm_ort.package.manifest import ExpertManifest


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("/name", None),
        ("/name", " "),
        ("/name", 3),
        ("/name", "\ud800"),
        ("/version", None),
        ("/version", 1.0),
        ("/schema_version", 2.0),
        ("/schema_version", "3.0"),
        ("/schema_version", "10.0"),
        ("/schema_version", "0.9"),
        ("/schema_version", "two"),
        ("/schema_version", "2.0-beta"),
        ("/description", []),
        ("/license", {}),
        ("/capabilities", "sql"),
        ("/capabilities/0", 1),
        ("/base_models", None),
        ("/base_models", []),
        ("/base_models", {}),
        ("/base_models/0", "Qwen3"),
        ("/base_models/0/name", None),
        ("/base_models/0/name", "/"),
        ("/base_models/0/sha256", 1),
        ("/base_models/0/prompt_template", 1),
        ("/base_models/0/adapters", None),
        ("/base_models/0/adapters", []),
        ("/base_models/0/adapters", {}),
        ("/base_models/0/adapters/0", []),
        ("/base_models/0/adapters/0/type", 1),
        ("/base_models/0/adapters/0/r", "12"),
        ("/base_models/0/adapters/0/r", 1.5),
        ("/base_models/0/adapters/0/r", True),
        ("/base_models/0/adapters/0/alpha", "24"),
        ("/base_models/0/adapters/0/target_modules", "q_proj"),
        ("/base_models/0/adapters/0/target_modules/0", 1),
        ("/base_models/0/adapters/0/size_bytes", "1"),
        ("/base_models/0/adapters/0/path", 1),
        ("/training", []),
        ("/training/decoding", []),
        ("/training/decoding/temperature", "0.7"),
        ("/training/decoding/temperature", False),
        ("/training/decoding/temperature", float("nan")),
        ("/training/decoding/temperature", 10**400),
        ("/training/decoding/top_k", 0.5),
        ("/training/decoding/stop_sequences", ";"),
        ("/training/decoding/stop_sequences/0", 1),
        ("/training/decoding/use_grammar", 1),
        ("/training/decoding/grammar_type", True),
    ],
)
def test_refuses_field(pointer: str, value: object) -> None:
    """A missing or mistyped field is refused by file and JSON pointer."""
    with pytest.raises(ManifestError) as caught:
        ExpertManifest.from_dict(changed(pointer, value), where="m.json")
    assert str(caught.value).startswith(f"m.json: {pointer}: ")


@pytest.mark.parametrize(("key", "value"), [("base_model", None), ("adapters", []), ("base_model", "Qwen3")])
def test_refuses_field_of_first_schema(key: str, value: object) -> None:
    """The required fields of schema 1.0 are named where that schema has them."""
    with pytest.raises(ManifestError, match=f"^manifest.json: /{key}: "):
        ExpertManifest.from_dict({**FIRST_SCHEMA, key: value})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["line 1, column 1"]),
        (b'{\n  "name": x}', ["line 2, column 11"]),
        (b'{"name": "a",}', ["line 1, column "]),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', ["'c'", "twice"]),
        (b'{"a": NaN}', ["NaN"]),
        (b'{"a": -Infinity}', ["-Infinity"]),
        (b'{"a": 1e999}', ["1e999"]),
        (b'{"a": ' + b"9" * 5000 + b"}", ["5000 digits"]),
        (b"[1]", ["a list", "object"]),
        (b"null", ["null"]),
        (b'{"a": "\xff"}', ["byte 7", "UTF-8"]),
        (json.dumps(SECOND_SCHEMA).encode("utf-16"), ["UTF-8"]),
        (b"[" * 100_000, ["nested"]),
        (b" " * (4 << 20) + b"{}", ["4 MiB"]),
    ],
)
def test_refuses_file(tmp_path: Path, data: bytes, words: list[str]) -> None:
    """A file that is no strict JSON is refused with the place, and without its folder."""
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(ManifestError) as caught:
        ExpertManifest.from_file(tmp_path / "manifest.json")
    message = str(caught.value)
    assert message.startswith("manifest.json: ")
    assert [] == [word for word in words if word not in message]
    assert str(tmp_path) not in message


def test_missing_file(tmp_path: Path) -> None:
    """A missing manifest is a ManifestError."""
    with pytest.raises(ManifestError, match="cannot be read"):
        ExpertManifest.from_file(tmp_path / "manifest.json")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


_pointers = [
    "/name", "/version", "/schema_version", "/description", "/base_models", "/base_model", "/capabilities",
    "/adapters", "/training", "/license", "/base_models/0", "/base_models/0/name", "/base_models/0/sha256",
    "/base_models/0/adapters", "/base_models/0/adapters/0", "/base_models/0/adapters/0/type",
    "/base_models/0/adapters/0/r", "/base_models/0/adapters/0/alpha", "/training/decoding",
    "/training/decoding/temperature", "/training/decoding/top_k", "/training/decoding/stop_sequences",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(pointer=st.sampled_from(_pointers), value=_json)
def test_any_value(pointer: str, value: object) -> None:
    """Whatever a field holds, the manifest loads or is refused with a typed error."""
    try:
        manifest = ExpertManifest.from_dict(changed(pointer, value))
    except ManifestError:
        return
    assert any(base.adapters for base in manifest.base_models)
