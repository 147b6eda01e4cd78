"""`/v1/responses`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from api_calls import QUESTION, error_of, events_of
from fastapi.testclient import TestClient

from hivellm_ort import ExpertManager, InferenceError
from hivellm_ort.server import ServerLimits, ServerOptions, create_app
from hivellm_ort.server.response_input import messages_from_items
from hivellm_ort.server.schemas.responses import ResponsesBody
from hivellm_ort.serving.stream import AsyncTextStream

PATH = "/v1/responses"
SCHEMA = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["x"],
    "additionalProperties": False,
}
ROOT = {"type": "function", "name": "root", "description": "Root", "parameters": SCHEMA, "strict": True}
CALL = '<tool_call>\n{"name": "root", "arguments": {"x": 4}}\n</tool_call>'
LOGPROBS = ["message.output_text.logprobs"]


def asked(given: Any = QUESTION, **fields: Any) -> dict[str, Any]:
    """The body of a request."""
    return {"model": "sql", "input": given, **fields}


def known(response: dict[str, Any]) -> dict[str, Any]:
    """A response without what differs from one to the next: ids, times and what was cached."""
    output = [
        {key: value for key, value in item.items() if key not in ("id", "call_id")}
        for item in response["output"]
    ]
    plain = {key: value for key, value in response.items() if key not in ("id", "created_at", "completed_at")}
    usage = {key: value for key, value in response["usage"].items() if key != "input_tokens_details"}
    return {**plain, "output": output, "usage": usage}


def text_of(response: dict[str, Any]) -> str:
    """The text of the only message."""
    (message,) = (item for item in response["output"] if item["type"] == "message")
    (part,) = message["content"]
    text: str = part["text"]
    return text


def test_an_answer_is_the_managers(client: TestClient, manager: ExpertManager) -> None:
    """Text, end and counts are those of the manager with the same options."""
    options: dict[str, Any] = {
        "temperature": 0.9, "top_p": 0.9, "seed": 7, "top_k": 40, "presence_penalty": 0.5, "frequency_penalty": 0.25,
    }  # fmt: skip
    response = client.post(PATH, json=asked(max_output_tokens=12, metadata={"a": "b"}, user="me", **options))
    expected = manager.generate("sql", QUESTION, max_tokens=12, **options)
    answer = response.json()
    assert (200, "sql") == (response.status_code, response.headers["x-hivellm-expert"])
    assert ("response", "sql", "incomplete", {"reason": "max_output_tokens"}, None) == (
        answer["object"],
        answer["model"],
        answer["status"],
        answer["incomplete_details"],
        answer["error"],
    )
    (message,) = answer["output"]
    assert ("message", "assistant", "incomplete") == (message["type"], message["role"], message["status"])
    assert [{"type": "output_text", "text": expected.text, "annotations": [], "logprobs": []}] == message[
        "content"
    ]
    usage = answer["usage"]
    assert (expected.prompt_tokens, 12, expected.prompt_tokens + 12, {"reasoning_tokens": 0}) == (
        usage["input_tokens"],
        usage["output_tokens"],
        usage["total_tokens"],
        usage["output_tokens_details"],
    )
    assert 0 <= usage["input_tokens_details"]["cached_tokens"] < expected.prompt_tokens
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty"):
        assert options[name] == answer[name]
    assert ({"a": "b"}, "me", 12, False) == (
        answer["metadata"],
        answer["user"],
        answer["max_output_tokens"],
        answer["store"],
    )


def test_an_answer_that_ends(client: TestClient, manager: ExpertManager) -> None:
    """An answer that is whole is completed."""
    answer = client.post(PATH, json=asked(regex="ab+c", max_output_tokens=40, seed=1, temperature=1)).json()
    expected = manager.generate("sql", QUESTION, regex="ab+c", max_tokens=40, seed=1, temperature=1)
    assert ("completed", None, expected.text) == (
        answer["status"],
        answer["incomplete_details"],
        text_of(answer),
    )
    assert "completed" == answer["output"][0]["status"]
    assert answer["created_at"] <= answer["completed_at"]


def test_a_stream_is_the_answer(client: TestClient) -> None:
    """The events come in OpenAI's order, and make the response that comes at once."""
    body = asked(max_output_tokens=8, temperature=1, seed=3, include=LOGPROBS, top_logprobs=2)
    expected = client.post(PATH, json=body).json()
    response = client.post(
        PATH, json={**body, "stream": True, "stream_options": {"include_obfuscation": False}}
    )
    assert "text/event-stream; charset=utf-8" == response.headers["content-type"]
    found = events_of(response.text)
    kinds = [event["type"] for event in found]
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    assert [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ] == kinds  # fmt: skip
    final = found[-1]["response"]
    assert known(expected) == known(final)
    assert 1 == len({event["response"]["id"] for event in found if "response" in event})
    assert {final["output"][0]["id"]} == {event["item_id"] for event in found if "item_id" in event}
    assert final["output"][0] == found[-2]["item"]
    assert text_of(final) == "".join(event["delta"] for event in deltas) == found[-4]["text"]
    told = final["output"][0]["content"][0]["logprobs"]
    assert told == [entry for event in deltas for entry in event["logprobs"]] == found[-4]["logprobs"]
    assert ("in_progress", [], None) == tuple(
        found[0]["response"][key] for key in ("status", "output", "usage")
    )
    assert {"in_progress"} == {found[0]["response"]["status"], found[2]["item"]["status"]}


