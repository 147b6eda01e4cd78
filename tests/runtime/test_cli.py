"""`hivellm-ort run` and `hivellm-ort chat`."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.running import PROMPT, Packages

from hivellm_ort import Expert, __version__
from hivellm_ort.cli.main import main
from hivellm_ort.cli.run import text_or_file
from hivellm_ort.package.archive import extract

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run `hivellm-ort` with arguments, as a shell would, on the cache of the packages."""
    monkeypatch.setenv("HIVELLM_HOME", str(packages.cache))

    def run(*arguments: str | Path, stdin: str = "") -> Result:
        texts = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["hivellm-ort", *texts])
        return CliRunner().invoke(main, texts, input=stdin)

    return run


def assert_refused(result: Result, message: str) -> None:
    """Status 2, one line that begins with `error:`, nothing on standard output and no traceback."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert 2 == result.exit_code
    assert "" == result.stdout
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert 1 == result.stderr.count("\n")


def test_run_prints_the_text(invoke: Invoke, packages: Packages, lora: Expert) -> None:
    """Standard output is the answer and a newline."""
    result = invoke("run", packages.lora, PROMPT, "--max-tokens", "30", "--threads", "1")
    assert 0 == result.exit_code, result.output
    assert f"{lora.generate(PROMPT, max_tokens=30).text}\n".encode() == result.stdout_bytes
    assert "" == result.stderr


def test_run_as_json(invoke: Invoke, packages: Packages, lora: Expert) -> None:
    """Standard output is one JSON object with everything of the result."""
    result = invoke("run", packages.lora, PROMPT, "--max-tokens", "30", "--threads", "1", "--json")
    assert 0 == result.exit_code, result.output
    document = json.loads(result.stdout_bytes)
    expected = lora.generate(PROMPT, max_tokens=30)
    assert list(expected.tokens) == document["tokens"]
    assert expected.text == document["text"]
    assert set(expected.to_dict()) == set(document)
    assert {"queue", "swap", "prefill", "decode"} == set(document["timings"])
    assert ("length", 30, "expert-lora") == (
        document["finish_reason"],
        document["completion_tokens"],
        document["expert"],
    )


def test_schema_and_system_from_files(
    invoke: Invoke, packages: Packages, lora: Expert, tmp_path: Path
) -> None:
    """A value that begins with @ is the content of a file."""
    schema, system = "CREATE TABLE users(älter INT);\n", "be brief"
    (tmp_path / "schema.sql").write_text(schema, encoding="utf-8")
    arguments = ["run", packages.lora, PROMPT, "--max-tokens", "12", "--threads", "1", "--json"]
    arguments += ["--schema", f"@{tmp_path / 'schema.sql'}", "--system", system]
    document = json.loads(invoke(*arguments).stdout_bytes)
    expected = lora.generate(PROMPT, schema=schema, system=system, max_tokens=12)
    assert list(expected.tokens) == document["tokens"]
    assert expected.prompt_tokens == document["prompt_tokens"]


def test_sampling_options(invoke: Invoke, packages: Packages, lora: Expert) -> None:
    """Every sampling option reaches the sampler."""
    arguments = [
        "run",
        packages.lora,
        PROMPT,
        "--threads",
        "1",
        "--json",
        "--max-tokens",
        "25",
        "--seed",
        "9",
    ]
    arguments += ["--temperature", "1.3", "--top-p", "0.9", "--top-k", "40"]
    document = json.loads(invoke(*arguments).stdout_bytes)
    expected = lora.generate(PROMPT, max_tokens=25, seed=9, temperature=1.3, top_p=0.9, top_k=40)
    assert list(expected.tokens) == document["tokens"]


def test_stop(invoke: Invoke, packages: Packages, lora: Expert) -> None:
    """--stop may be repeated; the first that occurs ends the answer."""
    whole = lora.generate(PROMPT, max_tokens=60).text
    stops = [whole[20:23], whole[8:11]]
    arguments = ["run", packages.lora, PROMPT, "--max-tokens", "60", "--threads", "1"]
    for stop in stops:
        arguments += ["--stop", stop]
    result = invoke(*arguments)
    cut = min(whole.find(stop) for stop in stops)
    assert f"{whole[:cut]}\n".encode() == result.stdout_bytes


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--choice", "größer"], "größer"),
        (["--regex", "a{3}"], "aaa"),
        (["--grammar", 'root ::= "x" "y"'], "xy"),
        (["--json-schema", '{"const": {"a": 1}}'], '{"a": 1}'),
        (["--no-grammar", "--choice", "b"], None),
        (["--no-grammar", "--grammar", 'root ::= "x"'], None),
    ],
)
def test_grammar_options(
    arguments: list[str], expected: str | None, invoke: Invoke, packages: Packages
) -> None:
    """Each kind of grammar has an option; two at once are refused."""
    result = invoke("run", packages.lora, PROMPT, *arguments)
    if expected is None:
        assert 2 == result.exit_code
        assert "" == result.stdout
    else:
        assert f"{expected}\n".encode() == result.stdout_bytes


def test_lenient_and_its_warnings(invoke: Invoke, packages: Packages) -> None:
    """Parts that are not enforced are listed on standard error and in the document."""
    schema = '{"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2, "uniqueItems": true}'
    arguments = ["run", packages.lora, PROMPT, "--json-schema", schema]
    assert_refused(invoke(*arguments), "at /uniqueItems: it cannot be enforced")
    result = invoke(*arguments, "--lenient")
    assert ("[1, 1]\n", 0) == (result.stdout, result.exit_code)
    assert result.stderr.startswith("warning: json_schema, at /uniqueItems: not enforced: ")
    (warning,) = json.loads(invoke(*arguments, "--lenient", "--json").stdout)["warnings"]
    assert f"warning: {warning}\n" == result.stderr


def test_chat_of_two_turns(invoke: Invoke, packages: Packages, lora: Expert) -> None:
    """The second answer knows the first question and answer; an empty line leaves."""
    result = invoke(
        "chat", packages.lora, "--max-tokens", "10", "--threads", "1", stdin="first\n second \n\nnot asked\n"
    )
    assert 0 == result.exit_code, result.output
    one = lora.generate("first", max_tokens=10).text
    turns = [{"role": "user", "content": "first"}, {"role": "assistant", "content": one}]
    two = lora.generate("second", messages=turns, max_tokens=10).text
    assert two != lora.generate("second", max_tokens=10).text
    answers = result.stdout_bytes.decode().split("> ")
    assert ["", f"{one}\n", f"{two}\n", ""] == answers
    assert "expert-lora on tiny (fp32)\n" == result.stderr


def test_chat_with_tools(invoke: Invoke, packages: Packages, tmp_path: Path) -> None:
    """Tools come from a text or a file of any editor; a template without them, and no JSON, are refused."""
    tools = json.dumps([{"type": "function", "function": {"name": "root"}}])
    file = tmp_path / "tools.json"
    file.write_text(tools, encoding="utf-16")
    for given in (tools, f"@{file}"):
        result = invoke("chat", packages.lora, "--tools", given, "--threads", "1", stdin="first\n")
        assert 2 == result.exit_code
        assert "does not show the tools to the model" in result.stderr
    result = invoke("chat", packages.lora, "--tools", "[", "--threads", "1", stdin="first\n")
    assert 2 == result.exit_code
    assert "--tools" in result.stderr
    none = invoke(
        "chat", packages.lora, "--tools", "[]", "--threads", "1", "--max-tokens", "4", stdin="first\n"
    )
    assert 0 == none.exit_code, none.output


def test_chat_ends_with_its_input(invoke: Invoke, packages: Packages) -> None:
    """The end of the input leaves too, and an error in a turn is an error of the command."""
    assert 0 == invoke("chat", packages.short, "--threads", "1", stdin="").exit_code
    result = invoke("chat", packages.short, "--threads", "1", stdin="x" * 500)
    assert 2 == result.exit_code
    assert "exceed the model's context of 128 tokens" in result.stderr


@pytest.mark.parametrize("command", ["run", "chat"])
def test_package_that_does_not_exist(command: str, invoke: Invoke, tmp_path: Path) -> None:
    """The path is in the message."""
    arguments = [command, tmp_path / "missing.expert"] + [PROMPT] * (command == "run")
    assert_refused(invoke(*arguments), f"{tmp_path / 'missing.expert'}: neither a .expert file nor a folder")


def test_package_that_is_cut_off(invoke: Invoke, packages: Packages, tmp_path: Path) -> None:
    """A damaged package is refused."""
    broken = tmp_path / "broken.expert"
    broken.write_bytes(packages.lora.read_bytes()[:-1000])
    assert_refused(invoke("run", broken, PROMPT), "broken.expert")


def test_base_that_does_not_exist(invoke: Invoke, packages: Packages, tmp_path: Path) -> None:
    """A --base without a bundle is refused."""
    assert_refused(invoke("run", packages.lora, PROMPT, "--base", tmp_path), "decoder.json is missing")


def test_option_out_of_range(invoke: Invoke, packages: Packages) -> None:
    """An error of the library is an error of the command, which names the flag."""
    assert_refused(invoke("run", packages.lora, PROMPT, "--temperature", "-1"), "--temperature is -1.0")
    assert_refused(invoke("run", packages.lora, PROMPT, "--device", "cuda"), "or use --device cpu")
    assert_refused(invoke("run", packages.short, PROMPT, "--max-tokens", "1000"), "--max-tokens 1000 exceed")


@pytest.mark.parametrize(
    "arguments",
    [["--max-tokens", "0"], ["--threads", "0"], ["--schema", "@missing.sql"], ["--no-such-option"]],
    ids=" ".join,
)
def test_usage_error(arguments: list[str], invoke: Invoke, packages: Packages) -> None:
    """Wrong arguments have status 2 too, and the usage is printed."""
    result = invoke("run", packages.lora, PROMPT, *arguments)
    assert 2 == result.exit_code
    assert "" == result.stdout
    assert result.stderr.startswith("Usage: ")


@pytest.mark.parametrize("flag", ["--grammar", "--schema", "--system", "--json-schema"])
def test_name_of_a_file_without_the_mark(
    flag: str, invoke: Invoke, packages: Packages, tmp_path: Path
) -> None:
    """A text that is or looks like a file name is refused, and the message suggests the @."""
    file = tmp_path / "the file"
    file.write_text("x", encoding="utf-8")
    for name in ("kv.gbnf", "sub/schema.SQL", r"C:\\data\\a.json", str(file)):
        result = invoke("run", packages.lora, PROMPT, flag, name)
        assert (2, "") == (result.exit_code, result.stdout)
        # The usage is wrapped to the width of a terminal.
        assert f"write @{name} for its contents" in " ".join(result.stderr.split())
    for text in ("root ::= .sql", "see a.sql and b.sql", "a.b", "\nkv.gbnf"):
        assert text == text_or_file(None, None, text)  # type: ignore[arg-type]


def test_messages_name_flags(
    invoke: Invoke, packages: Packages, lora: Expert, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A message in the shell has the flags of the command; the same one in Python has the arguments."""
    for arguments, expected in {
        ("--top-p", "7"): "--top-p is 7.0",
        ("--seed", "-1"): "--seed is -1",
        (
            "--provider-option",
            "device_id=1",
        ): "--provider-option device_id: name the number in the device, as in --device",
        ("--device", "cuda"): "or allow the CPU with --fallback",
        ("--no-grammar", "--choice", "b"): "--choice and --no-grammar are given",
    }.items():
        assert_refused(invoke("run", packages.lora, PROMPT, *arguments), expected)
    with pytest.raises(ValueError, match=r"^top_p is 7\.0"):
        lora.builder.build(PROMPT, {"top_p": 7.0})
    extract(packages.lora, tmp_path / "package")  # it warns once in a process of each
    assert 0 == invoke("run", tmp_path / "package", PROMPT, "--max-tokens", "1").exit_code
    extract(packages.lora, tmp_path / "other")
    Expert.load(tmp_path / "other", cache_dir=packages.cache, threads=1).close()
    cures = [text.partition("; or load it with ")[2] for text in caplog.messages if "unsigned" in text]
    assert ["--trust off", "trust='off'"] == cures


