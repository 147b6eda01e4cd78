"""Other clients of OpenAI's API against a real process; each is skipped where it is not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from api_calls import QUESTION
from pydantic import BaseModel
from serving_command import Command

from hivellm_ort import ExpertManager

CLIENTS = Path(__file__).parents[2] / "examples" / "clients"
SHOWN = "Describe a kettle in JSON"


class Answer(BaseModel):
    """What an answer holds."""

    ok: bool


def output_of(*command: str | Path) -> list[str]:
    """The lines that a script writes; it ends well."""
    done = subprocess.run(list(map(str, command)), capture_output=True, timeout=120, encoding="utf-8")
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout.split("\n")


def check_example(lines: list[str], manager: ExpertManager, parsed: str) -> None:
    """An example writes the answer, the same as it came in a stream, and an object."""
    text = manager.generate("json", SHOWN, max_tokens=40).text
    told = "\n".join(lines)
    assert told.startswith(f"{text}\n{text}\n")
    assert f"\n{parsed.format('true')}\n" in told.lower() or f"\n{parsed.format('false')}\n" in told.lower()


def test_example_of_openai(command: Command, manager: ExpertManager) -> None:
    """OpenAI's client for Python."""
    pytest.importorskip("openai", reason="needs openai")
    lines = output_of(sys.executable, CLIENTS / "with_openai.py", f"{command.address}/v1", "json")
    check_example(lines, manager, "product(available={})")


def node_modules() -> Path | None:
    """Where npm put the package `openai`: a folder of NODE_PATH, or the global one."""
    folders = os.environ.get("NODE_PATH", "").split(os.pathsep)
    if npm := shutil.which("npm"):
        found = subprocess.run([npm, "root", "-g"], capture_output=True, timeout=60, encoding="utf-8")
        folders.append(found.stdout.strip())
    return next((Path(folder) for folder in folders if folder and (Path(folder) / "openai").is_dir()), None)


def test_example_of_javascript(command: Command, manager: ExpertManager, tmp_path: Path) -> None:
    """OpenAI's client for JavaScript."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    packages = node_modules()
    if packages is None:
        pytest.skip("needs npm's openai, in a folder of NODE_PATH or global")
    # Modules are looked for beside the script alone.
    script = shutil.copy(CLIENTS / "with_openai.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(packages, target_is_directory=True)
    check_example(output_of(node, script, f"{command.address}/v1", "json"), manager, "{{ available: {} }}")


def test_example_of_langchain(command: Command, manager: ExpertManager) -> None:
    """LangChain."""
    pytest.importorskip("langchain_openai", reason="needs langchain-openai")
    lines = output_of(sys.executable, CLIENTS / "with_langchain.py", f"{command.address}/v1", "json")
    check_example(lines, manager, "product(available={})")


@pytest.fixture
def langchain(command: Command, tool_command: Command) -> Callable[..., Any]:
    """Makes models of LangChain, with tools or without."""
    library = pytest.importorskip("langchain_openai", reason="needs langchain-openai")

    def make(*, tools: bool = False, **options: Any) -> Any:
        address = (tool_command if tools else command).address
        return library.ChatOpenAI(
            **{"model": "sql", "max_tokens": 100, "max_retries": 0, **options},
            base_url=f"{address}/v1",
            api_key="none",
        )

    return make


def test_langchain_answers(langchain: Callable[..., Any], manager: ExpertManager) -> None:
    """One question, several, and a stream whose last piece has the counts."""
    expected = manager.generate("sql", QUESTION, max_tokens=9)
    assert expected.text == langchain(max_tokens=9).invoke(QUESTION).content
    assert [expected.text] * 3 == [
        one.content for one in langchain(max_tokens=9).batch([QUESTION, QUESTION, QUESTION])
    ]
    pieces = list(langchain(max_tokens=9, stream_usage=True).stream(QUESTION))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert (expected.text, expected.prompt_tokens, expected.completion_tokens) == (
        whole.content,
        whole.usage_metadata["input_tokens"],
        whole.usage_metadata["output_tokens"],
    )


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_objects(method: str, langchain: Callable[..., Any]) -> None:
    """A class is a strict schema of the answer, or of a function that has to be called."""
    model = langchain(tools=method == "function_calling")
    asked = model.with_structured_output(Answer, method=method, strict=True, include_raw=True)
    answer = asked.invoke(QUESTION)
    assert isinstance(answer["parsed"], Answer)
    assert isinstance(
        model.invoke([("user", QUESTION), answer["raw"], *_results(answer["raw"])]).content, str
    )


def test_langchain_json(langchain: Callable[..., Any]) -> None:
    """`json_mode` gives an object of any kind."""
    answer = langchain().with_structured_output(None, method="json_mode", include_raw=True).invoke(QUESTION)
    assert answer["raw"].content.startswith("{")


def test_langchain_tools(langchain: Callable[..., Any]) -> None:
    """A call has its arguments, at once and in a stream, and goes back with its result."""
    from langchain_core.tools import tool

    @tool
    def root(positive: bool) -> str:
        """The root of a number."""
        return "2" if positive else "-2"

    model = langchain(tools=True).bind_tools(
        [root], tool_choice="root", strict=True, parallel_tool_calls=False
    )
    answer = model.invoke(QUESTION)
    whole: Any = None
    for piece in model.stream(QUESTION):
        whole = piece if whole is None else whole + piece
    (call,), (streamed,) = answer.tool_calls, whole.tool_calls
    assert ("root", call["args"]) == (streamed["name"], streamed["args"])
    assert {"positive"} == set(call["args"])
    turns = [("user", QUESTION), answer, root.invoke(call)]
    later = langchain(tools=True, max_tokens=6).bind_tools([root], tool_choice="none").invoke(turns)
    assert isinstance(later.content, str)


def test_langchain_errors(langchain: Callable[..., Any]) -> None:
    """They are those of OpenAI's client."""
    openai = pytest.importorskip("openai", reason="needs openai")
    with pytest.raises(openai.NotFoundError, match="no expert is loaded as 'xml'"):
        langchain(model="xml").invoke(QUESTION)
    with pytest.raises(openai.BadRequestError, match="top_p is 2"):
        langchain(top_p=2).invoke(QUESTION)


def _results(message: Any) -> list[tuple[str, str] | dict[str, str]]:
    """What follows an answer: results of its calls, or another question."""
    calls = [{"role": "tool", "tool_call_id": call["id"], "content": "2"} for call in message.tool_calls]
    return [*calls] or [("user", QUESTION)]