def test_log_probabilities(client: TestClient, manager: ExpertManager) -> None:
    """They are the manager's, where `include` asks for them."""
    body = asked(max_output_tokens=5, include=LOGPROBS, top_logprobs=3)
    answer = client.post(PATH, json=body).json()
    expected = manager.generate("sql", QUESTION, max_tokens=5, logprobs=3).logprobs
    told = answer["output"][0]["content"][0]["logprobs"]
    assert [one.logprob for one in expected or ()] == pytest.approx(
        [entry["logprob"] for entry in told], abs=1e-5
    )
    assert [3] * 5 == [len(entry["top_logprobs"]) for entry in told]
    assert (text_of(answer), 3) == ("".join(entry["token"] for entry in told), answer["top_logprobs"])


def test_instructions_and_turns(client: TestClient, manager: ExpertManager) -> None:
    """Items are the turns of a chat: the prompt has the same tokens."""
    items = [
        {"role": "user", "content": "a"},
        {
            "type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": "b", "annotations": [], "logprobs": []}],
        },
        {"role": "user", "content": [{"type": "input_text", "text": "c"}, {"type": "input_text", "text": "d"}]},
    ]  # fmt: skip
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
    ]
    answer = client.post(PATH, json=asked(items, instructions="Be brief.", max_output_tokens=6)).json()
    expected = manager.generate("sql", messages=turns, max_tokens=6)
    assert (expected.prompt_tokens, expected.text) == (answer["usage"]["input_tokens"], text_of(answer))
    assert "Be brief." == answer["instructions"]


def test_a_schema_for_the_system_message(client: TestClient, manager: ExpertManager) -> None:
    """What the answer is about goes where the expert was trained to find it."""
    answer = client.post(PATH, json=asked(schema="CREATE TABLE a (b INT);", max_output_tokens=6)).json()
    expected = manager.generate("sql", QUESTION, schema="CREATE TABLE a (b INT);", max_tokens=6)
    assert (expected.prompt_tokens, expected.text) == (answer["usage"]["input_tokens"], text_of(answer))


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}, SCHEMA),
        ({"type": "json_object"}, {"type": "object"}),
    ],
)
def test_formats(
    form: dict[str, Any], schema: dict[str, Any], client: TestClient, manager: ExpertManager
) -> None:
    """JSON is enforced as the manager does it."""
    answer = client.post(PATH, json=asked(text={"format": form}, max_output_tokens=60)).json()
    expected = manager.generate("sql", QUESTION, json_schema=schema, max_tokens=60)
    assert expected.text == text_of(answer)
    assert form == answer["text"]["format"]


def test_what_a_schema_cannot_enforce(client: TestClient) -> None:
    """It is refused. With `strict: false` it is a warning."""
    form = {"type": "json_schema", "name": "x", "schema": {"type": "array", "uniqueItems": True}}
    error = error_of(client.post(PATH, json=asked(text={"format": form})))
    assert ("invalid_grammar", True) == (error["code"], "uniqueItems" in error["message"])
    answer = client.post(
        PATH, json=asked(text={"format": {**form, "strict": False}}, max_output_tokens=30)
    ).json()
    assert "uniqueItems" in answer["warnings"][0]


