"""The command `hivellm-ort grammar check`: rules, warnings, and which samples are accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hivellm_ort.cli.main import main
from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.grammar.report import accepts, check_grammar

GBNF = '# sums\r\nroot ::= number ("+" number)*\r\nnumber ::= [0-9]+ "é"?\r\n'
SCHEMA = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with grammars and samples."""
    contents = {
        "sums.gbnf": GBNF,
        "schema.json": SCHEMA,
        "words.regex": "(yes|no)\n",
        "rules.lark": 'start: pair+\npair: "a" B\nB: /b+/\n',
        "choice.txt": '["one", "two"]',
        "broken.gbnf": 'root ::= "a" |\nother ::= ] "b"\n',
        "tokens.gbnf": 'root ::= <think> "a"\n',
        "good.txt": "1\n12+3\n",
        "mixed.txt": "1+2\n1é+x+1\n\n1+\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    return tmp_path


def check(folder: Path, *arguments: str) -> Result:
    """Run the command; arguments that are names of files are given with the folder."""
    named = [str(folder / one) if "." in one else one for one in arguments]
    return CliRunner().invoke(main, ["grammar", "check", *named])


def document(result: Result) -> Any:
    """Return the JSON that was printed."""
    return json.loads(result.stdout)


def test_the_json_document(folder: Path) -> None:
    """It has the number of rules, the warnings and one value a line, and nothing else."""
    result = check(folder, "sums.gbnf", "--accepts", "mixed.txt", "--json")
    assert {"rules": 2, "warnings": [], "accepts": [True, False, False, False]} == document(result)
    assert 1 == result.exit_code


def test_all_samples_accepted(folder: Path) -> None:
    """The exit status is 0 then, and without samples."""
    result = check(folder, "sums.gbnf", "--accepts", "good.txt", "--json")
    assert (0, [True, True]) == (result.exit_code, document(result)["accepts"])
    result = check(folder, "sums.gbnf", "--json")
    assert (0, []) == (result.exit_code, document(result)["accepts"])


@pytest.mark.parametrize(
    ("arguments", "rules", "samples", "accepted"),
    [
        (["schema.json"], 1, ['{"a": 1}', '{"a":1}', '{"a": "b"}'], [True, False, False]),
        (["words.regex"], 1, ["yes", "no", "yesno", "YES", ""], [True, True, False, False, False]),
        (["rules.lark"], 3, ["ab", "abbabb", "a"], [True, True, False]),
        (["choice.txt", "--kind", "choice"], 1, ["one", "on", "three"], [True, False, False]),
        (["sums.gbnf", "--kind", "gbnf"], 2, ["7", "7é", " 7"], [True, True, False]),
    ],
)
def test_every_kind(
    folder: Path, arguments: list[str], rules: int, samples: list[str], accepted: list[bool]
) -> None:
    """The ending tells the kind, or the option does."""
    (folder / "samples.txt").write_text("\n".join(samples), encoding="utf-8")
    result = check(folder, *arguments, "--accepts", "samples.txt", "--json")
    # The last sample is not ended by a newline; an empty one at the end is none.
    expected = accepted[: len(samples) if samples[-1] else -1]
    assert (rules, expected) == (document(result)["rules"], document(result)["accepts"])


@pytest.mark.parametrize(
    ("content", "count"), [("", 0), ("\n", 1), ("1", 1), ("1\r\n2\r\n", 2), ("1\n\n", 2)]
)
def test_lines_of_samples(folder: Path, content: str, count: int) -> None:
    """A line is a sample without its newline, of any system."""
    (folder / "lines.txt").write_text(content, encoding="utf-8", newline="")
    accepted = document(check(folder, "sums.gbnf", "--accepts", "lines.txt", "--json"))["accepts"]
    assert count == len(accepted)
    assert all(accepted) == ("\n\n" not in f"\n{content}")


def test_files_that_are_one_sample_each(folder: Path) -> None:
    """Of any number of lines; a byte order mark and the line end at the end are no part of it."""
    (folder / "list.gbnf").write_text('root ::= [a-z]+ ("\\n" [a-z]+)*', encoding="utf-8")
    (folder / "one.txt").write_bytes("\ufeffab\r\ncd\r\n".encode())
    (folder / "wide.txt").write_bytes("ab\ncd".encode("utf-16"))
    (folder / "bad.txt").write_text("ab\nc1\n", encoding="utf-8")
    (folder / "lines.txt").write_text("ab\nc1\n", encoding="utf-8")
    files = ["--accepts-file", "one.txt", "--accepts-file", "wide.txt", "--accepts-file", "bad.txt"]
    result = check(folder, "list.gbnf", "--accepts", "lines.txt", *files, "--json")
    assert (1, [True, False, True, True, False]) == (result.exit_code, document(result)["accepts"])
    shown = check(folder, "list.gbnf", *files).stdout.splitlines()
    names = [str(folder / name) for name in ("one.txt", "wide.txt", "bad.txt")]
    assert [f"{names[0]}  ok", f"{names[1]}  ok", f"{names[2]}  rejected"] == shown[-4:-1]
    assert f"{names[2]}, line 2, column 2: after 'ab\\nc' the grammar does not allow '1'" == shown[-1]
    assert 2 == check(folder, "list.gbnf", "--accepts-file", "missing.txt").exit_code


def test_lenient(folder: Path) -> None:
    """What cannot be enforced is a fault, or with --lenient a warning."""
    (folder / "set.json").write_text('{"type": "array", "uniqueItems": true}', encoding="utf-8")
    result = check(folder, "set.json")
    assert (2, True) == (result.exit_code, "at /uniqueItems: " in result.stderr)
    (warning,) = document(check(folder, "set.json", "--lenient", "--json"))["warnings"]
    assert "at /uniqueItems: not enforced" in warning


def test_the_first_rejected_sample_is_shown(folder: Path) -> None:
    """With the line, the column and the text around the place where it fails."""
    result = check(folder, "sums.gbnf", "--accepts", "mixed.txt")
    assert 1 == result.exit_code
    lines = result.stdout.splitlines()
    assert ["rules    2", "line 1  ok", "line 2  rejected", "line 3  rejected", "line 4  rejected"] == lines[
        :-1
    ]
    assert "line 2, column 4: after '1é+' the grammar does not allow 'x+1'" == lines[-1]


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ("x1", "line 1, column 1: no accepted answer begins with 'x1'"),
        ("1+", "line 1, column 3: the grammar expects more after '1+'"),
        ("1+1\x1b[31m", "line 1, column 4: after '1+1' the grammar does not allow '\\x1b[31m'"),
        ("1" * 100 + "x" * 100, f"column 101: after '{'1' * 30}' the grammar does not allow '{'x' * 30}'"),
    ],
)
def test_where_a_sample_fails(folder: Path, sample: str, said: str) -> None:
    """At its beginning, at its end or between, and nothing in it steers the terminal."""
    (folder / "one.txt").write_text(sample + "\n", encoding="utf-8")
    result = check(folder, "sums.gbnf", "--accepts", "one.txt")
    assert said in result.stdout


