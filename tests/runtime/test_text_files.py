"""Text files that Windows wrote, at the command line and in packages: with a mark, in UTF-16, with CRLF."""

# The expected value comes first.

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.running import PROMPT, Packages, engine_of

from hivellm_ort import Expert
from hivellm_ort.cli.main import main
from hivellm_ort.text.template import ChatTemplate

Run = Callable[..., Result]
ENCODINGS = pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
DDL = "CREATE TABLE users(\n  älter INT\n);\n"
GBNF = 'root ::= "yes"\n  | "no"\n'
JSON_SCHEMA = '{\n  "type": "integer",\n  "minimum": 3,\n  "maximum": 5\n}\n'


def written(path: Path, text: str, encoding: str) -> str:
    """Write a file as Windows does, and give the option's value that names it."""
    path.write_bytes(text.replace("\n", "\r\n").encode(encoding))
    return f"@{path}"


@pytest.fixture
def run(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `hivellm-ort run` on the LoRA expert with options."""
    monkeypatch.setenv("HIVELLM_HOME", str(packages.cache))

    def invoke(*options: str) -> Result:
        arguments = ["run", str(packages.lora), PROMPT, "--threads", "1", "--json", *options]
        return CliRunner().invoke(main, arguments)

    return invoke


@ENCODINGS
@pytest.mark.parametrize("option", ["schema", "system"])
def test_what_reaches_the_prompt(run: Run, lora: Expert, tmp_path: Path, encoding: str, option: str) -> None:
    """The prompt has the file's text as any other system would have written it, and no mark."""
    value = written(tmp_path / "text.sql", DDL, encoding)
    document = json.loads(run(f"--{option}", value, "--max-tokens", "8").stdout)
    expected = lora.generate(PROMPT, **{option: DDL}, max_tokens=8)  # type: ignore[arg-type]
    assert (expected.prompt_tokens, list(expected.tokens)) == (document["prompt_tokens"], document["tokens"])


@ENCODINGS
def test_grammars(run: Run, tmp_path: Path, encoding: str) -> None:
    """A GBNF grammar in a file binds the answer."""
    result = run("--grammar", written(tmp_path / "answer.gbnf", GBNF, encoding))
    assert 0 == result.exit_code, result.output
    assert json.loads(result.stdout)["text"] in ("yes", "no")


@ENCODINGS
def test_json_schemas(run: Run, tmp_path: Path, encoding: str) -> None:
    """A JSON schema in a file binds the answer."""
    result = run("--json-schema", written(tmp_path / "answer.json", JSON_SCHEMA, encoding))
    assert 0 == result.exit_code, result.output
    assert json.loads(json.loads(result.stdout)["text"]) in (3, 4, 5)


@pytest.mark.parametrize("option", ["--schema", "--system", "--grammar", "--json-schema"])
@pytest.mark.parametrize("data", [b"caf\xe9", b"\xff\xfea"], ids=["latin-1", "cut utf-16"])
def test_bytes_that_are_no_text(run: Run, tmp_path: Path, option: str, data: bytes) -> None:
    """A file that is not a text in its encoding is refused with its name."""
    (tmp_path / "text.txt").write_bytes(data)
    result = run(option, f"@{tmp_path / 'text.txt'}")
    assert 2 == result.exit_code
    assert "text.txt cannot be read" in json.loads(result.stdout)["error"]["message"]
    assert "text.txt cannot be read" in " ".join(result.stderr.split())


@ENCODINGS
def test_grammar_check(tmp_path: Path, encoding: str) -> None:
    """`grammar check` reads the grammar and the samples by their marks."""
    grammar = written(tmp_path / "answer.gbnf", GBNF, encoding)[1:]
    samples = written(tmp_path / "samples.txt", "yes\nmaybe\n", encoding)[1:]
    result = CliRunner().invoke(main, ["grammar", "check", grammar, "--accepts", samples, "--json"])
    assert [True, False] == json.loads(result.stdout)["accepts"]


@ENCODINGS
def test_texts_of_a_package(packages: Packages, lora: Expert, tmp_path: Path, encoding: str) -> None:
    """Manifest and grammar of a package are read by their marks."""
    folder = Path(shutil.copytree(packages.lora_folder, tmp_path / "expert"))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest.setdefault("training", {})["decoding"] = {"use_grammar": True}
    written(folder / "manifest.json", json.dumps(manifest, indent=2), encoding)
    written(folder / "grammar.gbnf", GBNF, encoding)
    bundle = engine_of(lora).folder
    with Expert.load(folder, base=bundle, cache_dir=packages.cache, threads=1, trust="off") as expert:
        assert expert.generate(PROMPT).text in ("yes", "no")


@ENCODINGS
def test_chat_templates(tmp_path: Path, encoding: str) -> None:
    """A chat template with a mark and CRLF renders as the model was trained: no mark, and lines that end with LF."""
    written(tmp_path / "chat_template.jinja", "größe\nbeginnt", encoding)
    assert "größe\nbeginnt" == ChatTemplate.from_folder(str(tmp_path)).render([])
