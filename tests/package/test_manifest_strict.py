"""Strict reading tells authors everything that is not good, by the schemas of this package."""

# The expected value comes first.

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from package_samples import COMPLETE, SECOND_SCHEMA, changed
from referencing.exceptions import Unresolvable

from hivellm_ort.errors import ManifestError
from hivellm_ort.package import manifest_schema
from hivellm_ort.package.manifest import ExpertManifest
from hivellm_ort.package.manifest_schema import schema_problems

COMPLETE_FIRST = {
    **{key: value for key, value in COMPLETE.items() if key != "base_models"},
    "schema_version": "1.0",
    "base_model": {key: value for key, value in COMPLETE["base_models"][0].items() if key != "adapters"},
    "adapters": COMPLETE["base_models"][0]["adapters"],
}
DECODING = "/training/decoding"
ADAPTER = "/base_models/0/adapters/0"
MISSING = object()
SCHEMAS = ["manifest-1.json", "manifest-2.json", "manifest-shared.json"]


def with_value(pointer: str, value: object) -> dict[str, Any]:
    """The complete manifest with one value set, or removed."""
    whole = changed(pointer, value, COMPLETE)
    if value is MISSING:
        at: Any = whole
        *parents, last = pointer.strip("/").split("/")
        for part in parents:
            at = at[int(part)] if isinstance(at, list) else at[part]
        del at[last]
    return whole


def problems(manifest: Mapping[str, Any]) -> list[str]:
    """The lines of strict reading's message, without the name of the file."""
    try:
        ExpertManifest.from_dict(manifest, where="m", strict=True)
    except ManifestError as error:
        return [line.removeprefix("m: ") for line in str(error).split("\n")]
    return []


@pytest.mark.parametrize("manifest", [COMPLETE, COMPLETE_FIRST], ids=["2.0", "1.0"])
def test_good_manifest(manifest: dict[str, Any]) -> None:
    """A good manifest of either version reads the same as without strict."""
    assert ExpertManifest.from_dict(manifest) == ExpertManifest.from_dict(manifest, strict=True)


def test_version_decides_over_the_form() -> None:
    """The schema is that of the version as written; without one, that of the form."""
    unnamed = {**COMPLETE_FIRST, "schema_version": None}
    assert [] == problems(unnamed)
    pointers = [line.split(": ")[0] for line in problems({**COMPLETE, "schema_version": "1.0"})]
    assert ["/adapters", "/base_model", "/base_models"] == pointers


@pytest.mark.parametrize(
    "pointer",
    [
        "/author", "/homepage", "/repository", "/tags", "/limitations", "/routing", "/constraints", "/perf",
        "/training", "/integrity", "/quality_metrics", "/base_models/0/sha256", "/base_models/0/prompt_template",
        "/routing/exclude_keywords", "/routing/priority", "/constraints/max_chain", f"{ADAPTER}/sha256",
        f"{DECODING}/temperature", "/integrity/scheme",
    ],
)  # fmt: skip
def test_null_is_absent(pointer: str) -> None:
    """Null counts as absent, so every optional field may be null."""
    assert [] == problems(with_value(pointer, None))


