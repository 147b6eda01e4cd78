"""Texts of packages, arguments and models on a terminal."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import unicodedata
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.running import PROMPT, Packages

from hivellm_ort import Expert, LoadError
from hivellm_ort.cli.main import main
from hivellm_ort.package.archive import extract
from hivellm_ort.printable import escaped, printable

HOSTILE = "a\x1b[31mb\x9b2J\u202ec\u2066d\x07\x7f\u200b\U000e0041"
SHOWN = r"a\x1b[31mb\x9b2J\u202ec\u2066d\x07\x7f\u200b\U000e0041"


def test_every_character_of_unicode() -> None:
    """Controls, formats except the joiners, lone surrogates and line separators are escaped."""
    steering = ("Cc", "Cf", "Cs", "Zl", "Zp")
    text = "".join(
        char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char) in steering
    )
    assert {"\n", "\t", "\u200c", "\u200d"} == set(escaped(text)) - set(map(chr, range(32, 127)))
    assert {"\u200c", "\u200d"} == set(printable(text)) - set(map(chr, range(32, 127)))


def test_long_texts_are_cut() -> None:
    """`most` bounds the characters shown; escapes come after the cut."""
    assert ("abc", "ab…", "数据库") == tuple(printable(text, most=3) for text in ("abc", "abcd", "数据库"))
    assert r"a \x1b…" == printable("a\n\x1b[31m", most=4)


@pytest.mark.parametrize("text", ["", "größer", "日本語", "می‌خواهم", "👩‍💻", "a\n\tb", "\\x1b", "a\u0301"])
def test_what_people_write_stays(text: str) -> None:
    """Letters of all scripts, emoji, line ends and tabs are as they were."""
    assert text == escaped(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HOSTILE, SHOWN),
        ("\r", r"\x0d"),
        ("\udc80", r"\udc80"),
        ("\u2028", r"\u2028"),
        ("\x00\x1b", r"\x00\x1b"),
    ],
)
def test_escapes(text: str, shown: str) -> None:
    """They are those of Python and JSON."""
    assert shown == escaped(text)


@pytest.fixture
def hostile(packages: Packages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an expert whose manifest, and whose template's error, steer the terminal."""
    monkeypatch.setenv("HIVELLM_HOME", str(packages.cache))
    extract(packages.lora, tmp_path / "expert")
    path = tmp_path / "expert" / "manifest.json"
    document = {**json.loads(path.read_bytes()), "description": HOSTILE, "license": HOSTILE}
    path.write_text(json.dumps(document))
    error = (
        "{% for m in messages %}{% if m.content == 'go' %}{{ raise_exception('" + HOSTILE + "') }}{% endif %}"
    )
    template = error + "{{ m.content }}{% endfor %}"
    (tmp_path / "expert" / "chat_template.jinja").write_text(template, encoding="utf-8")
    return tmp_path / "expert"


def assert_harmless(result: Result, *, status: int) -> None:
    """No character on either stream steers a terminal, and the hostile text is there as escapes."""
    assert status == result.exit_code, result.output
    for text in (result.stdout_bytes.decode(), result.stderr_bytes.decode()):
        assert text == escaped(text)
    assert r"\x1b[31mb\x9b2J\u202ec" in result.output.replace(r"\\", "\\").replace(r"\u00", r"\x")


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_manifest_and_template(flags: list[str], hostile: Path) -> None:
    """Texts of a package are escaped in outputs and errors."""
    assert_harmless(CliRunner().invoke(main, ["inspect", str(hostile), *flags]), status=0)
    result = CliRunner().invoke(main, ["run", str(hostile), "go", "--trust", "off", "--threads", "1", *flags])
    assert_harmless(result, status=2)


TEXTS = (
    "/name",
    "/version",
    "/author",
    "/capabilities/0",
    "/base_models/0/name",
    "/base_models/0/prompt_template",
    "/training/decoding/grammar_type",
    "/training/decoding/stop_sequences/0",
    "/routing/keywords/0",
    "/routing/router_hint",
    "/constraints/requires/0",
    "/unknown",
    "/quality/" + HOSTILE,
)


