"""Calls of tools, and thinking before an answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from api_calls import QUESTION, chat, chunks, error_of
from fastapi.testclient import TestClient

from hivellm_ort import ExpertManager
from hivellm_ort.server import ServerLimits, ServerOptions, create_app
from hivellm_ort.server.schemas.chat import Message

SCHEMA = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["x"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "root", "description": "Root", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "halt"}},
]
NAMED = {"type": "function", "function": {"name": "root"}}
CALL = '<tool_call>\n{"name": "root", "arguments": {"x": 4}}\n</tool_call>'
PATH = "/v1/chat/completions"


def joined(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that the chunks of one answer make, as clients put it together."""
    message: dict[str, Any] = {}
    for chunk in found:
        for key, value in chunk["choices"][0]["delta"].items():
            if key != "tool_calls":
                message[key] = message.get(key, "") + value
                continue
            calls = message.setdefault("tool_calls", [])
            for call in value:
                if call["index"] == len(calls):
                    calls.append(
                        {key: call[key] for key in ("id", "type")} | {"function": dict(call["function"])}
                    )
                else:
                    calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return message


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_that_is_required(choice: Any, tooled: TestClient) -> None:
    """The answer is a call whose arguments match the schema, in a document and in a stream."""
    body = chat(tools=TOOLS[:1], tool_choice=choice, parallel_tool_calls=False, max_tokens=100)
    answer = tooled.post(PATH, json=body).json()["choices"][0]
    (call,) = answer["message"]["tool_calls"]
    assert ("tool_calls", None, "function", "root") == (
        answer["finish_reason"],
        answer["message"]["content"],
        call["type"],
        call["function"]["name"],
    )
    jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)
    found = chunks(tooled.post(PATH, json={**body, "stream": True}).text)
    message = joined(found)
    assert call["function"] == message["tool_calls"][0]["function"]
    assert message["tool_calls"][0]["id"].startswith("call_")
    assert "content" not in message
    assert "tool_calls" == found[-1]["choices"][0]["finish_reason"]


def test_text_and_calls(tooled: TestClient, say: Callable[[str], None]) -> None:
    """With `auto` there may be text before a call. Both are separated, in a document and in a stream."""
    say(f"Well.\n{CALL}")
    answer = tooled.post(PATH, json=chat(tools=TOOLS, n=2)).json()
    for choice in answer["choices"]:
        (call,) = choice["message"]["tool_calls"]
        assert ("Well.", "tool_calls", {"name": "root", "arguments": '{"x": 4}'}) == (
            choice["message"]["content"],
            choice["finish_reason"],
            call["function"],
        )
    assert 2 == len({choice["message"]["tool_calls"][0]["id"] for choice in answer["choices"]})
    message = joined(chunks(tooled.post(PATH, json=chat(tools=TOOLS, stream=True)).text))
    assert ("assistant", "Well.", {"name": "root", "arguments": '{"x": 4}'}) == (
        message["role"],
        message["content"],
        message["tool_calls"][0]["function"],
    )


def test_a_text_of_no_call(tooled: TestClient, say: Callable[[str], None]) -> None:
    """An answer without a call is text alone; with `none` a call is text too."""
    say("Well. <b>")
    for stream in (False, True):
        response = tooled.post(PATH, json=chat(tools=TOOLS, stream=stream))
        message = joined(chunks(response.text)) if stream else response.json()["choices"][0]["message"]
        assert ("Well. <b>", None) == (message["content"], message.get("tool_calls"))
    say(CALL)
    answer = tooled.post(PATH, json=chat(tools=TOOLS, tool_choice="none")).json()["choices"][0]
    assert (CALL, "stop") == (answer["message"]["content"], answer["finish_reason"])


def test_a_call_that_is_cut_off(tooled: TestClient, say: Callable[[str], None]) -> None:
    """The finish reason is `length`, because the arguments are incomplete."""
    say(CALL)
    answer = tooled.post(PATH, json=chat(tools=TOOLS, max_tokens=40)).json()["choices"][0]
    assert "length" == answer["finish_reason"]
    assert "root" == answer["message"]["tool_calls"][0]["function"]["name"]