def test_a_broken_grammar(folder: Path) -> None:
    """The message has file, line and column; the exit status is 2, and with --json there is an object."""
    result = check(folder, "broken.gbnf")
    assert 2 == result.exit_code
    assert "broken.gbnf: line 2, column" in result.stderr
    result = check(folder, "broken.gbnf", "--json")
    assert (2, "GrammarError") == (result.exit_code, document(result)["error"]["type"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.gbnf"], "cannot be read"),
        (["good.txt"], "add --kind with one of gbnf, json_schema"),
        (["binary.gbnf"], "not UTF-8 (at byte 1)"),
        (["sums.gbnf", "--accepts", "missing.txt"], "cannot be read"),
        (["sums.gbnf", "--kind", "json_schema"], "not JSON"),
    ],
)
def test_files_that_cannot_be_used(folder: Path, arguments: list[str], said: str) -> None:
    """The exit status is 2, and the message says what to do."""
    (folder / "binary.gbnf").write_bytes(b"a\xff")
    result = check(folder, *arguments)
    assert (2, True) == (result.exit_code, said in result.stderr)


def test_a_byte_order_mark_is_no_text(folder: Path) -> None:
    """Files that begin with one are read like others."""
    (folder / "marked.json").write_text("\ufeff" + SCHEMA, encoding="utf-8")
    assert 0 == check(folder, "marked.json").exit_code


def test_tokens_need_a_tokenizer(folder: Path) -> None:
    """A grammar that names tokens is checked but for them, and samples cannot be tried."""
    result = check(folder, "tokens.gbnf", "--json")
    (warning,) = document(result)["warnings"]
    assert "(<think>)" in warning
    assert "can only be checked with the model's tokenizer" in warning
    result = check(folder, "tokens.gbnf", "--accepts", "good.txt")
    assert 2 == result.exit_code
    assert "checked with the model's tokenizer" in " ".join(result.stderr.split())


def test_warnings_of_the_author_s_grammar(folder: Path) -> None:
    """What the linter says is shown in both forms."""
    (folder / "odd.gbnf").write_text('root ::= root "a" | "b"\nunused ::= "c"\n', encoding="utf-8")
    warnings = document(check(folder, "odd.gbnf", "--json"))["warnings"]
    assert len(warnings) >= 2
    shown = check(folder, "odd.gbnf").stdout
    assert [f"warning  {warning}" for warning in warnings] == shown.splitlines()[1:]


def test_places_are_in_characters() -> None:
    """A character of several bytes of which the first fit fails itself."""
    grammar = Grammar.regex("[é🙂]+")
    assert [None, 2, 0, 1] == accepts(grammar, ["é🙂", "éé\U0001f643", "x", "éè"])


def test_a_check_refuses_what_compiling_refuses() -> None:
    """No model is needed to see a fault."""
    with pytest.raises(GrammarError, match="unclosed group"):
        check_grammar(Grammar.regex("(a"))