def test_a_fault_of_ours(invoke: Invoke, packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error gives a traceback, a request to report it, and status 1; with --json an object."""

    def broken(*_: object, **__: object) -> None:
        raise ValueError("out of order")

    monkeypatch.setattr(Expert, "load", broken)
    for flags in ([], ["--json"]):
        result = invoke("run", packages.lora, PROMPT, *flags)
        assert 1 == result.exit_code
        lines = result.stderr.splitlines()
        assert ("Traceback (most recent call last):", "ValueError: out of order") == (lines[0], lines[-2])
        assert "This is a bug of hivellm-ort. Please report it" in lines[-1]
        expected = {"error": {"type": "ValueError", "message": "out of order"}}
        assert (expected if flags else None) == (json.loads(result.stdout) if result.stdout else None)


def test_what_the_system_refuses(invoke: Invoke, packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is not a bug: it gives a message and status 2."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "cache")

    monkeypatch.setattr(Expert, "load", full)
    assert_refused(invoke("run", packages.lora, PROMPT), "No space left on device: 'cache'")


TEXT = "→ 🙂 é"


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii", "latin-1", "utf-8", "utf-16"])
def test_no_console_fails(encoding: str, packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Characters missing in an encoding are escaped. JSON is the same in every encoding."""
    monkeypatch.setenv("HIVELLM_HOME", str(packages.cache))
    arguments = ["run", str(packages.lora), PROMPT, "--choice", TEXT, "--trust", "off"]
    runner = CliRunner(charset=encoding)
    result = runner.invoke(main, arguments)
    assert 0 == result.exit_code, result.output
    written = result.stdout_bytes.decode("utf-8" if encoding == "ascii" else encoding)  # click has no ASCII
    assert {
        "cp1252": "\\u2192 \\U0001f642 é\n", "cp437": "\\u2192 \\U0001f642 é\n", "latin-1": "\\u2192 \\U0001f642 é\n",
    }.get(encoding, f"{TEXT}\n") == written.removeprefix("\ufeff")  # fmt: skip
    document = runner.invoke(main, [*arguments, "--json"]).stdout_bytes.decode(encoding)
    assert TEXT == json.loads(document.removeprefix("\ufeff"))["text"]
    assert (encoding == "utf-8") == (TEXT in document)
    refused = runner.invoke(main, ["run", f"{TEXT}.expert", PROMPT])
    assert 2 == refused.exit_code
    assert b"neither" in refused.stderr_bytes.replace(b"\0", b"")


def test_a_pipe_on_windows(packages: Packages) -> None:
    """As a process whose standard output is cp1252 it ends well, and its answer is complete."""
    environment = {**os.environ, "HIVELLM_HOME": str(packages.cache), "PYTHONIOENCODING": "cp1252"}
    arguments = [
        sys.executable,
        "-m",
        "hivellm_ort",
        "run",
        packages.lora,
        PROMPT,
        "--choice",
        TEXT,
        "--trust",
        "off",
    ]
    done = subprocess.run(arguments, capture_output=True, env=environment, timeout=60, check=True)
    assert (b"\\u2192 \\U0001f642 \xe9" + os.linesep.encode(), b"") == (done.stdout, done.stderr)


def test_input_in_another_encoding(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that is not in the encoding of standard input is refused, never changed."""
    monkeypatch.setenv("HIVELLM_HOME", str(packages.cache))
    result = CliRunner().invoke(main, ["chat", str(packages.lora), "--trust", "off"], input=b"caf\xe9\n")
    assert 2 == result.exit_code
    assert "error: the question is not utf-8 (at byte 3)" in result.stderr


def test_error_as_json(invoke: Invoke, tmp_path: Path) -> None:
    """With --json an error is an object on standard output as well."""
    result = invoke("run", tmp_path / "missing.expert", PROMPT, "--json")
    assert 2 == result.exit_code
    error = json.loads(result.stdout)["error"]
    assert {"type", "message"} == set(error)
    assert "LoadError" == error["type"]
    assert f"error: {error['message']}\n" == result.stderr


def test_usage_error_as_json(invoke: Invoke, packages: Packages) -> None:
    """So is what the command line itself refuses, wherever --json stands."""
    result = invoke("run", packages.lora, PROMPT, "--schema", "@missing.sql", "--json")
    assert 2 == result.exit_code
    error = json.loads(result.stdout)["error"]
    assert ("BadParameter", True) == (error["type"], "missing.sql cannot be read" in error["message"])
    assert result.stderr.startswith("Usage: ")


def test_error_as_json_without_a_shell(tmp_path: Path) -> None:
    """The arguments given to the command decide, not those of the process it runs in."""
    result = CliRunner().invoke(main, ["run", str(tmp_path / "missing.expert"), PROMPT, "--json"])
    assert 2 == result.exit_code
    assert "LoadError" == json.loads(result.stdout)["error"]["type"]


def test_prompt_that_looks_like_the_option(invoke: Invoke, tmp_path: Path) -> None:
    """A prompt `--json` after `--` is a prompt."""
    assert_refused(invoke("run", "--", tmp_path / "missing.expert", "--json"), "missing.expert")


def test_help_and_version(invoke: Invoke) -> None:
    """All commands are listed, the exporter's too, and the version is the package's."""
    text = invoke("--help").stdout
    assert ["chat", "export", "run"] == [name for name in ("chat", "export", "run") if f"\n  {name} " in text]
    assert f"hivellm-ort, version {__version__}\n" == invoke("--version").stdout
    assert 2 == invoke("no-such-command").exit_code


def test_as_a_module() -> None:
    """`python -m hivellm_ort` is the same command."""
    arguments = [sys.executable, "-m", "hivellm_ort", "--version"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert f"hivellm-ort, version {__version__}\n" == done.stdout


def test_from_a_shell(packages: Packages, lora: Expert) -> None:
    """The installed command writes UTF-8 in any locale, and fails without a traceback."""
    command = shutil.which("hivellm-ort", path=str(Path(sys.executable).parent))
    assert command is not None
    environment = {**os.environ, "HIVELLM_HOME": str(packages.cache), "LC_ALL": "C"}
    arguments = [command, "run", packages.lora, PROMPT, "--max-tokens", "30", "--threads", "1"]
    done = subprocess.run(arguments, capture_output=True, env=environment, timeout=60, check=True)
    assert f"{lora.generate(PROMPT, max_tokens=30).text}\n".encode() == done.stdout
    assert f"{packages.lora}: unsigned; to end this warning, sign it" in done.stderr.decode()
    assert 1 == done.stderr.count(b"\n")
    quiet = subprocess.run([*arguments, "--trust", "off"], capture_output=True, env=environment, timeout=60)
    assert (0, done.stdout, b"") == (quiet.returncode, quiet.stdout, quiet.stderr)
    arguments[2] = packages.cache / "missing.expert"
    failed = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (2, "", 1) == (failed.returncode, failed.stdout, failed.stderr.count("\n"))
    assert failed.stderr.startswith("error: ")