@pytest.mark.parametrize(
    "pointer",
    [
        "/name", "/version", "/schema_version", "/description", "/license", "/capabilities", "/base_models",
        "/base_models/0/name", "/base_models/0/adapters", f"{ADAPTER}/type", f"{ADAPTER}/target_modules",
        f"{ADAPTER}/r", f"{ADAPTER}/alpha", "/routing/keywords", "/repository/url", "/integrity/signature",
        "/integrity/created_at",
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [None, MISSING], ids=["null", "missing"])
def test_required(pointer: str, value: object) -> None:
    """A required field that is missing or null is the one problem."""
    (line,) = problems(with_value(pointer, value))
    assert line.startswith(f"{pointer}: ")


@pytest.mark.parametrize(
    ("pointer", "value", "expected"),
    [
        ("/name", "sql", """'sql' is not allowed; write it like "expert-sql\""""),
        ("/name", "expert-sql\n", """'expert-sql\\n' is not allowed; write it like "expert-sql\""""),
        ("/name", "expert-SQL", """'expert-SQL' is not allowed; write it like "expert-sql\""""),
        ("/version", "1.0", """'1.0' is not allowed; write it like "0.3.0\""""),
        ("/version", "1.0.٣", """'1.0.\\u0663' is not allowed; write it like "0.3.0\""""),
        ("/schema_version", "2.1", "'2.1' is newer than 2.0 and read as that"),
        ("/description", "", "empty; fill it in"),
        ("/capabilities", [], "empty; fill it in"),
        ("/capabilities/1", 3, "a number where a string is expected"),
        ("/limitations/0", 3, "a number where a string or an object is expected"),
        ("/homepage", "example.org", """'example.org' is not allowed; write it like "https://example.org/expert-sql\""""),
        ("/base_models/0/prompt_template", "zephyr", "'zephyr' is not a known template; check the spelling"),
        (f"{ADAPTER}/type", "LoRA", "'LoRA' is not allowed; use lora or dora or ia3 or lokr or adalora"),
        (f"{ADAPTER}/r", 300, "300 is out of range; write a number at most 256"),
        (f"{ADAPTER}/r", 0, "0 is out of range; write a number at least 1"),
        (f"{ADAPTER}/r", 1.5, "1.5 where a whole number is expected"),
        (f"{ADAPTER}/r", "16", "a string where a number is expected"),
        (f"{ADAPTER}/alpha", 0, "0 is out of range; write a number above 0"),
        (f"{ADAPTER}/dropout", 2, "2 is out of range; write a number at most 1"),
        (f"{DECODING}/temperature", 2.5, "2.5 is out of range; write a number at most 2"),
        ("/perf/latency_ms_overhead", "fast", "a string where a number is expected"),
        ("/integrity/scheme", "other", "'other' is not allowed; use hivellm-ort/1"),
        ("/integrity/files", {}, "empty; fill it in"),
        ("/base_model", {"name": "x"}, "not read, for schema '2.0' has base_models; remove one of them"),
        ("/adapters", [{}], "does not belong here; it is of schema 1.0: move the adapters into their base model."),
        ("/soft_prompts", [{"name": "a", "path": "b", "tokens": 4}],
         "not applied: this runtime has no soft prompts; remove them"),
    ],
)  # fmt: skip
def test_one_problem(pointer: str, value: object, expected: str) -> None:
    """Each rule names the fault and its pointer once."""
    assert [f"{pointer}: {expected}"] == problems(with_value(pointer, value))


def test_number_of_thousands_of_digits() -> None:
    """Numbers that Python refuses to print are problems as any others."""
    huge: int = 10**5000
    assert [f"{DECODING}/top_k: the number is out of range; write a finite one"] == problems(
        with_value(f"{DECODING}/top_k", huge)
    )
    assert ["/perf/supported_batch_sizes/0: inf where a whole number is expected"] == problems(
        with_value("/perf/supported_batch_sizes/0", huge)
    )


@pytest.mark.parametrize("section", [DECODING, "/routing", "/constraints"])
def test_misspelt_key(section: str) -> None:
    """An unknown key is a problem if a misspelt key would be lost, unless it is a comment."""
    assert [] == problems(with_value(f"{section}/_note", {"any": [None]}))
    (line,) = problems(with_value(f"{section}/top_kk", 5))
    assert line.startswith(f"{section}/top_kk: no known field; use one of ")


@pytest.mark.parametrize(
    "pointer", ["/future", "/base_models/0/future", f"{ADAPTER}/future", "/training/future"]
)
def test_unknown_keys_elsewhere(pointer: str) -> None:
    """In other objects unknown keys are allowed."""
    assert [] == problems(with_value(pointer, {"a": [1]}))


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr", "adalora"])
def test_rank_rules(kind: str) -> None:
    """Adapters of low rank need rank and alpha; IA³ has neither."""
    ranked = {"type": kind, "target_modules": ["q_proj"], "r": 8, "alpha": 16}
    bare = {"type": kind, "target_modules": ["q_proj"]}
    assert [] == problems(with_value(ADAPTER, ranked))
    assert [f"{ADAPTER}/alpha: missing; set it", f"{ADAPTER}/r: missing; set it"] == problems(
        with_value(ADAPTER, bare)
    )
    assert [] == problems(with_value(ADAPTER, {**bare, "type": "ia3"}))
    assert [
        f"{ADAPTER}/alpha: does not belong here; IA³ has no alpha.",
        f"{ADAPTER}/r: does not belong here; IA³ has no rank.",
    ] == problems(with_value(ADAPTER, {**ranked, "type": "ia3"}))


def test_integrity_of_the_reference_signer() -> None:
    """The signature block of the reference signer, which has no scheme, is valid too."""
    integrity = {key: value for key, value in COMPLETE["integrity"].items() if key != "scheme"}
    assert [] == problems({**COMPLETE, "integrity": integrity})


def test_every_problem_in_the_order_of_the_file(tmp_path: Path) -> None:
    """One error lists all problems of a file, with places that count the nulls of lists."""
    path = tmp_path / "manifest.json"
    path.write_text(
        '{\n "name": "sql", "version": 1,\n "tags": [null, "a", null, 5],\n'
        ' "training": {"decoding": {"top_k": "many", "temprature": 1}}}\n'
    )
    with pytest.raises(ManifestError) as caught:
        ExpertManifest.from_file(path, strict=True)
    lines = str(caught.value).split("\n")
    expected = [
        "manifest.json:1:1: /base_models",
        "manifest.json:1:1: /capabilities",
        "manifest.json:1:1: /description",
        "manifest.json:1:1: /license",
        "manifest.json:1:1: /schema_version",
        "manifest.json:2:10: /name",
        "manifest.json:2:28: /version",
        "manifest.json:3:28: /tags/3",
        "manifest.json:4:37: /training/decoding/top_k",
        "manifest.json:4:59: /training/decoding/temprature",
    ]
    assert expected == [": ".join(line.split(": ")[:2]) for line in lines]
    assert ("/base_models", 1, 1) == (caught.value.pointer, caught.value.line, caught.value.column)


def test_problems_beside_the_warnings(tmp_path: Path) -> None:
    """`schema_problems` lists problems that are not warnings. Together they are those of strict reading."""
    path = tmp_path / "manifest.json"
    manifest = changed(f"{DECODING}/top_p", 0)
    path.write_text(json.dumps(manifest))
    found, warnings = schema_problems(path), list(ExpertManifest.from_file(path).warnings)
    with pytest.raises(ManifestError) as caught:
        ExpertManifest.from_file(path, strict=True)
    assert 1 == len(warnings)
    assert sorted(str(caught.value).split("\n")) == sorted(found + warnings)
    assert all(line.startswith("manifest.json:1:") for line in found)


def test_problems_of_a_manifest_that_does_not_load(tmp_path: Path) -> None:
    """`schema_problems` also lists the errors that prevent loading."""
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**COMPLETE, "version": None}))
    assert 1 == len(schema_problems(path))
    path.write_text(json.dumps({**COMPLETE, "schema_version": "3.0"}))
    assert ["use a newer hivellm-ort"] == [line.split("; ")[1] for line in schema_problems(path)]
    path.write_text(json.dumps(COMPLETE))
    assert [] == schema_problems(path)


