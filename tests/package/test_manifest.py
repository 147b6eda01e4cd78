"""Published manifests load, tolerantly."""

# The expected value comes first.

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from package_samples import COMPLETE, FIRST_SCHEMA, SECOND_SCHEMA, changed

from hivellm_ort.errors import ManifestError
from hivellm_ort.package.manifest import (
    AdapterRef,
    BaseModelRef,
    Constraints,
    DecodingDefaults,
    ExpertManifest,
    Routing,
)

DIGEST = "0123456789abcdef" * 4


EMPTY = AdapterRef(type=None, r=None, alpha=None, target_modules=(), sha256=None, size_bytes=None, path=None)


def test_second_schema() -> None:
    """A manifest of schema 2.0 gives its fields, the rest unset."""
    manifest = ExpertManifest.from_dict(SECOND_SCHEMA)
    expected = ExpertManifest(
        name="expert-demo",
        version="0.3.0",
        schema_version="2.0",
        base_models=(
            BaseModelRef(
                name="F:/models\\Qwen3-0.6B",
                sha256=None,
                prompt_template="qwen3",
                adapters=(AdapterRef("dora", 12, 24.0, ("q_proj",), None, None, None),),
            ),
        ),
        capabilities=("database:sql",),
        decoding=DecodingDefaults(temperature=0.7, top_k=20, stop_sequences=(";",)),
        raw=SECOND_SCHEMA,
    )
    assert expected == manifest
    assert SECOND_SCHEMA is manifest.raw


def test_missing_sections_give_empty_values() -> None:
    """Missing fields of a manifest are empty or None."""
    manifest = ExpertManifest.from_dict(FIRST_SCHEMA)
    assert (Routing((), (), None, None), Constraints((), (), None, None)) == (
        manifest.routing,
        manifest.constraints,
    )
    assert ("", None, None, None, None, (), (), ()) == (
        manifest.description,
        manifest.author,
        manifest.homepage,
        manifest.repository,
        manifest.license,
        manifest.tags,
        manifest.capabilities,
        manifest.soft_prompts,
    )


def test_all_sections() -> None:
    """A manifest that says everything gives it all, without warnings."""
    manifest = ExpertManifest.from_dict(COMPLETE)
    assert (
        Routing(("sql", "group by"), ("explain",), "database=sql OR task=text2sql", 0.85) == manifest.routing
    )
    assert Constraints(("expert-base@0.1.0",), ("expert-other",), 6, 10) == manifest.constraints
    expected = (
        "Answers questions about demos.",
        "A Publisher",
        "https://example.org/expert-demo",
        "https://example.org/expert-demo.git",
        "Apache-2.0",
        ("demo",),
        (),
    )
    assert expected == (
        manifest.description,
        manifest.author,
        manifest.homepage,
        manifest.repository,
        manifest.license,
        manifest.tags,
        manifest.warnings,
    )


def test_soft_prompts_give_one_warning() -> None:
    """Soft prompts are listed by name, else by path, with one warning that they are not applied."""
    prompts = [{"name": "style", "path": "a.bin", "tokens": 4}, None, {"path": "b.bin"}, {"tokens": 3}]
    manifest = ExpertManifest.from_dict({**SECOND_SCHEMA, "soft_prompts": prompts})
    assert (("style", "b.bin"), 1) == (manifest.soft_prompts, len(manifest.warnings))
    assert "/soft_prompts: not applied" in manifest.warnings[0]


@pytest.mark.parametrize("word", ["chatml", "Qwen3", "llama3", "gemma", "custom"])
def test_known_template(word: str) -> None:
    """The names of templates that published manifests use give no warning."""
    assert () == ExpertManifest.from_dict(changed("/base_models/0/prompt_template", word)).warnings


def test_unknown_template() -> None:
    """Any other word is kept, with a warning."""
    manifest = ExpertManifest.from_dict(changed("/base_models/0/prompt_template", "zephyr"))
    assert ("zephyr", 1) == (manifest.base_models[0].prompt_template, len(manifest.warnings))
    assert "/base_models/0/prompt_template: 'zephyr'" in manifest.warnings[0]


@pytest.mark.parametrize("scaling", ["yarn-128k", {"type": "yarn"}, 3])
def test_rope_scaling_is_ignored(scaling: object) -> None:
    """Scaling of positions may have any form: it is not applied."""
    assert () == ExpertManifest.from_dict(changed("/base_models/0/rope_scaling", scaling)).warnings


