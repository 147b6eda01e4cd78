"""`examples/desktop`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from example_packages import Examples

from hivellm_ort import Expert

pytest.importorskip("tkinter", reason="this Python has no tkinter")

MAX_TOKENS = 400


@pytest.fixture(scope="module")
def display() -> Iterator[dict[str, str]]:
    """What a process needs in its environment to open windows: on Linux a screen of their own where possible."""
    if sys.platform in ("win32", "darwin"):
        yield {}
        return
    xvfb = shutil.which("Xvfb")
    if xvfb is None:
        if "DISPLAY" not in os.environ:
            pytest.skip("needs a display, or Xvfb")
        yield {}
        return
    read, write = os.pipe()
    with subprocess.Popen(
        [xvfb, "-displayfd", str(write), "-screen", "0", "1024x768x24", "-nolisten", "tcp"],
        pass_fds=[write],
        stderr=subprocess.DEVNULL,
    ) as server:
        os.close(write)
        with open(read, encoding="ascii") as numbers:  # noqa: PTH123
            number = numbers.readline().strip()
        assert number, "Xvfb did not start"
        yield {"DISPLAY": f":{number}"}
        server.terminate()


def run(display: dict[str, str], *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run a script that opens windows."""
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, **display, "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        command, check=False, capture_output=True, encoding="utf-8", timeout=120, env=environment
    )


@pytest.fixture(scope="module")
def seen(
    display: dict[str, str], exported: Examples, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What `drive_desktop.py` saw of the window."""
    bad = tmp_path_factory.mktemp("desktop") / "bad.expert"
    bad.write_bytes(b"no package")
    driver = Path(__file__).with_name("drive_desktop.py")
    home = {"HIVELLM_HOME": str(exported.home)}
    done = run({**display, **home}, driver, exported.sql, exported.json, bad, MAX_TOKENS)
    assert 0 == done.returncode, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    assert [] == seen["errors"]
    return seen


def test_packages_are_loaded_and_shown(seen: dict[str, Any], exported: Examples) -> None:
    """Meanwhile nothing can be pressed and a bar moves; then there is a choice, and the provider is named."""
    assert ("", True) == (seen["buttons while loading"], seen["bar while loading"])
    names = [exported.sql.stem, exported.json.stem]
    assert (["whichever fits the question", *names], names[1]) == (seen["choice"], seen["chosen"])
    assert "CPUExecutionProvider" == seen["provider"]


def test_the_answer_is_that_of_the_expert(seen: dict[str, Any], examples: Examples) -> None:
    """Return asks, and the pane shows the very text that `Expert.generate` returns, with the speed below."""
    with Expert.load(examples.sql, trust="off", threads=1) as expert:
        expected = expert.generate(
            "Count all orders",
            schema="CREATE TABLE orders (id INT, total NUMERIC);",
            temperature=0,
            max_tokens=MAX_TOKENS,
        )
    assert ["expert-sql", "length", expected.text] == seen["answers"][0]
    told = f"expert-sql: {MAX_TOKENS} tokens (length), the first after "
    assert seen["shown"].startswith(f"Count all orders\n{expected.text}\n{told}")
    assert seen["speed"].endswith(" tokens/s")


def test_the_window_lives_while_it_answers(seen: dict[str, Any]) -> None:
    """Tk's loop goes round, the answer can be stopped, and nothing else can be begun."""
    assert seen["ticks while answering"] >= 3
    assert ("stop", "open ask") == (seen["buttons while answering"], seen["buttons after it"])


def test_stop_ends_the_answer(seen: dict[str, Any]) -> None:
    """A routed question goes to the expert that fits, and what was written of its answer stays."""
    expert, reason, text = seen["answers"][1]
    assert ("expert-json", "cancelled", "Stopped") == (expert, reason, seen["state after stop"])
    assert text


def test_errors_are_in_the_window(seen: dict[str, Any]) -> None:
    """Type and message of an error are shown until something else is asked."""
    assert seen["error"].startswith("IntegrityError: ")
    assert "bad.expert" in seen["error"]
    assert not seen["bar after an error"]
    assert seen["second error"].startswith("UnknownExpertError: no expert fits the prompt")
    assert "" == seen["error while asking again"]


def test_closing_stops_and_frees(seen: dict[str, Any]) -> None:
    """Closed in the middle of an answer, it leaves no thread and no base behind, and the answer is not waited for."""
    assert "" == seen["buttons while closing"]
    assert (["MainThread"], 0, True) == (seen["threads"], seen["bases"], seen["destroyed"])


def app(display: dict[str, str], examples: Examples, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run the program."""
    return run(
        display, examples.folder / "desktop" / "app.py", "--threads", 1, "--max-tokens", 20, *arguments
    )


def test_one_question(display: dict[str, str], examples: Examples, tmp_path: Path) -> None:
    """`--ask` opens the window, writes the answer to a file, and leaves."""
    output = tmp_path / "answer.txt"
    done = app(display, examples, examples.sql, "--temperature", 0, "--ask", "sql", "--output", output)
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
    with Expert.load(examples.sql, trust="off", threads=1) as expert:
        expected = expert.generate("sql", temperature=0, max_tokens=20)
    assert expected.text.encode() == output.read_bytes()


def test_one_question_to_a_package_that_is_not_there(display: dict[str, str], examples: Examples) -> None:
    """The status is 1, and the error names the file."""
    done = app(display, examples, examples.sql, "missing.expert", "--ask", "sql")
    assert (1, "") == (done.returncode, done.stdout)
    assert "missing.expert" in done.stderr


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there is always a display")
def test_without_a_display(examples: Examples) -> None:
    """It says so in a line, and does not hang."""
    done = app({"DISPLAY": ""}, examples, examples.sql)
    assert (1, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith("Error: there is no display: ")