def test_results_of_calls_go_back(
    tooled: TestClient, caller: ExpertManager, say: Callable[[str], None]
) -> None:
    """The message of an answer and the result of its call are the next turns."""
    say(CALL)
    answer = tooled.post(PATH, json=chat(tools=TOOLS)).json()["choices"][0]["message"]
    turns = [
        {"role": "user", "content": QUESTION},
        answer,
        {"role": "tool", "tool_call_id": answer["tool_calls"][0]["id"], "content": "2"},
    ]
    say("Two.")
    response = tooled.post(PATH, json=chat(tools=TOOLS, messages=turns))
    plain = [turns[0], {key: answer[key] for key in ("role", "content", "tool_calls")}, turns[2]]
    assert (
        len(caller.prompt_ids("sql", messages=plain, tools=TOOLS))
        == response.json()["usage"]["prompt_tokens"]
    )
    assert "Two." == response.json()["choices"][0]["message"]["content"]


def test_what_clients_add_to_calls_stays_outside(tooled: TestClient) -> None:
    """Fields that a client parsed stay out of the prompt. Other fields of a call are refused by name."""
    call = {"id": "a", "type": "function", "function": {"name": "root", "arguments": {"x": None}}}
    added = {"parsed": {"x": 4}, "tool_calls": [{**call, "index": 0}]}
    added["tool_calls"][0]["function"] = {**call["function"], "parsed_arguments": {"x": 4}}  # type: ignore
    message = Message.model_validate({"role": "assistant", **added})
    assert {"role": "assistant", "tool_calls": [call]} == message.model_dump(exclude_none=True)
    for wrong, param in (
        ({**call, "extra": 1}, "extra"),
        ({"name": "root", "arguments": "{}"}, "function"),
        ({**call, "function": {**call["function"], "extra": 1}}, "function.extra"),
        ({**call, "type": "custom"}, "type"),
    ):
        turn = {"role": "assistant", "tool_calls": [wrong]}
        error = error_of(tooled.post(PATH, json=chat(messages=[turn])))
        assert f"messages[0].tool_calls[0].{param}" == error["param"]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"tool_choice": "sometimes", "tools": TOOLS}, "tool_choice", "it must be 'none'"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "x"}}, "tools": TOOLS},
            "tool_choice",
            "none of the tools",
        ),
        ({"tools": [{"type": "function"}]}, "tools", "name"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools", "two tools named 'root'"),
        ({"tools": "root"}, "tools", "valid list"),
        ({"tools": [TOOLS[1]] * 3}, "tools", "3 tools; at most 2 are allowed"),
        ({"tools": TOOLS, "parallel_tool_calls": "no"}, "parallel_tool_calls", "valid boolean"),
    ],
)
def test_wrong_tools(fields: dict[str, Any], param: str, message: str, caller: ExpertManager) -> None:
    """The error names the field."""
    options = ServerOptions(limits=ServerLimits(max_tools=2))
    with TestClient(create_app(caller, options), base_url="http://localhost") as client:
        response = client.post(PATH, json=chat(**fields))
    assert (400, param) == (response.status_code, error_of(response)["param"])
    assert message in error_of(response)["message"]


@pytest.mark.parametrize("choice", ["required", "auto", {"type": "function", "function": {"name": "root"}}])
def test_a_template_that_shows_no_tools(choice: Any, client: TestClient) -> None:
    """Every choice gets the same error. Its advice is true: the request is answered without tools."""
    response = client.post(PATH, json=chat(tools=TOOLS, tool_choice=choice, max_tokens=2))
    error = error_of(response)
    assert (400, "cannot_answer") == (response.status_code, error["code"])
    assert "does not show the tools to the model: leave out tools" in error["message"]
    assert 200 == client.post(PATH, json=chat(max_tokens=2)).status_code


@pytest.mark.parametrize(
    "fields", [{"chat_template_kwargs": {"enable_thinking": True}}, {"reasoning_effort": "low"}]
)
def test_thinking(fields: dict[str, Any], tooled: TestClient, say: Callable[[str], None]) -> None:
    """The reasoning is a separate field, in a document and in a stream."""
    say("<think>\nHm.\n</think>\n\nTwo.")
    message = tooled.post(PATH, json=chat(**fields)).json()["choices"][0]["message"]
    assert ("Hm.", "Two.") == (message["reasoning_content"], message["content"])
    found = chunks(tooled.post(PATH, json=chat(**fields, stream=True)).text)
    assert ("Hm.", "Two.") == (joined(found)["reasoning_content"], joined(found)["content"])


def test_no_thinking(tooled: TestClient, caller: ExpertManager) -> None:
    """Without the option the model does not think, and the prompt switches thinking off."""
    expected = caller.prompt_ids("sql", QUESTION)
    for fields in ({}, {"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}):
        answer = tooled.post(PATH, json=chat(max_tokens=2, **fields)).json()
        assert len(expected) == answer["usage"]["prompt_tokens"]
        assert "reasoning_content" not in answer["choices"][0]["message"]