@pytest.mark.parametrize("pointer", TEXTS)
def test_every_text_of_a_manifest(pointer: str, hostile: Path, tmp_path: Path) -> None:
    """Whatever field it is in, and whether a command takes it or refuses it, it is escaped."""
    path = hostile / "manifest.json"
    place: Any = json.loads(path.read_bytes())
    document, steps = place, pointer[1:].split("/", 3)
    for step, following in pairwise(steps):
        made: Any = [] if following == "0" else {}
        if step == "0":
            place[:] = place or [made]
            place = place[0]
        else:
            place[step] = place.get(step) or made
            place = place[step]
    if steps[-1] == "0":
        place[:] = [HOSTILE]
    else:
        place[steps[-1]] = HOSTILE
    path.write_text(json.dumps(document))
    for arguments in (
        ["inspect"],
        ["inspect", "--json"],
        ["verify"],
        ["pack", "--output", str(tmp_path / "x.expert")],
    ):
        result = CliRunner().invoke(main, [*arguments, str(hostile)])
        assert result.exit_code in (0, 1, 2)
        assert "Traceback" not in result.output
        for text in (result.stdout_bytes.decode(), result.stderr_bytes.decode()):
            assert text == escaped(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", HOSTILE, PROMPT],
        ["run", HOSTILE],
        [HOSTILE],
        [f"--{HOSTILE}"],
        ["run", "x", "y", f"--{HOSTILE}"],
        ["run", "x", "y", "--top-k", HOSTILE],
        ["run", "x", "y", "--schema", f"@{HOSTILE}"],
        ["grammar", "check", f"{HOSTILE}.gbnf"],
        ["export", "--base", HOSTILE, "--output", "x"],
        ["verify", HOSTILE],
    ],
)
def test_arguments(arguments: list[str]) -> None:
    """Errors, of click too, quote arguments as escapes."""
    result = CliRunner().invoke(main, arguments)
    assert 2 == result.exit_code
    assert result.stderr == escaped(result.stderr)


def test_grammar_errors(tmp_path: Path) -> None:
    """A grammar's own text in an error or a warning is escaped."""
    for name, text in (("a.gbnf", f"root ::= {HOSTILE}\n"), ("a.json", json.dumps({"type": HOSTILE}))):
        (tmp_path / name).write_text(text, encoding="utf-8")
        result = CliRunner().invoke(main, ["grammar", "check", str(tmp_path / name)])
        assert 2 == result.exit_code
        assert result.stderr == escaped(result.stderr)


def test_warnings_and_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log records of any library, Python's warnings and tracebacks are escaped; afterwards logging is as before."""
    handlers = list(logging.getLogger().handlers)

    def broken(*_: object, **__: object) -> None:
        logging.getLogger("hivellm_ort").warning("log %s", HOSTILE)
        logging.getLogger("another.package").warning("other %s", HOSTILE)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(f"warned {HOSTILE}", stacklevel=1)
        raise RuntimeError(f"broken {HOSTILE}")

    monkeypatch.setattr(Expert, "load", broken)
    result = CliRunner().invoke(main, ["run", "x", PROMPT])
    assert_harmless(result, status=1)
    for word in ("log", "other", "UserWarning: warned", "RuntimeError: broken"):
        assert f"{word} {SHOWN}" in result.stderr
    assert handlers == logging.getLogger().handlers


def test_a_line_that_is_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A carriage return cannot hide what stands before it."""

    def broken(*_: object, **__: object) -> None:
        raise LoadError("bad\rall is well")

    monkeypatch.setattr(Expert, "load", broken)
    result = CliRunner().invoke(main, ["run", "x", PROMPT])
    assert b"error: bad\\x0dall is well\n" == result.stderr_bytes


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_an_answer_on_a_terminal(packages: Packages) -> None:
    """It is escaped there, and exact in a pipe; as JSON it reads back the same."""
    import pty

    text = f"{HOSTILE}\n\tz"
    arguments = [sys.executable, "-m", "hivellm_ort", "run", packages.lora, PROMPT, "--trust", "off"]
    arguments += ["--threads", "1", "--choice", text]
    environment = {**os.environ, "HIVELLM_HOME": str(packages.cache), "PYTHONIOENCODING": "utf-8"}
    piped = subprocess.run(arguments, capture_output=True, env=environment, timeout=60, check=True).stdout
    assert f"{text}\n" == piped.decode()
    ours, theirs = pty.openpty()
    try:
        subprocess.run(arguments, stdin=theirs, stdout=theirs, env=environment, timeout=60, check=True)
        shown = os.read(ours, 10_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert f"{SHOWN}\n\tz\n" == shown.replace("\r\n", "\n")
    written = subprocess.run(
        [*arguments, "--json"], capture_output=True, env=environment, timeout=60, check=True
    ).stdout.decode()
    assert (text, written) == (json.loads(written)["text"], escaped(written))
