"""`examples/batch.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import batch
import pytest
from click.testing import CliRunner, Result
from example_packages import Examples

from hivellm_ort import Expert

LINES = [
    {"prompt": "say it", "expert": "json"},
    {"prompt": "Count all orders", "schema": "CREATE TABLE orders (id INT);"},
    {"prompt": "Fix this invalid JSON: [1,]", "expert": None, "schema": None},
]


def written(path: Path, lines: list[Any]) -> Path:
    """A JSON Lines file with an empty line at its end."""
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    return path


def invoked(examples: Examples, *arguments: Any) -> Result:
    """Run the script."""
    return CliRunner().invoke(batch.main, [*map(str, arguments), *examples.options])


def test_answers_are_written_in_order(examples: Examples, tmp_path: Path) -> None:
    """Named and routed prompts get the answer that their expert gives alone, and nothing is on standard error."""
    prompts = written(tmp_path / "prompts.jsonl", LINES)
    result = invoked(examples, prompts, "--max-tokens", 20, "--output", tmp_path / "answers.jsonl")
    assert ("", "", 0) == (result.stdout, result.stderr, result.exit_code), result.output
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()]
    assert ["json", "sql", "json"] == [answer["expert"] for answer in answers]
    for line, answer in zip(LINES, answers, strict=True):
        with Expert.load(getattr(examples, answer["expert"]), trust="off") as expert:
            expected = expert.generate(line["prompt"], schema=line.get("schema"), max_tokens=20)
        assert (line["prompt"], expected.text, "length", expected.prompt_tokens, 20) == (
            answer["prompt"], answer["text"], answer["finish_reason"], answer["prompt_tokens"],
            answer["completion_tokens"],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2, column 2: no JSON (Expecting property name"),
        ("[]", "line 2: must be an object"),
        ('{"expert": "sql"}', "line 2: prompt must be a text, not null"),
        ('{"prompt": "a", "schema": 1}', "line 2: schema must be a text, not 1"),
        ('{"prompt": "a", "temperature": 1}', "line 2: unknown field 'temperature'; there are prompt,"),
        ('{"prompt": "a", "expert": "xml"}', "line 2: no expert 'xml'; there are sql, json"),
        ('{"prompt": "hello"}', "line 2: no expert fits the prompt; name one of sql, json"),
        (json.dumps({"prompt": "sql " * 2000}), "line 2: a prompt of "),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(
    line: str, message: str, examples: Examples, tmp_path: Path
) -> None:
    """The error says which line is wrong and why; the status is 1 and the output stays as it was."""
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text(f'{{"prompt": "Count all orders"}}\n{line}\n', encoding="utf-8")
    output.write_text("kept", encoding="utf-8")
    result = invoked(examples, prompts, "--output", output, "--max-tokens", 5)
    assert 1 == result.exit_code
    assert result.stderr.startswith(f"Error: {prompts}, ")
    assert message in result.stderr
    assert ("", "kept") == (result.stdout, output.read_text("utf-8"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--expert", "sql"], "'sql' is not NAME=PATH"),
        (["--expert", "a=x", "--expert", "a=y"], "'a' is given twice"),
        (["--expert", "a=missing.expert"], "missing.expert"),
        (["--expert", "a=b", "--output", "nowhere/out.jsonl"], "there is no folder"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    """Experts without a name or a file, and an output without a folder, are errors that say so."""
    result = CliRunner().invoke(batch.main, [str(written(tmp_path / "p.jsonl", LINES)), *arguments])
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    assert message in result.stderr.replace("\n", "")


def test_it_is_a_script(examples: Examples) -> None:
    """`--help` says what a line holds."""
    done = subprocess.run(
        [sys.executable, examples.folder / "batch.py", "--help"], capture_output=True, text=True, check=True
    )
    assert '"prompt"' in done.stdout
    assert "--expert NAME=PATH" in done.stdout
