"""The real experts under grammars: the grammar takes nothing away from a good answer, and lets no bad one through.

`HIVELLM_GRAMMAR_GENERATIONS` raises the number of answers per grammar.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.earley import read

from hivellm_ort import ExpertManager

GENERATIONS = int(os.environ.get("HIVELLM_GRAMMAR_GENERATIONS", "6"))
ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT.parent / "shared" / "hivellm" / "grammars"
MAPPING = {
    "type": "object",
    "properties": {
        "mappings": {
            "type": "object",
            "properties": {
                "properties": {
                    "type": "object",
                    "properties": {
                        name: {
                            "type": "object",
                            "properties": {"type": {"enum": ["keyword", "text", "date", "integer", "float"]}},
                            "required": ["type"],
                            "additionalProperties": False,
                        }
                        for name in ("title", "created_at", "author", "price")
                    },
                    "required": ["title", "created_at", "author", "price"],
                    "additionalProperties": False,
                }
            },
            "required": ["properties"],
            "additionalProperties": False,
        }
    },
    "required": ["mappings"],
    "additionalProperties": False,
}
PLAN = {
    "type": "object",
    "properties": {
        "tool": {"enum": ["run_query", "describe_table", "list_tables"]},
        "arguments": {
            "type": "object",
            "properties": {
                "table": {"type": "string", "maxLength": 24},
                "limit": {"type": "integer", "maximum": 100},
            },
            "required": ["table", "limit"],
            "additionalProperties": False,
        },
        "explain": {"type": "boolean"},
    },
    "required": ["tool", "arguments", "explain"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def manager(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExpertManager]:
    """The three experts on one base."""
    cache = tmp_path_factory.mktemp("cache")
    with ExpertManager(cache_dir=cache, trust="off") as manager:
        for package in sorted(exported.glob("*.expert")):
            manager.load_expert(package.name.split("-smollm2")[0], package, base=exported / "base")
        yield manager


@pytest.mark.parametrize("expert", ["expert-sql", "expert-json"])
def test_good_answers_stay_as_they_are(expert: str, manager: ExpertManager, shared_experts: Path) -> None:
    """Under its package's grammar an expert gives the tokens of transformers and PEFT, forced ones included."""
    forced = 0
    lines = (shared_experts / expert / "references.jsonl").read_text(encoding="utf-8").splitlines()
    recogniser = read((ROOT / "models" / expert / "grammar.gbnf").read_text(encoding="utf-8"))
    recorded = [json.loads(line) for line in lines]
    inside = [one for one in recorded if recogniser.accepts(one["expert_text"].strip())]
    assert len(inside) >= 8
    for one in inside:
        result = manager.generate(
            expert, one["user"], system=one["system"], temperature=0, max_tokens=96, grammar=True
        )
        # After the semicolon nothing can follow, and nobody is asked for the end token.
        end = len(one["expert_ids"]) - (result.finish_reason == "grammar")
        assert one["expert_ids"][:end] == list(result.tokens)
        assert result.grammar_complete
        forced += result.forced_tokens
    assert forced > 0 or expert == "expert-json"


def files() -> list[Path]:
    """Our experts' grammars, and the published ones where they are at hand."""
    return [*sorted(ROOT.glob("models/*/grammar.gbnf")), *sorted(PUBLISHED.glob("*.gbnf"))]


@pytest.mark.parametrize("path", files(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_hot_answers_are_recognised(path: Path, manager: ExpertManager) -> None:
    """At temperature 1.5 what is complete is in the language, and nothing else is, told independently."""
    text = path.read_bytes().decode()
    recogniser = read(text)
    expert = "expert-sql" if "sql" in str(path) else "expert-json"
    complete = 0
    for begin in range(0, GENERATIONS, 8):
        seeds = list(range(begin, min(begin + 8, GENERATIONS)))
        requests = [(expert, "Which customers ordered last month?")] * len(seeds)
        for result in manager.generate_batch(
            requests, grammar=text, temperature=1.5, seed=seeds, max_tokens=64
        ):
            assert "\N{REPLACEMENT CHARACTER}" not in result.text
            # Of an ambiguous grammar some texts are left out, so what was cut off may be in the language too.
            assert recogniser.accepts(result.text) or not result.grammar_complete, result.text
            assert result.grammar_complete or result.finish_reason == "length"
            complete += result.grammar_complete
            if result.grammar_complete and expert == "expert-json":
                json.loads(result.text, strict=False)  # one grammar lets raw line breaks into strings
    assert complete


@pytest.mark.parametrize(("expert", "schema"), [("expert-elastic", MAPPING), ("expert-sql", PLAN)])
def test_fixed_keys_are_not_computed(expert: str, schema: dict[str, Any], manager: ExpertManager) -> None:
    """Under a schema with fixed keys at least three tokens in ten take no pass of their own."""
    result = manager.generate(
        expert, "Store articles with a price", json_schema=schema, temperature=0, max_tokens=160
    )
    assert result.finish_reason == "grammar"
    jsonschema.validate(json.loads(result.text), schema)
    assert result.forced_tokens >= 0.3 * result.completion_tokens
