"""Broken manifests are refused with the place of the fault."""

# The expected value comes first.

from __future__ import annotations

import json
from pathlib import Path

import pytest
from package_samples import FIRST_SCHEMA, SECOND_SCHEMA, changed

from hivellm_ort.errors import ManifestError
from hivellm_ort.jsonfiles.reading import read_json
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
        ("/schema_version", "3.0"),
        ("/schema_version", "3.0-beta"),
        ("/schema_version", "10.0"),
        ("/schema_version", "0.9"),
        ("/base_models", None),
        ("/base_models", []),
        ("/base_models", {}),
        ("/base_models", ["Qwen3"]),
        ("/base_models/0/name", None),
        ("/base_models/0/name", 1),
        ("/base_models/0/name", "/"),
        ("/base_models/0/adapters", None),
        ("/base_models/0/adapters", []),
        ("/base_models/0/adapters", {}),
        ("/base_models/0/adapters", [[]]),
    ],
)
def test_refuses_field(pointer: str, value: object) -> None:
    """Without a name, a version, a base model or an adapter a manifest is refused, by file and JSON pointer."""
    with pytest.raises(ManifestError) as caught:
        ExpertManifest.from_dict(changed(pointer, value), where="m.json")
    assert str(caught.value).startswith(f"m.json: {pointer}: ")
    assert (pointer, None, None) == (caught.value.pointer, caught.value.line, caught.value.column)


@pytest.mark.parametrize(("key", "value"), [("base_model", None), ("adapters", []), ("base_model", "Qwen3")])
def test_refuses_field_of_first_schema(key: str, value: object) -> None:
    """The required fields of schema 1.0 are named where that schema has them."""
    with pytest.raises(ManifestError, match=f"^manifest.json: /{key}: "):
        ExpertManifest.from_dict({**FIRST_SCHEMA, key: value})


