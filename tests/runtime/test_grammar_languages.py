"""Whole grammars, the published ones among them: what a model says under them, an independent recogniser accepts.

The model's weights are random and its temperature high, so nothing but the grammar makes the answers what they are.
`HIVELLM_GRAMMAR_GENERATIONS` raises the number of answers per grammar.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.earley import read

from hivellm_ort import Expert

GENERATIONS = int(os.environ.get("HIVELLM_GRAMMAR_GENERATIONS", "24"))
ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT.parent / "shared" / "hivellm" / "grammars"
FILES = [*sorted(ROOT.glob("models/*/grammar.gbnf")), *sorted(ROOT.glob("tests/grammar/samples/*.gbnf"))]


def check(expert: Expert, path: Path) -> None:
    """Generate, and have every finished answer recognised."""
    text = path.read_bytes().decode()
    recogniser = read(text, leading_bars=True)
    finished = 0
    # The tiny model never likes its end token; without a push its answers go on for ever where they can.
    options = {"grammar": text, "temperature": 1.5, "max_tokens": 120, "logit_bias": {2: 8.0}}
    for begin in range(0, GENERATIONS, 8):
        seeds = list(range(begin, min(begin + 8, GENERATIONS)))
        results = expert.generate_batch(["say something"] * len(seeds), seed=seeds, **options)
        for result in results:
            assert "\N{REPLACEMENT CHARACTER}" not in result.text
            # Of an ambiguous grammar some texts are left out, so what was cut off may be in the language too.
            assert recogniser.accepts(result.text) or not result.grammar_complete, result.text
            if result.finish_reason != "length":
                finished += 1
                assert result.grammar_complete
                if path.stem == "expert-json" or path.parent.name == "expert-json":
                    json.loads(result.text, strict=False)  # one grammar lets raw line breaks into strings
    assert finished >= GENERATIONS // 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_our_grammars(path: Path, lora: Expert) -> None:
    """Those of our experts, and samples."""
    check(lora, path)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published grammars are not at hand")
@pytest.mark.parametrize("name", ["expert-json", "expert-sql"])
def test_published_grammars(name: str, lora: Expert) -> None:
    """Those of published experts, with their right and left recursion."""
    check(lora, PUBLISHED / f"{name}.gbnf")
