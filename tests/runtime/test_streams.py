"""The command line on streams that are closed, full, or left by their reader."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.extras import requires_export
from support.running import PROMPT, Packages

pytestmark = pytest.mark.skipif(
    not Path("/dev/full").is_char_device(), reason="needs the device /dev/full and a shell"
)
Shell = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def shell(packages: Packages, tmp_path: Path) -> Shell:
    """Run `hivellm-ort` with arguments and redirections of a shell."""
    (tmp_path / "a.gbnf").write_text('root ::= "a"\n')
    environment = {**os.environ, "HIVELLM_HOME": str(packages.cache), "PYTHONWARNINGS": "error"}

    def run(
        arguments: str, redirection: str, stdin: bytes = b"", *, left: bool = False
    ) -> subprocess.CompletedProcess[str]:
        reader, writer = os.pipe()
        if left:
            os.close(reader)
        line = f'"$0" -m hivellm_ort {arguments} {redirection}'
        done = subprocess.run(
            ["bash", "-c", line, sys.executable, packages.lora, PROMPT],
            input=stdin,
            stdout=writer if left else subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=tmp_path,
            timeout=60,
            check=False,
        )
        os.close(writer)
        if not left:
            os.close(reader)
        texts = (done.stdout or b"").decode(), done.stderr.decode()
        return subprocess.CompletedProcess(line, done.returncode, *texts)

    return run


RUN_COMMAND = 'run "$1" "$2" --trust off --threads 1 --max-tokens 20'


@pytest.mark.parametrize(
    "arguments",
    [
        RUN_COMMAND,
        f"{RUN_COMMAND} --json",
        'inspect "$1"',
        "grammar check a.gbnf",
        "cache list",
        "export --help",
    ],
)
def test_full_standard_output(arguments: str, shell: Shell) -> None:
    """It is one line and status 2."""
    done = shell(arguments, ">/dev/full")
    assert (2, 1) == (done.returncode, done.stderr.count("\n"))
    assert done.stderr.startswith("error: [Errno 28] No space left on device")


@pytest.mark.parametrize(
    "arguments",
    [RUN_COMMAND, 'inspect "$1" --json', "grammar check a.gbnf", "--help", 'chat "$1" 2>/dev/null'],
)
def test_pipe_whose_reader_left(arguments: str, shell: Shell) -> None:
    """The command ends quietly, with the status of a program that SIGPIPE ended."""
    done = shell(arguments, "", b"a\nb\n", left=True)
    assert (141, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ('chat "$1"', "standard input is closed: chat reads questions from it"),
        ("cache clear", "cannot ask here: pass --yes"),
        ("init .", "error: "),
    ],
)
def test_closed_standard_input(arguments: str, message: str, shell: Shell) -> None:
    """A command that would ask says so, in one line."""
    done = shell(arguments, "<&-")
    assert (2, 1) == (done.returncode, done.stderr.count("\n"))
    assert message in done.stderr


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "<&- 2>&-"])
def test_standard_error_that_takes_nothing(redirection: str, shell: Shell) -> None:
    """The status alone tells then."""
    done = shell('run missing.expert "$2"', redirection)
    assert (2, "", "") == (done.returncode, done.stdout, done.stderr)


def test_closed_standard_output(shell: Shell) -> None:
    """A command with a closed output does its work."""
    done = shell(RUN_COMMAND, "<&- >&-")
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


def test_chat_goes_on(shell: Shell) -> None:
    """A question that is too long or not UTF-8 is reported. The others are one conversation."""
    arguments = 'chat "$1" --trust off --threads 1 --max-tokens 8'
    whole = shell(arguments, "", b"one\ntwo\n")
    assert (0, "expert-lora on tiny (fp32)\n") == (whole.returncode, whole.stderr)
    _, one, two, end = whole.stdout.split("> ")
    bad = [b"x" * 9000, b"caf\xe9", b"\xff\xfe", b"\xed\xb0\x80"]
    done = shell(arguments, "", b"\n".join([b"one", *bad, b"two", b""]))
    assert 2 == done.returncode
    assert ["", one, *("" for _ in bad), two, end] == done.stdout.split("> ")
    errors = done.stderr.splitlines()[1:]
    assert len(bad) == len(errors)
    assert all(line.startswith("error: ") for line in errors), errors


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
@pytest.mark.parametrize("arguments", ["nonsense", "run", 'run "$1" "$2" --top-k x', "--nonsense"])
def test_wrong_arguments_on_standard_error_that_takes_nothing(
    arguments: str, redirection: str, shell: Shell
) -> None:
    """Wrong arguments have status 2 there too."""
    done = shell(arguments, redirection)
    assert (2, "", "") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        'run "" "$2"',
        'inspect ""',
        'pack ""',
        'init ""',
        'verify ""',
        'sign "$1" --key ""',
        'keygen ""',
        'grammar check ""',
        'run "$1" "$2" --base ""',
        'export --base "" --output x',
        'export --base . --output ""',
    ],
)
def test_empty_names(arguments: str, shell: Shell, tmp_path: Path) -> None:
    """A name that is empty, as that of a variable which is not set, is not the current folder."""
    if arguments.startswith("export"):
        requires_export()
    before = sorted(tmp_path.iterdir())
    done = shell(arguments, "")
    assert 2 == done.returncode
    assert "the name is empty: name a file or folder, the current one as '.'" in done.stderr
    assert before == sorted(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        "grammar check --kind gbnf /dev/zero",
        "grammar check a.gbnf --accepts /dev/zero",
        'run "$1" "$2" --schema @/dev/zero',
        'chat "$1" --tools @/dev/zero',
    ],
)
def test_texts_without_end(arguments: str, shell: Shell) -> None:
    """A text is read up to a limit."""
    done = shell(arguments, "")
    assert 2 == done.returncode
    assert "larger than 64 MiB" in done.stderr


def test_texts_from_pipes(shell: Shell) -> None:
    """A pipe from another program is read like a file."""
    done = shell("grammar check --kind gbnf /dev/stdin", "", b'root ::= "a"')
    assert (0, "") == (done.returncode, done.stderr)


def test_store_that_onnxruntime_cannot_name(shell: Shell) -> None:
    """A name that is not Unicode is refused by the name of its variable."""
    done = shell('--version; HIVELLM_HOME=$(printf "h\\xff") "$0" -m hivellm_ort cache list', "")
    assert (2, 1) == (done.returncode, done.stderr.count("\n"))
    assert "error: HIVELLM_HOME = 'h\\udcff' is not valid Unicode" in done.stderr
