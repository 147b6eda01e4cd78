"""`examples/chat_cli.py`."""

from __future__ import annotations

import subprocess
import sys

import chat_cli
from click.testing import CliRunner, Result
from example_packages import Examples

from hivellm_ort import Expert


def talked(examples: Examples, *lines: str, max_tokens: int = 12) -> Result:
    """Run the script with these lines of input."""
    arguments = [*examples.options, "--max-tokens", str(max_tokens)]
    return CliRunner().invoke(chat_cli.main, arguments, input="".join(f"{line}\n" for line in lines))


def test_history_is_kept_across_experts(examples: Examples) -> None:
    """Each answer is the one to the whole conversation, whoever gave the earlier ones."""
    result = talked(examples, "/expert sql", "first", "/expert json", "second")
    assert 0 == result.exit_code, result.output
    turns: list[dict[str, str]] = []
    expected = []
    for package, question in ((examples.sql, "first"), (examples.json, "second")):
        with Expert.load(package, trust="off") as expert:
            text = expert.generate(question, messages=turns, max_tokens=12).text
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
        expected.append(text)
    assert f"> > {expected[0]}\n> > {expected[1]}\n> ".encode() == result.stdout_bytes


def test_routing_says_who_and_why(examples: Examples) -> None:
    """A routed question shows its expert and the reasons; one that fits nobody stays where the talk is."""
    result = talked(
        examples, "hello", "Fix this invalid JSON", "and now", "/expert sql", "json", "/auto", "json"
    )
    told = result.stderr.splitlines()[1:]
    assert "no expert fits the question: name one with /expert NAME" == told[0]
    assert told[1].startswith('[json: keyword "invalid json" +')
    assert "[json: as before, no expert fits better]" == told[2]
    assert "every question goes to sql" == told[3]
    assert "each question goes to the expert that fits it" == told[4]
    assert told[5].startswith('[json: keyword "json" +')
    assert 6 == len(told)


def test_stats_count_the_requests(examples: Examples) -> None:
    """`/stats` shows each expert with its requests, the memory, and the speed once there is one."""
    before, after = (talked(examples, *lines, "/stats").stderr for lines in ((), ("count all orders", "sql")))
    assert "0 requests" in before
    assert "tokens/s" not in before
    assert "sql              lora rank 4 on tiny" in after
    assert "2 requests" in after
    assert "MB in all, 1 base\n" in after
    assert "tokens/s (medians)" in after


def test_new_forgets_the_conversation(examples: Examples) -> None:
    """After `/new` the same question has the same answer again."""
    result = talked(examples, "sql", "/new", "sql")
    answers = [line for line in result.stdout.split("> ") if line.strip()]
    assert answers[0] == answers[1]


def test_mistakes_do_not_end_the_program(examples: Examples) -> None:
    """An unknown name, an unknown command and a question that is too long are told, and the talk goes on."""
    result = talked(examples, "/expert xml", "/what", "sql " * 2000, "sql", "/quit", "sql")
    assert 0 == result.exit_code, result.output
    assert "no expert 'xml'; there are sql, json" in result.stderr
    assert "/expert NAME" in result.stderr
    assert "error: a prompt of " in result.stderr
    assert 2 == result.stderr.count('[sql: keyword "sql"')


def test_a_package_that_is_not_there(examples: Examples) -> None:
    """It is an error that names the file."""
    result = CliRunner().invoke(chat_cli.main, ["--expert", "sql=missing.expert"])
    assert 1 == result.exit_code
    assert "missing.expert" in result.stderr


# Ctrl-C at the third piece of an answer: a signal from outside may come when the answer has ended. Its passes take
# longer than they need, or all of it would be made before a busy machine prints three pieces. Where tests run in the
# background the signal may be ignored, which children inherit.
_INTERRUPTED = """
import os, runpy, signal, sys, time, click
from hivellm_ort.engine.decoder import Decoder
signal.signal(signal.SIGINT, signal.default_int_handler)
append = Decoder.append
def slow(*arguments, **options):
    time.sleep(0.05)
    return append(*arguments, **options)
Decoder.append = slow
pieces, echo = [], click.echo
def interrupted(message=None, **options):
    echo(message, **options)
    if options.get("nl") is False:
        pieces.append(message)
        if len(pieces) == 3:
            signal.raise_signal(signal.SIGINT)
click.echo = interrupted
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_ctrl_c_stops_the_answer_and_not_the_program(examples: Examples) -> None:
    """After SIGINT the answer ends, and the program goes on."""
    long = ["--max-tokens", "400", "--temperature", "0"]
    result = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, examples.folder / "chat_cli.py", *examples.options, *long],
        input=b"sql\n/stats\n",
        capture_output=True,
        timeout=60,
    )
    assert 0 == result.returncode, result.stderr
    assert result.stdout.startswith(b"> ")
    assert b"(stopped)\n" in result.stderr
    assert b"1 requests" in result.stderr