@pytest.mark.parametrize(
    "integrity",
    [{"timestamp": "t", "public_key": "k", "signature": "s"}, COMPLETE["integrity"], {"files": 3}, "x"],
)
def test_integrity_is_not_read_here(integrity: object) -> None:
    """Whatever form `integrity` has, reading the manifest leaves it alone."""
    assert () == ExpertManifest.from_dict({**SECOND_SCHEMA, "integrity": integrity}).warnings


def test_first_schema() -> None:
    """A manifest of schema 1.0 has one base model, with the adapters of the root."""
    manifest = ExpertManifest.from_dict(FIRST_SCHEMA)
    assert "1.0" == manifest.schema_version
    assert ("Qwen3-0.6B",) == tuple(base.name for base in manifest.base_models)
    assert ("lora",) == tuple(adapter.type for adapter in manifest.base_models[0].adapters)
    assert () == manifest.warnings


@pytest.mark.parametrize(("start", "expected"), [(FIRST_SCHEMA, "1.0"), (SECOND_SCHEMA, "2.0")])
@pytest.mark.parametrize("version", [None, ""])
def test_schema_by_form(start: dict[str, Any], expected: str, version: str | None) -> None:
    """Without a schema version the form decides."""
    manifest = ExpertManifest.from_dict({**start, "schema_version": version})
    assert (expected, ()) == (manifest.schema_version, manifest.warnings)


@pytest.mark.parametrize(
    ("start", "version"),
    [(FIRST_SCHEMA, "2.0"), (SECOND_SCHEMA, "1.0"), (SECOND_SCHEMA, "2.1"), (FIRST_SCHEMA, "1.9.3")],
)
def test_other_schema_is_read_with_a_warning(start: dict[str, Any], version: str) -> None:
    """A newer minor version, or a version that does not match the form, loads with a warning."""
    manifest = ExpertManifest.from_dict({**start, "schema_version": version})
    assert (version, 1) == (manifest.schema_version, len(manifest.warnings))
    assert version in manifest.warnings[0]


@pytest.mark.parametrize(("version", "expected"), [("1.0", "old"), ("2.0", "new")])
def test_both_forms(version: str, expected: str) -> None:
    """With both forms the schema version decides, with a warning."""
    new = {"name": "new", "adapters": [{}]}
    manifest = ExpertManifest.from_dict(
        {**FIRST_SCHEMA, "base_model": {"name": "old"}, "base_models": [new], "schema_version": version}
    )
    assert (expected, 1) == (manifest.base_models[0].name, len(manifest.warnings))


def test_empty_list_of_bases_counts_as_absent() -> None:
    """An empty base_models beside a base_model is no contradiction."""
    manifest = ExpertManifest.from_dict({**FIRST_SCHEMA, "base_models": []})
    assert ("Qwen3-0.6B", ()) == (manifest.base_models[0].name, manifest.warnings)


@pytest.mark.parametrize("start", [FIRST_SCHEMA, SECOND_SCHEMA])
def test_null_is_absent(start: dict[str, Any]) -> None:
    """Every optional field may be null, also inside lists."""
    base = {
        "name": "b",
        "sha256": None,
        "prompt_template": None,
        "adapters": [
            None,
            dict.fromkeys(["type", "r", "alpha", "target_modules", "sha256", "size_bytes", "path"]),
        ],
    }
    bare = {**dict.fromkeys(COMPLETE), "name": "n", "version": "1", "base_models": [None, base]}
    bare |= {"base_model": None, "adapters": None, "soft_prompts": None}
    manifest = ExpertManifest.from_dict(bare)
    assert (BaseModelRef("b", None, None, (EMPTY,)),) == manifest.base_models
    assert ((), DecodingDefaults()) == (manifest.warnings, manifest.decoding)
    decoding = dict.fromkeys(DecodingDefaults.__dataclass_fields__)
    assert (
        DecodingDefaults() == ExpertManifest.from_dict({**bare, "training": {"decoding": decoding}}).decoding
    )
    assert (
        ExpertManifest.from_dict(start).base_models
        == ExpertManifest.from_dict({**start, "license": None, "routing": None}).base_models
    )


