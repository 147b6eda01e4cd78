"""`/v1/chat/completions`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from api_calls import QUESTION, chat, chunks, error_of
from fastapi.testclient import TestClient

from hivellm_ort import ExpertManager


def test_an_answer_is_the_managers(client: TestClient, manager: ExpertManager) -> None:
    """Text, end and counts are those of the manager with the same options."""
    options: dict[str, Any] = {
        "temperature": 0.9, "top_p": 0.9, "seed": 7, "max_tokens": 12, "presence_penalty": 0.5,
        "frequency_penalty": 0.25, "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1,
    }  # fmt: skip
    response = client.post("/v1/chat/completions", json=chat(**options, logit_bias={"70": -3, "71": 2}))
    expected = manager.generate("sql", QUESTION, **options, logit_bias={70: -3.0, 71: 2.0})
    answer = response.json()
    assert (200, "sql") == (response.status_code, response.headers["x-hivellm-expert"])
    assert ("chat.completion", "sql") == (answer["object"], answer["model"])
    timings = answer["choices"][0].pop("timings")
    assert ({"queue", "swap", "prefill", "decode", "tokens_per_second"}, True) == (
        set(timings),
        timings["prefill"] > 0 and timings["decode"] > 0 and timings["tokens_per_second"] > 0,
    )
    assert [
        {
            "index": 0,
            "message": {"role": "assistant", "content": expected.text, "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
        }
    ] == answer["choices"]
    usage = answer["usage"]
    assert (expected.prompt_tokens, 12, expected.prompt_tokens + 12) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
        usage["total_tokens"],
    )
    assert 0 <= usage["prompt_tokens_details"]["cached_tokens"] < expected.prompt_tokens


def test_several_answers(client: TestClient, manager: ExpertManager) -> None:
    """Each of `n` answers has a seed of its own, and the prompt counts once."""
    body = chat(n=3, temperature=1.2, seed=5, max_tokens=8)
    answer = client.post("/v1/chat/completions", json=body).json()
    expected = [
        manager.generate("sql", QUESTION, temperature=1.2, seed=5 + index, max_tokens=8) for index in range(3)
    ]
    assert [one.text for one in expected] == [one["message"]["content"] for one in answer["choices"]]
    assert 3 == len({one.text for one in expected})
    assert (expected[0].prompt_tokens, sum(one.completion_tokens for one in expected)) == (
        answer["usage"]["prompt_tokens"],
        answer["usage"]["completion_tokens"],
    )


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_is_the_answer(n: int, client: TestClient) -> None:
    """The chunks together are the answers, each ends with its reason, and the last has the counts."""
    body = chat(n=n, temperature=1, seed=3, max_tokens=10, logprobs=True, top_logprobs=2)
    expected = client.post("/v1/chat/completions", json=body).json()
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    response = client.post("/v1/chat/completions", json=body)
    assert "text/event-stream; charset=utf-8" == response.headers["content-type"]
    *found, last = chunks(response.text)
    assert ([], expected["usage"]["completion_tokens"]) == (
        last["choices"],
        last["usage"]["completion_tokens"],
    )
    assert {None} == {chunk["usage"] for chunk in found}
    assert 1 == len({(chunk["id"], chunk["object"], chunk["model"]) for chunk in found})
    for choice in expected["choices"]:
        own = [chunk["choices"][0] for chunk in found if chunk["choices"][0]["index"] == choice["index"]]
        assert "assistant" == own[0]["delta"]["role"]
        assert choice["message"]["content"] == "".join(one["delta"].get("content", "") for one in own)
        assert [None] * (len(own) - 1) + ["length"] == [one["finish_reason"] for one in own]
        told = [entry for one in own if one["logprobs"] for entry in one["logprobs"]["content"]]
        content = choice["logprobs"]["content"]
        assert [one["bytes"] for one in content] == [one["bytes"] for one in told]
        # Rows of a batch are computed together, and the last digits differ.
        assert [one["logprob"] for one in content] == pytest.approx(
            [one["logprob"] for one in told], abs=1e-4
        )


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_that_a_grammar_forces(stream: bool, client: TestClient, manager: ExpertManager) -> None:
    """Log probabilities mark forced tokens, the usage counts them, and the last chunk has the timings."""
    options: dict[str, Any] = {"regex": "[xy]forced", "max_tokens": 20}
    expected = manager.generate("sql", QUESTION, logprobs=0, **options)
    body = chat(**options, logprobs=True, stream=stream)
    if stream:
        body["stream_options"] = {"include_usage": True}
    response = client.post("/v1/chat/completions", json=body)
    documents = chunks(response.text) if stream else [response.json()]
    choices = [choice for document in documents for choice in document["choices"]]
    content = [entry for one in choices if one["logprobs"] for entry in one["logprobs"]["content"]]
    assert expected.logprobs is not None
    told = [one.forced for one in expected.logprobs[: len(content)]]
    assert told == [entry.get("forced", False) for entry in content]
    assert {True, False} == set(told)
    details = documents[-1]["usage"]["completion_tokens_details"]
    assert {"reasoning_tokens": 0, "forced_tokens": expected.forced_tokens} == details
    assert 1 == sum("timings" in choice for choice in choices)
    assert choices[-1]["timings"]["prefill"] > 0


def test_logprobs(client: TestClient, manager: ExpertManager) -> None:
    """Each token has its text, its bytes and its probability, and as many of the likeliest as were asked for."""
    body = chat(max_tokens=6, logprobs=True, top_logprobs=3)
    content = client.post("/v1/chat/completions", json=body).json()["choices"][0]["logprobs"]["content"]
    expected = manager.generate("sql", QUESTION, max_tokens=6, logprobs=3)
    assert expected.logprobs is not None
    texts = manager.tokenizer("sql").token_bytes
    assert [list(texts[one.token_id]) for one in expected.logprobs] == [one["bytes"] for one in content]
    assert [one.logprob for one in expected.logprobs] == pytest.approx(
        [one["logprob"] for one in content], abs=1e-4
    )
    assert [[list(texts[token_id]) for token_id, _ in one.top] for one in expected.logprobs] == [
        [other["bytes"] for other in one["top_logprobs"]] for one in content
    ]
    assert b"".join(bytes(one["bytes"]) for one in content).decode("utf-8", "replace") == expected.text


def test_stop_strings(client: TestClient, manager: ExpertManager) -> None:
    """A stop string ends the answer and is left out; one text is the same as a list of it."""
    whole = manager.generate("sql", QUESTION, max_tokens=20).text
    stop = whole[5:7]
    expected = whole[: whole.index(stop)]
    for given in (stop, [stop], ["never to be found", stop]):
        choice = client.post("/v1/chat/completions", json=chat(max_tokens=20, stop=given)).json()["choices"][
            0
        ]
        assert (expected, "stop") == (choice["message"]["content"], choice["finish_reason"])
    body = chat(max_tokens=20, stop=stop, include_stop_str_in_output=True)
    choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert expected + stop == choice["message"]["content"]


SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
OK = {'{"ok": true}', '{"ok": false}'}


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}, OK),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": True}}},
            OK,
        ),
        ({"json_schema": SCHEMA}, OK),
        ({"guided_json": SCHEMA}, OK),
        ({"guided_json": json.dumps(SCHEMA)}, OK),
        ({"structured_outputs": {"json": SCHEMA}}, OK),
        ({"choice": ["yes", "no"]}, {"yes", "no"}),
        ({"guided_choice": ["yes", "no"]}, {"yes", "no"}),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, {"yes", "no"}),
        ({"regex": "[ab]"}, {"a", "b"}),
        ({"guided_regex": "[ab]"}, {"a", "b"}),
        ({"structured_outputs": {"regex": "[ab]"}}, {"a", "b"}),
        ({"grammar": 'root ::= "x" | "y"'}, {"x", "y"}),
        ({"guided_grammar": 'root ::= "x" | "y"'}, {"x", "y"}),
        ({"structured_outputs": {"grammar": 'root ::= "x" | "y"'}}, {"x", "y"}),
    ],
)
def test_answers_of_a_form(fields: dict[str, Any], allowed: set[str], client: TestClient) -> None:
    """Every way to say what the answer must look like is enforced."""
    choice = client.post("/v1/chat/completions", json=chat(**fields)).json()["choices"][0]
    assert "stop" == choice["finish_reason"]
    assert choice["message"]["content"] in allowed


@pytest.mark.parametrize(
    "fields", [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}]
)
def test_any_json_object(fields: dict[str, Any], client: TestClient) -> None:
    """`json_object` is an object, and no other JSON."""
    body = chat(max_tokens=200, logit_bias={"125": 20}, **fields)  # the byte of a closing brace
    choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert isinstance(json.loads(choice["message"]["content"]), dict)


def test_a_lenient_schema_tells_what_it_leaves_out(client: TestClient) -> None:
    """What cannot be enforced is refused; with `strict: false` it is left out, with a warning."""
    schema = {"type": "string", "contentEncoding": "base64", "not": {"pattern": "^a"}, "maxLength": 3}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    refused = client.post("/v1/chat/completions", json=chat(response_format=form))
    assert (400, "invalid_grammar") == (refused.status_code, error_of(refused)["code"])
    form["json_schema"]["strict"] = False  # type: ignore[index]
    answer = client.post("/v1/chat/completions", json=chat(response_format=form)).json()
    assert 1 <= len(answer["warnings"])


def test_messages_of_every_kind(client: TestClient, manager: ExpertManager) -> None:
    """Turns of all roles, parts, and answers that are sent back as they came, are read as the manager reads them."""
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "Three", "refusal": None, "audio": None, "tool_calls": None,
         "function_call": None, "annotations": []},
        {"role": "user", "content": QUESTION},
    ]  # fmt: skip
    answer = client.post("/v1/chat/completions", json=chat(messages=turns, max_tokens=8)).json()
    plain = [{key: turn[key] for key in ("role", "content")} for turn in turns]
    expected = manager.generate("sql", messages=plain, max_tokens=8)
    assert (expected.text, expected.prompt_tokens) == (
        answer["choices"][0]["message"]["content"],
        answer["usage"]["prompt_tokens"],
    )


def test_a_schema_is_what_the_answer_is_about(client: TestClient, manager: ExpertManager) -> None:
    """`schema` goes into the system message of the expert."""
    ddl = "CREATE TABLE a (b INT);"
    answer = client.post("/v1/chat/completions", json=chat(schema=ddl, max_tokens=8)).json()
    expected = manager.generate("sql", QUESTION, schema=ddl, max_tokens=8)
    assert (expected.text, expected.prompt_tokens) == (
        answer["choices"][0]["message"]["content"],
        answer["usage"]["prompt_tokens"],
    )


def test_fields_that_ask_for_nothing_special(client: TestClient) -> None:
    """What OpenAI's clients send beside the question is taken where it changes nothing."""
    expected = client.post("/v1/chat/completions", json=chat(max_tokens=6)).json()["choices"]
    more = {
        "user": "me", "store": False, "metadata": {"a": "b"}, "modalities": ["text"], "service_tier": "auto",
        "safety_identifier": "x", "prompt_cache_key": "y", "parallel_tool_calls": True, "tool_choice": "none",
        "tools": [], "functions": None, "audio": None, "stream": False, "n": 1, "max_tokens": 6,
        "max_completion_tokens": 6, "response_format": {"type": "text"}, "logprobs": False, "stop": None,
        "reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": False}, "prompt_lookup": False,
    }  # fmt: skip
    found = client.post("/v1/chat/completions", json=chat(**more)).json()["choices"]
    del expected[0]["timings"], found[0]["timings"]
    assert expected == found


def test_the_base_and_routing(client: TestClient, manager: ExpertManager) -> None:
    """`base` is the model without an expert; `auto` is the expert that fits, and headers say which and why."""
    answer = client.post("/v1/chat/completions", json=chat(model="base", max_tokens=6)).json()
    assert manager.generate("base", QUESTION, max_tokens=6).text == answer["choices"][0]["message"]["content"]
    response = client.post(
        "/v1/chat/completions", json=chat("Fix this invalid JSON", model="auto", max_tokens=2)
    )
    decision = json.loads(response.headers["x-hivellm-routing"])
    assert ("json", "json", "json") == (
        response.headers["x-hivellm-expert"],
        decision["expert"],
        response.json()["model"],
    )
    assert decision["score"] > 0
    assert any("json" in reason.lower() for reason in decision["reasons"])
    response = client.post("/v1/chat/completions", json=chat("hello", model="auto", max_tokens=2))
    decision = json.loads(response.headers["x-hivellm-routing"])
    assert ("base", ["no expert fits"]) == (decision["expert"], decision["reasons"])