def test_routing(client: TestClient) -> None:
    """`auto` chooses by the input."""
    response = client.post(PATH, json={"model": "auto", "input": "hello", "max_output_tokens": 2})
    assert (200, response.headers["x-hivellm-expert"]) == (response.status_code, response.json()["model"])
    assert "x-hivellm-routing" in response.headers


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "root"}])
def test_a_call_that_is_required(choice: Any, tooled: TestClient) -> None:
    """The answer is a call whose arguments fit the schema, at once and in events."""
    body = asked(tools=[ROOT], tool_choice=choice, parallel_tool_calls=False, max_output_tokens=100)
    answer = tooled.post(PATH, json=body).json()
    (call,) = answer["output"]
    assert ("function_call", "root", "completed", "completed") == (
        call["type"],
        call["name"],
        call["status"],
        answer["status"],
    )
    jsonschema.validate(json.loads(call["arguments"]), SCHEMA)
    assert ([ROOT], choice, False) == (answer["tools"], answer["tool_choice"], answer["parallel_tool_calls"])
    found = events_of(tooled.post(PATH, json={**body, "stream": True}).text)
    final = found[-1]["response"]
    assert known(answer) == known(final)
    deltas = [event["delta"] for event in found if event["type"] == "response.function_call_arguments.delta"]
    assert [
        "response.created", "response.in_progress", "response.output_item.added",
        *["response.function_call_arguments.delta"] * len(deltas),
        "response.function_call_arguments.done", "response.output_item.done", "response.completed",
    ] == [event["type"] for event in found]  # fmt: skip
    assert final["output"][0]["arguments"] == "".join(deltas) == found[-3]["arguments"]
    assert (final["output"][0]["call_id"], "") == (found[2]["item"]["call_id"], found[2]["item"]["arguments"])


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_text_and_calls(stream: bool, tooled: TestClient, say: Callable[[str], None]) -> None:
    """Each is an item of its own, in the order in which they were written."""
    say(f"<think>\nHm.\n</think>\n\nWell.\n{CALL}\n{CALL}")
    body = asked(
        tools=[ROOT], reasoning={"effort": "low"}, include=LOGPROBS, max_output_tokens=160, stream=stream
    )
    response = tooled.post(PATH, json=body)
    answer = events_of(response.text)[-1]["response"] if stream else response.json()
    thoughts, message, first, second = answer["output"]
    assert [{"type": "reasoning_text", "text": "Hm."}] == thoughts["content"]
    assert ("reasoning", []) == (thoughts["type"], thoughts["summary"])
    assert "Well." == text_of(answer)
    assert "Well." == "".join(entry["token"] for entry in message["content"][0]["logprobs"]).strip()
    assert [("function_call", '{"x": 4}')] * 2 == [(one["type"], one["arguments"]) for one in (first, second)]
    assert 4 == len({item["id"] for item in answer["output"]})
    assert first["call_id"] != second["call_id"]
    assert ("completed", "low") == (answer["status"], answer["reasoning"]["effort"])
    # The think block is its two tags, two line breaks and "Hm." in bytes.
    assert {"reasoning_tokens": 7} == answer["usage"]["output_tokens_details"]


def test_a_call_that_is_cut_off(tooled: TestClient, say: Callable[[str], None]) -> None:
    """Call and response say that they are incomplete."""
    say(CALL)
    answer = tooled.post(PATH, json=asked(tools=[ROOT], max_output_tokens=36)).json()
    assert ("incomplete", "incomplete", "root") == (
        answer["status"],
        answer["output"][0]["status"],
        answer["output"][0]["name"],
    )


def test_no_thinking(tooled: TestClient, caller: ExpertManager) -> None:
    """Without the option the model does not think, and the prompt switches thinking off."""
    expected = len(caller.prompt_ids("sql", QUESTION))
    for fields in ({}, {"reasoning": {"effort": "none"}}, {"reasoning": {}}):
        answer = tooled.post(PATH, json=asked(max_output_tokens=2, **fields)).json()
        assert expected == answer["usage"]["input_tokens"]
        assert ["message"] == [item["type"] for item in answer["output"]]


def test_output_goes_back(tooled: TestClient, caller: ExpertManager, say: Callable[[str], None]) -> None:
    """The items of an answer and the results of its calls are the next input, and one turn of a chat."""
    say(f"<think>\nHm.\n</think>\n\nWell.\n{CALL}\n{CALL}")
    body = asked(tools=[ROOT], reasoning={"effort": "low"}, max_output_tokens=160)
    output = tooled.post(PATH, json=body).json()["output"]
    items = [{"role": "user", "content": QUESTION}, *output]
    items += [
        {"type": "function_call_output", "call_id": call["call_id"], "output": "2"}
        for call in output
        if call["type"] == "function_call"
    ]
    say("Two.")
    answer = tooled.post(PATH, json=asked(items, tools=[ROOT])).json()
    function = {"name": "root", "arguments": '{"x": 4}'}
    calls = [{"id": item["call_id"], "type": "function", "function": function} for item in output[2:]]
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "Well.", "reasoning_content": "Hm.", "tool_calls": calls},
        *({"role": "tool", "tool_call_id": call["id"], "content": "2"} for call in calls),
    ]
    tool = {"type": "function", "function": {key: value for key, value in ROOT.items() if key != "type"}}
    expected = caller.prompt_ids("sql", messages=turns, tools=[tool])
    assert (len(expected), "Two.") == (answer["usage"]["input_tokens"], text_of(answer))


