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


BAD_LINES = {
    "{": "no JSON: Expecting property name",
    "[]": "must be an object",
    '{"expert": "sql"}': "prompt must be a text, not null",
    '{"prompt": "a", "schema": 1}': "schema must be a text, not 1",
    '{"prompt": "a", "temperature": 1}': "unknown field 'temperature'; there are prompt,",
    '{"prompt": "a", "expert": "xml"}': "no expert is loaded as 'xml'; loaded are: 'sql', 'json'",
    '{"prompt": "hello"}': "no expert fits",
    json.dumps({"prompt": "sql " * 2000}): "a prompt of ",
    '{"prompt": "sql \\udc80"}': "text is not valid Unicode",
}


def test_a_bad_line_has_an_error_and_the_others_an_answer(examples: Examples, tmp_path: Path) -> None:
    """Each bad line is named with what is wrong; the rest is answered as ever, and the status is 1."""
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    good = '{"prompt": "Count all orders →"}'
    prompts.write_text("\n".join([good, "", *BAD_LINES, good]), encoding="utf-16")
    result = invoked(examples, prompts, "--output", output, "--max-tokens", 5, "--at-once", 2)
    assert 1 == result.exit_code, result.output
    assert "" == result.stdout
    numbers = [1, *range(3, 4 + len(BAD_LINES))]
    assert f"9 of 11 lines have no answer: {', '.join(map(str, numbers[1:-1]))}\n" == result.stderr
    first, *bad, last = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert numbers == [first["line"], *(one["line"] for one in bad), last["line"]]
    with Expert.load(examples.sql, trust="off") as expert:
        assert [expert.generate("Count all orders →", max_tokens=5).text] * 2 == [first["text"], last["text"]]
    for one, message in zip(bad, BAD_LINES.values(), strict=True):
        assert {"line", "error"} == set(one)
        assert message in one["error"]["message"]
    assert ["UnknownExpertError", "ContextLengthError", "OptionError"] == [
        one["error"]["type"] for one in bad[-3:]
    ]


def test_any_console(examples: Examples, tmp_path: Path) -> None:
    """Standard output gets JSON that every encoding can take."""
    prompts = written(tmp_path / "prompts.jsonl", [{"prompt": "Count all orders → 🙂"}])
    arguments = [str(prompts), *examples.options, "--max-tokens", "2"]
    result = CliRunner(charset="cp1252").invoke(batch.main, arguments)
    assert 0 == result.exit_code, result.output
    assert result.stdout_bytes.isascii()
    assert "Count all orders → 🙂" == json.loads(result.stdout_bytes)["prompt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--expert", "sql"], "'sql' is not NAME=PATH"),
        (["--expert", "a=x", "--expert", "a=y"], "'a' is given twice"),
        (["--expert", "a=missing.expert"], "missing.expert"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    """Experts without a name or a file are errors that say so; the status is 2, and the output stays as it was."""
    output = tmp_path / "answers.jsonl"
    output.write_text("kept", encoding="utf-8")
    prompts = written(tmp_path / "p.jsonl", LINES)
    result = CliRunner().invoke(batch.main, [str(prompts), "--output", str(output), *arguments])
    assert (2, "kept") == (result.exit_code, output.read_text("utf-8"))
    assert message in result.stderr.replace("\n", "")


def test_output_without_a_folder(examples: Examples, tmp_path: Path) -> None:
    """It is an error, and nothing is done."""
    prompts = written(tmp_path / "p.jsonl", LINES)
    result = invoked(examples, prompts, "--output", tmp_path / "nowhere" / "answers.jsonl")
    assert 2 == result.exit_code
    assert "No such file or directory" in result.stderr


def test_it_is_a_script(examples: Examples) -> None:
    """`--help` says what a line holds."""
    done = subprocess.run(
        [sys.executable, examples.folder / "batch.py", "--help"], capture_output=True, text=True, check=True
    )
    assert '"prompt"' in done.stdout
    assert "--expert NAME=PATH" in done.stdout


def test_the_minimal_script_gives_the_same_answers(examples: Examples, tmp_path: Path) -> None:
    """It has at most 25 lines, and answers named and routed prompts as their experts do alone."""
    script = examples.folder / "batch_minimal.py"
    assert len(script.read_text("utf-8").splitlines()) <= 25
    lines = [LINES[0], {"prompt": "Fix this invalid JSON: [1,]"}]
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script, prompts, f"sql={examples.sql}", f"json={examples.json}"],
        capture_output=True,
        text=True,
        check=True,
    )
    with Expert.load(examples.json, trust="off") as expert:
        expected = [
            {**line, "expert": "json", "text": expert.generate(line["prompt"]).text} for line in lines
        ]
    assert expected == [json.loads(line) for line in done.stdout.splitlines()]