def test_hostile_keys_and_values() -> None:
    """Every problem stays one short line of printable characters, and there are at most fifty."""
    keys = {f"{index}\n\x1b[2J\ud800é" + "k" * 5000: 1 for index in range(60)}
    lines = problems(changed(DECODING, keys, {**COMPLETE, "name": "\r\u2028" + "n" * 5000}))
    assert 51 == len(lines)
    assert "there are more problems; correct these first" == lines[-1]
    assert [] == [line for line in lines if not line.isascii() or not line.isprintable() or len(line) > 500]


@pytest.mark.parametrize(("count", "lines"), [(50, 50), (51, 51), (1000, 51)])
def test_most_problems(count: int, lines: int) -> None:
    """Of more than fifty problems the last line says that there are more."""
    found = problems({**COMPLETE, "limitations": [1] * count})
    assert (lines, count > 50) == (len(found), found[-1].startswith("there are more problems"))


def test_place_of_a_key_that_a_pointer_escapes(tmp_path: Path) -> None:
    """A key with the characters that JSON pointers escape is found in the file."""
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(COMPLETE).replace('"priority"', '\n"a/b~c~1": 3, "priority"'))
    (line,) = schema_problems(path)
    assert line.startswith("manifest.json:2:12: /routing/a~1b~0c~01: no known field")