def _thought(text: str) -> dict[str, Any]:
    return {"type": "reasoning", "content": [{"type": "reasoning_text", "text": text}]}


def _call(call_id: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}"}


def _output(call_id: str) -> dict[str, Any]:
    return {
        "type": "function_call_output",
        "call_id": call_id,
        "output": [{"type": "input_text", "text": "2"}],
    }


def _calls(*ids: str) -> list[dict[str, Any]]:
    return [{"id": one, "type": "function", "function": {"name": "f", "arguments": "{}"}} for one in ids]


TOLD = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("items", "turns"),
    [
        ([TOLD, _call("1")], [{**TOLD, "tool_calls": _calls("1")}]),
        ([TOLD, TOLD], [TOLD, TOLD]),
        ([_call("1"), TOLD], [{"role": "assistant", "content": None, "tool_calls": _calls("1")}, TOLD]),
        (
            [_call("1"), _output("1"), _call("2"), _output("2")],
            [
                {"role": "assistant", "content": None, "tool_calls": _calls("1")},
                {"role": "tool", "tool_call_id": "1", "content": "2"},
                {"role": "assistant", "content": None, "tool_calls": _calls("2")},
                {"role": "tool", "tool_call_id": "2", "content": "2"},
            ],
        ),
        ([_thought("x"), _thought("y"), TOLD], [{**TOLD, "reasoning_content": "x\ny"}]),
        ([TOLD, _thought("x"), TOLD], [TOLD, {**TOLD, "reasoning_content": "x"}]),
        ([_thought("x")], [{"role": "assistant", "content": "", "reasoning_content": "x"}]),
        ([{"type": "reasoning", "summary": []}, TOLD], [TOLD]),
        ([{**TOLD, "content": [{"type": "refusal", "refusal": "no"}]}], [{**TOLD, "content": "no"}]),
        ([{"role": "developer", "content": "x"}], [{"role": "developer", "content": "x"}]),
    ],
)
def test_items_and_turns(items: list[dict[str, Any]], turns: list[dict[str, Any]]) -> None:
    """Thoughts, text and calls of one answer are one turn; what comes after them begins another."""
    body = ResponsesBody.model_validate(asked([{"role": "user", "content": "a"}, *items]))
    assert [{"role": "user", "content": "a"}, *turns] == messages_from_items(body.input)