def test_unknown_keys() -> None:
    """Unknown keys and comments of any type are fine anywhere, and kept in raw."""
    extra = {"_comment": [1, {"x": None}], "future": {"a": 1}}
    whole = copy.deepcopy(SECOND_SCHEMA)
    for place in (whole, whole["base_models"][0], whole["base_models"][0]["adapters"][0], whole["training"]):
        place.update(extra)
    manifest = ExpertManifest.from_dict(whole)
    assert ExpertManifest.from_dict(SECOND_SCHEMA) == manifest
    assert extra["future"] == manifest.raw["future"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen3-0.6B", "Qwen3-0.6B"),
        ("Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
        ("F:/Node/hivellm/expert/models/Qwen3-0.6B", "Qwen3-0.6B"),
        ("F:\\models\\Qwen3-0.6B\\", "Qwen3-0.6B"),
        ("/models/mixed\\Qwen3-0.6B/", "Qwen3-0.6B"),
    ],
)
def test_short_name(name: str, expected: str) -> None:
    """A base's short name is the last part of an identifier or of a path of any platform."""
    manifest = ExpertManifest.from_dict(changed("/base_models/0/name", name))
    assert expected == manifest.base_models[0].short_name


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", None), (DIGEST, DIGEST), (DIGEST.upper(), DIGEST), (f"sha256:{DIGEST}", DIGEST), ("sha256:", None)],
)
def test_digest_forms(value: str, expected: str | None) -> None:
    """A digest may be empty or carry a prefix."""
    manifest = ExpertManifest.from_dict(changed("/base_models/0/adapters/0/sha256", value))
    assert (expected, ()) == (manifest.base_models[0].adapters[0].sha256, manifest.warnings)


def test_zero_is_unset() -> None:
    """Published manifests write zero for a rank or size that is not set."""
    manifest = ExpertManifest.from_dict({**FIRST_SCHEMA, "adapters": [{"r": 0, "size_bytes": 0}]})
    assert ((EMPTY,), ()) == (manifest.base_models[0].adapters, manifest.warnings)


def test_all_decoding_fields() -> None:
    """Every field of training.decoding is read; whole numbers may be written 20.0."""
    decoding = DecodingDefaults(
        temperature=0.0,
        top_p=1.0,
        top_k=20,
        min_p=0.0,
        stop_sequences=("\n\n", "```"),
        use_grammar=False,
        grammar_type="tool-call",
        grammar_file="grammars/a.gbnf",
        max_new_tokens=512,
        repetition_penalty=1.1,
    )
    written = {f: getattr(decoding, f) for f in DecodingDefaults.__dataclass_fields__}
    written.update(top_k=20.0, stop_sequences=["\n\n", None, "```"], validation="schema-strict")
    manifest = ExpertManifest.from_dict(changed("/training/decoding", written))
    assert (decoding, ()) == (manifest.decoding, manifest.warnings)
    assert isinstance(manifest.decoding.top_k, int)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_byte_order_mark_and_text(tmp_path: Path, encoding: str, ending: str) -> None:
    """A manifest as Windows saves it is read by its byte order mark, with every character."""
    text = json.dumps({**SECOND_SCHEMA, "description": "geração 🐝"}, ensure_ascii=False, indent=2)
    (tmp_path / "manifest.json").write_bytes(text.replace("\n", ending).encode(encoding))
    manifest = ExpertManifest.from_file(str(tmp_path / "manifest.json"))
    assert ("geração 🐝", ()) == (manifest.description, manifest.warnings)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("Qwen3-0.6B", "expert-demo-qwen3-0-6b.v0.3.0.expert"),
        ("SmolLM2_135M", "expert-demo-smollm2-135m.v0.3.0.expert"),
    ],
)
def test_package_filename(base: str, expected: str) -> None:
    """The file name follows the rule of the reference packager for schema 2.0."""
    assert expected == ExpertManifest.from_dict(SECOND_SCHEMA).package_filename(base)


@pytest.mark.parametrize(
    ("pointer", "value"),
    [("/name", "../x"), ("/name", "./x"), ("/version", "1/2"), ("/name", "a:b"), ("/name", "x" * 250)],
)
def test_package_filename_refuses(pointer: str, value: str) -> None:
    """A name or version that does not make a file name is refused when one is asked for."""
    manifest = ExpertManifest.from_dict(changed(pointer, value))
    with pytest.raises(ManifestError, match="file name"):
        manifest.package_filename("b")