@pytest.mark.parametrize(
    ("data", "place", "pointer", "words"),
    [
        (b"", "1:1", None, "Expecting value"),
        (b'{\n  "name": x}', "2:11", None, "Expecting value"),
        (b'\xef\xbb\xbf{\r\n"a":\r\n !}', "3:2", None, "Expecting value"),
        (b'{"a": 1,\n "b": {"c": 1,\n   "c": 2}}', "3:4", "/b/c", "the key 'c' comes twice"),
        (b'{"a": 1, "\\u0061": 2}', "1:10", "/a", "the key 'a' comes twice"),
        (b'{"a\\nb/~": 1, "a\\nb/~": 2}', "1:15", "/a\nb~1~0", r"/a\nb~1~0: the key 'a\nb/~' comes twice"),
        (b'{"a": [1, NaN]}', "1:11", "/a/1", "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "1:7", "/a", "-Infinity is not"),
        (b'{"a": "NaN 1e999", "b": {"c": 1e999}}', "1:31", "/b/c", "1e999"),
        (b'{"a":\n' + b"9" * 5000 + b"}", "2:1", "/a", "999...' is out of range"),
        (b"[1]", "1:1", None, "holds a list where an object is expected"),
        (b"null", "1:1", None, "holds null"),
        (b'{"a": "\xff"}', "1:8", None, "byte 7 is not UTF-8"),
        (b'\xef\xbb\xbf{\n"\xc3\xa9": "\xc3"}', "2:7", None, "byte 12 is not UTF-8"),
        (b'\xff\xfe{\0\n\0"\0\x00\xd8"\0}\0', "2:2", None, "byte 8 is not UTF-16-LE; save the file as UTF-8"),
        (b"\xfe\xff\0{\0\n\0x", "2:1", None, "Expecting property name"),
        (b"\xff\xfe{\0}\0\n", "1:3", None, "byte 6 is not UTF-16-LE"),
        (json.dumps(SECOND_SCHEMA).encode("utf-16-le"), "1:1", None, "UTF-16 without a byte order mark"),
        (json.dumps(SECOND_SCHEMA).encode("utf-16-be"), "1:1", None, "UTF-16 without a byte order mark"),
        (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "1:105", None, "more than 100 objects and lists"),
        (b"[" * 100_000, "1:101", None, "more than 100 objects and lists"),
        (b'{"a":[' + b"0," * 100_000 + b"0]}", "1:200005", None, "more than 100000 values"),
    ],
)
def test_refuses_file(tmp_path: Path, data: bytes, place: str, pointer: str | None, words: str) -> None:
    """A file that is no strict JSON is refused in one line with the place, and without its folder."""
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(ManifestError) as caught:
        ExpertManifest.from_file(tmp_path / "manifest.json")
    message = str(caught.value)
    assert message.startswith(f"manifest.json:{place}: ")
    assert words in message
    assert (place, pointer) == (f"{caught.value.line}:{caught.value.column}", caught.value.pointer)
    assert (True, False) == (message.isprintable(), str(tmp_path) in message)


@pytest.mark.parametrize("inside", [b"[" * 99 + b"]" * 99, b"[" + b"0," * 99_998 + b"0]", b"9" * 400])
def test_just_within_the_limits(tmp_path: Path, inside: bytes) -> None:
    """As deep, as many values and as many digits as are allowed make a good file."""
    (tmp_path / "manifest.json").write_bytes(b'{"a":' + inside + b"}")
    assert ["a"] == list(read_json(tmp_path / "manifest.json"))


def test_too_large(tmp_path: Path) -> None:
    """A file beyond the size limit is refused before it is parsed."""
    (tmp_path / "manifest.json").write_bytes(b" " * (4 << 20) + b"{}")
    with pytest.raises(ManifestError, match="larger than 4 MiB"):
        ExpertManifest.from_file(tmp_path / "manifest.json")


def test_missing_file(tmp_path: Path) -> None:
    """A missing manifest is a ManifestError."""
    with pytest.raises(ManifestError, match="cannot be read"):
        ExpertManifest.from_file(tmp_path / "manifest.json")


@pytest.mark.parametrize(
    ("pointer", "marked"),
    [
        ("/version", '{"name": "n",\n  "version" : ^1, "base_models": [{"name": "b", "adapters": [{}]}]}'),
        (
            "/name",
            '{"version": "1", "base_models": [{"name": "b", "adapters": [{}]}],\r\n\r\n"name":\t^null}',
        ),
        ("/name", '\n^{"version": "1", "base_models": [{"name": "b", "adapters": [{}]}]}'),
        ("/base_models/0/name", '{"base_models":\n [\n  {"adapters": [{"a": [1]}], "name": ^"/"}]}'),
        ("/base_models/0/name", '{"base_models":\n [\n  ^{"adapters": [{"name": "x"}]}]}'),
        ("/base_models/0/adapters", '{"base_models": [{"name": "{[\\"]}", "adapters": ^[]}]}'),
        ("/schema_version", '{"é": "🐝",\n "🐝": {"a": {}}, "schema_version": ^"3"}'),
    ],
)
def test_place_of_a_fault(tmp_path: Path, pointer: str, marked: str) -> None:
    """A fault in a file has the place of the value, or of the object that lacks it; here marked by ^."""
    lines = marked[: marked.index("^")].split("\n")
    path = tmp_path / "manifest.json"
    path.write_bytes(marked.replace("^", "").encode("utf-8-sig"))
    with pytest.raises(ManifestError) as caught:
        ExpertManifest.from_file(path)
    line, column = len(lines), len(lines[-1]) + 1
    assert str(caught.value).startswith(f"manifest.json:{line}:{column}: {pointer}: ")
    assert (pointer, line, column) == (caught.value.pointer, caught.value.line, caught.value.column)


def test_place_of_a_warning(tmp_path: Path) -> None:
    """Warnings about a file have places too, in the order of the file."""
    path = tmp_path / "manifest.json"
    path.write_text(
        '{"name": "n", "version": "1",\n "tags": [null, 1],\n'
        ' "base_models": [{"name": "b", "adapters": [{"r": -1}]}],\n "license": 4}'
    )
    starts = [warning.rpartition(": ")[0] for warning in ExpertManifest.from_file(path).warnings]
    expected = [
        "manifest.json:2:17: /tags/1",
        "manifest.json:3:51: /base_models/0/adapters/0/r",
        "manifest.json:4:13: /license",
    ]
    assert expected == starts
