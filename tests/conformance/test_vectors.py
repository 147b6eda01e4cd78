"""Every line of the conformance vectors, through the public API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.extras import requires_export

from conformance.vectors import FOLDER, Runner, differences, lines

LINES = {line["id"]: line for _, line in lines()}
FIELDS = {
    "id", "about", "packages", "load", "call", "prompt", "prompts", "messages", "tools", "options", "tags", "keys",
    "expert", "answers", "grammar", "samples", "fields", "format", "names", "text", "expect", "error",
}  # fmt: skip


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """One runner, which loads every package once."""
    runner = Runner(tmp_path_factory.mktemp("conformance"))
    yield runner
    runner.close()


@pytest.mark.parametrize("name", LINES)
def test_line(name: str, runner: Runner) -> None:
    """The line's outcome is what it expects."""
    assert [] == differences(LINES[name], runner.run(LINES[name]))


def test_every_line_is_well_formed() -> None:
    """Ids are unique, fields are known, and a line expects an outcome or an error."""
    found = [line for _, line in lines()]
    assert {1} == set(Counter(line["id"] for line in found).values())
    assert set() == {field for line in found for field in line} - FIELDS
    assert [] == [line["id"] for line in found if ("expect" in line) == ("error" in line)]
    assert [] == [line["id"] for line in found if not line["about"].endswith(".")]


def test_a_wrong_answer_is_told() -> None:
    """A difference in a token, in a number beyond its tolerance, or of an error's type is found."""
    line = {"expect": {"tokens": [1, 2], "logprobs": {"chosen": [-1.0], "tolerance": 0.01}}}
    good = {"tokens": [1, 2], "logprobs": {"chosen": [-1.005]}}
    assert [] == differences(line, good)
    assert 1 == len(differences(line, {**good, "tokens": [1, 3]}))
    assert 1 == len(differences(line, {**good, "logprobs": {"chosen": [-1.02]}}))
    assert 1 == len(differences(line, {"error": {"type": "LoadError", "message": "no"}}))
    error = {"error": {"type": "LoadError", "contains": ["base"]}}
    assert 1 == len(differences(error, {"error": {"type": "LoadError", "message": "no"}}))
    assert 1 == len(differences(error, good))


def test_made_again(tmp_path: Path) -> None:
    """The files are what the script makes, which compares every answer with transformers and PEFT."""
    requires_export()
    from conformance.make import made, written

    files = {f"{name}.jsonl": written(found) for name, found in made(tmp_path).items()}
    assert {path.name: path.read_bytes() for path in FOLDER.glob("*.jsonl")} == files