@pytest.mark.parametrize("depth", [100, 5000])
def test_deep_nesting(depth: int) -> None:
    """Nesting beyond the limit is a problem, not a crash."""
    deep: Any = []
    for _ in range(depth - 1):
        deep = [deep]
    expected = [] if depth < 100 else ["more than 100 objects and lists inside each other; flatten them"]
    assert expected == problems({**COMPLETE, "evaluation": {"x": deep}})


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("/name", "expert-" + "a" * 4_000_000 + "!"),
        ("/name", "expert-" + "-" * 4_000_000 + "\n"),
        ("/base_models/0/name", "a/" * 1_000_000 + "/" * 2_000_000),
        ("/homepage", "http" * 1_000_000),
        (f"{ADAPTER}/sha256", "a" * 4_000_000),
        ("/version", "1." * 2_000_000),
        ("/capabilities", ["a"] * 50_000 + [{}] * 20_000),
        ("/limitations", ["a", []] * 25_000),
    ],
    ids=range(8),
)
def test_hostile_sizes_take_no_time(pointer: str, value: object) -> None:
    """No value of the largest file makes a rule of the schemas slow."""
    start = time.perf_counter()
    problems(with_value(pointer, value))
    assert time.perf_counter() - start < 10


def test_tolerant_reading_imports_no_schema_library(tmp_path: Path) -> None:
    """Only strict reading imports jsonschema, which takes longer than all the rest."""
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**COMPLETE, "tags": 3}))
    script = (
        "import sys; from pathlib import Path; import hivellm_ort\n"
        "from hivellm_ort.package.manifest import ExpertManifest\n"
        "print(len(ExpertManifest.from_file(Path(sys.argv[1])).warnings))\n"
        "print([name for name in sys.modules if name.startswith(('jsonschema', 'referencing', 'rpds'))])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True
    )
    assert ["1", "[]"] == done.stdout.splitlines()


def _subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for key, value in schema.items():
            inner = value.values() if key in ("properties", "patternProperties", "$defs") else [value]
            if key not in ("const", "enum", "examples", "required"):
                for each in inner:
                    yield from _subschemas(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from _subschemas(each)


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_valid_and_closed(name: str) -> None:
    """The schemas are good draft 2020-12, refer to themselves only, and use rules that messages know."""
    from jsonschema import Draft202012Validator

    schema = json.loads(files("hivellm_ort.package").joinpath("schemas", name).read_bytes())
    Draft202012Validator.check_schema(schema)
    rules = {
        "$schema", "$defs", "$ref", "$comment", "title", "description", "examples", "type", "enum", "const",
        "pattern", "minLength", "maxLength", "minItems", "maxItems", "minProperties", "minimum", "maximum",
        "exclusiveMinimum", "required",
        "properties", "patternProperties", "additionalProperties", "items", "not", "if", "then", "allOf",
    }  # fmt: skip
    for part in _subschemas(schema):
        assert set() == part.keys() - rules
        assert part.get("$ref", "#/$defs/").split("#")[0] in ("", "manifest-shared.json")
        assert "pattern" not in part or "examples" in part
        assert "not" not in part or "description" in part
        for example in part.get("examples", ()):
            assert [] == list(Draft202012Validator(part).iter_errors(example))


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """References in a manifest are data, and one in a schema to another place is never followed."""
    monkeypatch.setattr("socket.socket", lambda *_, **__: pytest.fail("a connection was opened"))
    manifest = {
        **COMPLETE,
        "$schema": "https://example.org/s.json",
        "$ref": "file:///etc/passwd",
        "$id": "x:y",
    }
    assert [] == problems(manifest)
    validator = manifest_schema._validator(2).evolve(schema={"$ref": "https://example.org/s.json"})
    with pytest.raises(Unresolvable):
        validator.validate(manifest)


def test_sparse_manifest() -> None:
    """A manifest that loads without a warning may still lack fields that authors should set."""
    assert () == ExpertManifest.from_dict(SECOND_SCHEMA).warnings
    pointers = [line.split(": ")[0] for line in problems(SECOND_SCHEMA)]
    assert [f"{ADAPTER}/type", "/description", "/license"] == pointers