def _message(part: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": [part]}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"input": None}, "input", "valid list"),
        ({"input": []}, "input", "at least 1 item"),
        ({"input": [5]}, "input[0]", "input should be an object"),
        ({"input": [{"role": "user"}]}, "input[0].content", "is missing"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "'user', 'assistant'"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content", "valid list"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "'item_reference' is not supported"),
        ({"input": [{"type": "web_search_call"}]}, "input[0]", "'web_search_call' is not supported"),
        (
            {"input": [_message({"type": "input_image", "image_url": "x"})]},
            "input[0].content[0]",
            "'input_image'",
        ),
        (
            {"input": [_message({"type": "input_file", "file_id": "x"})]},
            "input[0].content[0]",
            "prompts are text",
        ),
        (
            {"input": [_message({"type": "output_text", "text": "x"})]},
            "input[0].content[0].type",
            "only the assistant has it",
        ),
        ({"input": [{"role": "user", "content": "x", "cache": 1}]}, "input[0].cache", "not a field"),
        (
            {"input": [{"type": "function_call_output", "call_id": "x", "output": "2"}]},
            "input[0].call_id",
            "no function_call before it",
        ),
        (
            {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]},
            "input[0].encrypted_content",
            "plain text here",
        ),
        ({"store": True}, "store", "False"),
        ({"background": True}, "background", "False"),
        ({"truncation": "auto"}, "truncation", "'disabled'"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "nothing is stored"),
        ({"conversation": "conv_1"}, "conversation", "nothing is stored"),
        ({"prompt": {"id": "x"}}, "prompt", "nothing is stored"),
        ({"max_tool_calls": 1}, "max_tool_calls", "calls no tools itself"),
        (
            {"tools": [{"type": "web_search"}]},
            "tools[0]",
            "'web_search' is not supported: only functions",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "is missing"),
        ({"tools": [{**ROOT, "defer_loading": True}]}, "tools[0].defer_loading", "is not supported"),
        ({"tools": [ROOT] * 3}, "tools", "3 tools; at most 2 are allowed"),
        ({"tools": [ROOT], "tool_choice": {"type": "mcp", "server_label": "x"}}, "tool_choice", "'mcp'"),
        (
            {"tools": [ROOT], "tool_choice": {"type": "function", "name": "x"}},
            "tool_choice",
            "none of the tools",
        ),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"include": ["file_search_call.results"]}, "include[0]", "'message.output_text.logprobs'"),
        ({"top_logprobs": 2}, "top_logprobs", "it needs include"),
        ({"include": LOGPROBS, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "'none'"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary", "the whole reasoning is in the content"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "say in a message"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "is missing"),
        ({"text": {"format": {"type": "text", "schema": {}}}}, "text.format.schema", "the type is 'text'"),
        (
            {"text": {"format": {"type": "json_object"}}, "regex": "a"},
            "text.format",
            "regex constrains the answer",
        ),
        ({"schema": "x", "instructions": "y"}, "schema", "give one of them"),
        ({"max_output_tokens": 0}, "max_output_tokens", "from 1 to 4096"),
        ({"max_output_tokens": 4000}, None, "max_output_tokens=4000 exceed the model's context of 512"),
        ({"max_tokens": 4}, "max_tokens", "use max_output_tokens"),
        ({"n": 2}, "n", "is not supported"),
        ({"messages": []}, "messages", "use input"),
        ({"instruction": "x"}, "instruction", "did you mean instructions?"),
        ({"top_p": 2}, "top_p", "0 to 1"),
        ({"service_tier": "flex"}, "service_tier", "'auto' or 'default'"),
        ({"stop": ["x"] * 17}, "stop", "17 texts; at most 16 are allowed"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_fields_that_are_wrong(
    fields: dict[str, Any],
    param: str | None,
    message: str,
    stream: bool,
    client: TestClient,
    manager: ExpertManager,
) -> None:
    """The status is 400 and the error names the field, also where events were asked for."""
    options = ServerOptions(limits=ServerLimits(max_tools=2))
    with TestClient(create_app(manager, options), base_url="http://localhost") as strict:
        response = (strict if "tools" in fields else client).post(
            PATH, json={**asked(stream=stream), **fields}
        )
    error = error_of(response)
    assert (400, "invalid_request_error", param) == (response.status_code, error["type"], error["param"])
    assert message in error["message"]


def test_stream_options_without_a_stream(client: TestClient) -> None:
    """`stream_options` without a stream is refused."""
    error = error_of(client.post(PATH, json=asked(stream_options={"include_obfuscation": False})))
    assert ("stream_options", True) == (error["param"], "it needs stream" in error["message"])


def test_null_is_none(client: TestClient) -> None:
    """Clients write null for fields that they do not use."""
    names = (
        "previous_response_id",
        "conversation",
        "prompt",
        "store",
        "tools",
        "reasoning",
        "text",
        "include",
    )
    response = client.post(PATH, json=asked(max_output_tokens=1, **dict.fromkeys(names)))
    assert 200 == response.status_code


@pytest.fixture
def failing(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """Answers break off after their second token."""
    next_step = AsyncTextStream.next_step
    taken: dict[int, int] = {}

    async def broken(stream: AsyncTextStream) -> Any:
        taken[id(stream)] = taken.get(id(stream), 0) + 1
        if taken[id(stream)] > 2:
            raise InferenceError("/secret/path broke")
        return await next_step(stream)

    monkeypatch.setattr(AsyncTextStream, "next_step", broken)
    return client


def test_an_answer_that_breaks_off(failing: TestClient) -> None:
    """The last event says that it failed, without telling why; at once it is an error object."""
    found = events_of(failing.post(PATH, json=asked(stream=True, max_output_tokens=9)).text)
    final = found[-1]["response"]
    assert ("response.failed", "failed", "incomplete") == (
        found[-1]["type"],
        final["status"],
        final["output"][0]["status"],
    )
    assert {"code": "server_error", "message": "the server failed: see its log"} == final["error"]
    response = failing.post(PATH, json=asked(max_output_tokens=9))
    assert "error" in response.json()
