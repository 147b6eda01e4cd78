"""What a published manifest gets wrong is left unset, with a warning that names the place."""

# The expected value comes first.

from __future__ import annotations

from dataclasses import replace

import pytest
from package_samples import SECOND_SCHEMA, changed

from hivellm_ort.package.manifest import ExpertManifest


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("/schema_version", "two"),
        ("/schema_version", "2.0-beta"),
        ("/schema_version", 2.0),
        ("/description", []),
        ("/author", {"name": "x"}),
        ("/homepage", 1),
        ("/repository", "https://example.org"),
        ("/repository/url", 1),
        ("/license", {}),
        ("/license", "\ud800"),
        ("/tags", "a"),
        ("/capabilities", "sql"),
        ("/soft_prompts", "a.bin"),
        ("/base_models/0/sha256", "test_hash"),
        ("/base_models/0/sha256", 1),
        ("/base_models/0/prompt_template", 1),
        ("/base_models/0/adapters/0/sha256", "0" * 63),
        ("/base_models/0/adapters/0/type", 1),
        ("/base_models/0/adapters/0/r", "12"),
        ("/base_models/0/adapters/0/r", 1.5),
        ("/base_models/0/adapters/0/r", True),
        ("/base_models/0/adapters/0/alpha", "24"),
        ("/base_models/0/adapters/0/target_modules", "q_proj"),
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
        ("/training/decoding/use_grammar", 1),
        ("/training/decoding/grammar_type", True),
        ("/routing", []),
        ("/routing/keywords", "sql"),
        ("/routing/exclude_keywords", {}),
        ("/routing/router_hint", 1),
        ("/routing/priority", "high"),
        ("/routing/priority", 1.1),
        ("/constraints", "none"),
        ("/constraints/requires", "expert-sql"),
        ("/constraints/incompatible_with", 1),
        ("/constraints/load_order", -1),
        ("/constraints/max_chain", 0),
        ("/base_models/0/adapters/0/r", -1),
        ("/base_models/0/adapters/0/size_bytes", -5),
        ("/training/decoding/temperature", -0.1),
        ("/training/decoding/top_p", 0),
        ("/training/decoding/top_p", 1.5),
        ("/training/decoding/min_p", -1),
        ("/training/decoding/top_k", -1),
        ("/training/decoding/max_new_tokens", 0),
        ("/training/decoding/repetition_penalty", 0),
    ],
)
def test_value_that_cannot_be_meant(pointer: str, value: object) -> None:
    """A value of the wrong type or out of range counts as absent, and its place is in the warnings."""
    manifest = ExpertManifest.from_dict(changed(pointer, value), where="m.json")
    absent = ExpertManifest.from_dict(changed(pointer, None))
    assert 1 == len(manifest.warnings)
    assert manifest.warnings[0].startswith(f"m.json: {pointer}: ")
    assert absent == replace(manifest, warnings=())


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("/capabilities", [1, "sql"]),
        ("/routing/keywords", [[], "a"]),
        ("/constraints/requires", [True, "a"]),
        ("/training/decoding/stop_sequences", [5, ";"]),
        ("/base_models/0/adapters/0/target_modules", [{}, "q_proj"]),
        ("/base_models/0/adapters", [[], {}]),
        ("/base_models", ["Qwen3", SECOND_SCHEMA["base_models"][0]]),
        ("/soft_prompts", ["a.bin"]),
    ],
)
def test_item_of_the_wrong_type(pointer: str, value: list[object]) -> None:
    """An item of the wrong type is left out of its list, with a warning that has its index."""
    manifest = ExpertManifest.from_dict(changed(pointer, [None, *value]), where="m.json")
    assert 1 == len(manifest.warnings)
    assert manifest.warnings[0].startswith(f"m.json: {pointer}/1: ")
    assert ExpertManifest.from_dict(changed(pointer, value[1:])) == replace(manifest, warnings=())


def test_nameless_base_beside_another() -> None:
    """Of two base models one without a name is left out, with a warning."""
    bases = [{"name": "/", "adapters": [{}]}, *SECOND_SCHEMA["base_models"]]
    manifest = ExpertManifest.from_dict({**SECOND_SCHEMA, "base_models": bases})
    assert (1, 1) == (len(manifest.base_models), len(manifest.warnings))
    assert "/base_models/0/name: " in manifest.warnings[0]


def test_base_without_adapters_beside_another() -> None:
    """A base model may have no adapter if another has one."""
    bases = [{"name": "other", "adapters": []}, *SECOND_SCHEMA["base_models"]]
    manifest = ExpertManifest.from_dict({**SECOND_SCHEMA, "base_models": bases})
    assert ((0, 1), ()) == (tuple(len(base.adapters) for base in manifest.base_models), manifest.warnings)


def test_many_warnings_are_cut() -> None:
    """A hostile manifest does not make a million warnings."""
    manifest = ExpertManifest.from_dict({**SECOND_SCHEMA, "capabilities": [1] * 1000})
    assert 51 == len(manifest.warnings)
    assert "more problems" in manifest.warnings[-1]
