"""OpenAI's own client for Python against a real process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

openai = pytest.importorskip("openai", reason="needs openai")

from api_calls import QUESTION
from pydantic import BaseModel
from serving_command import Command
from support.golden import BASE, golden

from hivellm_ort import ExpertManager

MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]


class Answer(BaseModel):
    """What an answer holds."""

    ok: bool


class Root(BaseModel):
    """The root of a number."""

    positive: bool


def test_chat(api: Any, manager: ExpertManager) -> None:
    """An answer has its text, its counts, its end and an id."""
    made = api.chat.completions.create(
        model="sql", messages=MESSAGES, max_completion_tokens=12, temperature=1, seed=2, n=2, stop=["zzz"],
        extra_body={"top_k": 50, "min_p": 0.01},
    )  # fmt: skip
    expected = [
        manager.generate("sql", QUESTION, max_tokens=12, temperature=1, seed=seed, top_k=50, min_p=0.01)
        for seed in (2, 3)
    ]
    assert [one.text for one in expected] == [choice.message.content for choice in made.choices]
    assert (expected[0].prompt_tokens, sum(one.completion_tokens for one in expected)) == (
        made.usage.prompt_tokens,
        made.usage.completion_tokens,
    )
    assert made._request_id.startswith("req-")


def test_streams(api: Any, manager: ExpertManager) -> None:
    """A stream gives the pieces of the answer and, where asked for, the counts."""
    expected = manager.generate("sql", QUESTION, max_tokens=12)
    stream = api.chat.completions.create(
        model="sql", messages=MESSAGES, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    found = list(stream)
    assert expected.text == "".join(chunk.choices[0].delta.content or "" for chunk in found if chunk.choices)
    assert expected.completion_tokens == found[-1].usage.completion_tokens
    with api.chat.completions.stream(model="sql", messages=MESSAGES, response_format=Answer) as events:
        events.until_done()
        assert isinstance(events.get_final_completion().choices[0].message.parsed, Answer)


def test_parsed_answers(api: Any) -> None:
    """A Pydantic class is a strict schema, and the answer an object of it."""
    made = api.chat.completions.parse(model="sql", messages=MESSAGES, response_format=Answer)
    assert isinstance(made.choices[0].message.parsed, Answer)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the client writes what it parsed
def test_parsed_answers_go_back(api: Any) -> None:
    """What the client added to a message when it parsed it changes nothing."""
    answer = api.chat.completions.parse(model="sql", messages=MESSAGES, response_format=Answer)
    message = answer.choices[0].message
    plain = {"role": "assistant", "content": message.content}
    expected, found = (
        api.chat.completions.create(model="sql", messages=[*MESSAGES, turn, *MESSAGES], max_tokens=6)
        for turn in (plain, message)
    )
    assert expected.choices[0].message == found.choices[0].message
    assert expected.usage.prompt_tokens == found.usage.prompt_tokens


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the client writes what it parsed
def test_tools(tool_api: Any) -> None:
    """Arguments are objects of the tool's class, at once and in a stream, and calls go back with their results."""
    asked: dict[str, Any] = {
        "model": "sql", "messages": MESSAGES, "tools": [openai.pydantic_function_tool(Root)],
        "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 100,
    }  # fmt: skip
    message = tool_api.chat.completions.parse(**asked).choices[0].message
    (call,) = message.tool_calls
    assert isinstance(call.function.parsed_arguments, Root)
    with tool_api.chat.completions.stream(**asked) as events:
        kinds = {event.type for event in events}
        (streamed,) = events.get_final_completion().choices[0].message.tool_calls
    assert "tool_calls.function.arguments.done" in kinds
    assert call.function == streamed.function
    plain = {
        "role": "assistant",
        "tool_calls": [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": "Root", "arguments": call.function.arguments},
            }
        ],
    }
    result = {"role": "tool", "tool_call_id": call.id, "content": "2"}
    expected, *found = (
        tool_api.chat.completions.create(
            **{**asked, "messages": [*MESSAGES, turn, result], "tool_choice": "none", "max_tokens": 6}
        )
        for turn in (plain, message, message.model_dump())
    )
    for one in found:
        assert expected.choices[0].message == one.choices[0].message
        assert expected.usage.prompt_tokens == one.usage.prompt_tokens


def test_logprobs(api: Any) -> None:
    """The client's types take the probabilities."""
    made = api.chat.completions.create(
        model="sql", messages=MESSAGES, max_tokens=3, logprobs=True, top_logprobs=2
    )
    content = made.choices[0].logprobs.content
    assert [(True, 2)] * 3 == [(one.logprob <= 0, len(one.top_logprobs)) for one in content]


def test_completions(api: Any, manager: ExpertManager) -> None:
    """Plain completions, at once and as they are written."""
    encode = manager.tokenizer("json").encode
    expected = manager.generate("json", prompt_ids=encode("a"), max_tokens=8).text
    assert expected == api.completions.create(model="json", prompt="a", max_tokens=8).choices[0].text
    stream = api.completions.create(model="json", prompt="a", max_tokens=8, stream=True)
    assert expected == "".join(chunk.choices[0].text for chunk in stream)


def test_models(api: Any) -> None:
    """The list, and one of it."""
    assert ["base", "sql", "json"] == [model.id for model in api.models.list()]
    assert "expert-json@1.0.0" == api.models.retrieve("json").root


def test_errors(api: Any) -> None:
    """The client raises the class that belongs to the status, with the field that is wrong."""
    with pytest.raises(openai.NotFoundError) as caught:
        api.chat.completions.create(model="xml", messages=MESSAGES)
    assert ("model", "model_not_found") == (caught.value.param, caught.value.code)
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(model="sql", messages=MESSAGES, extra_body={"zzz": 1})
    assert ("zzz", "unknown_parameter") == (caught.value.param, caught.value.code)
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(model="sql", messages=MESSAGES, top_p=2, stream=True)
    assert "top_p" == caught.value.param


def test_raw_responses(api: Any) -> None:
    """Headers say who answers, also of streams."""
    raw = api.chat.completions.with_raw_response.create(model="json", messages=MESSAGES, max_tokens=2)
    assert ("json", "json") == (raw.headers["x-hivellm-expert"], raw.parse().model)
    with api.chat.completions.with_streaming_response.create(
        model="json", messages=MESSAGES, max_tokens=2, stream=True
    ) as raw:
        assert "json" == raw.headers["x-hivellm-expert"]
        assert "data: [DONE]" in list(raw.iter_lines())


@pytest.fixture(scope="module")
def slow(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """A server that wants the key `secret`, whose answers take seconds, and where one answer may wait."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("secret\n")
    arguments = ["--expert", f"sql={golden('sql')}", "--base", str(BASE), "--threads", "1", "--trust", "off"]
    with Command(
        [*arguments, "--api-key-file", str(keys), "--max-waiting", "1"], cache, slow=True
    ) as command:
        yield command


@pytest.fixture
def slow_api(slow: Command) -> Iterator[Any]:
    """A client with the key; afterwards nothing is left of its requests."""
    with openai.OpenAI(base_url=f"{slow.address}/v1", api_key="secret", max_retries=0) as api:
        yield api
    _await_rest(slow)


def _await_rest(slow: Command) -> None:
    end = time.monotonic() + 20
    while True:
        text = httpx.get(f"{slow.address}/metrics", headers={"authorization": "Bearer secret"}).text
        lines = set(text.splitlines())
        if {"hivellm_ort_active_requests 0", "hivellm_ort_queued_requests 0"} <= lines:
            return
        assert time.monotonic() < end
        time.sleep(0.05)


LONG: dict[str, Any] = {"model": "sql", "messages": MESSAGES, "max_tokens": 400, "n": 8}


def test_errors_of_access(slow: Command, slow_api: Any) -> None:
    """A wrong key, and what the operator did not allow."""
    with (
        openai.OpenAI(base_url=f"{slow.address}/v1", api_key="wrong") as stranger,
        pytest.raises(openai.AuthenticationError) as wrong,
    ):
        stranger.models.list()
    assert "invalid_api_key" == wrong.value.code
    with pytest.raises(openai.PermissionDeniedError) as caught:
        slow_api.post("/load_lora_adapter", body={"lora_name": "a", "lora_path": "a"}, cast_to=object)
    assert "loading_is_off" == caught.value.code


def test_cancelled_streams(slow: Command, slow_api: Any) -> None:
    """A stream that the client closes ends its answers."""
    with slow_api.chat.completions.create(**LONG, stream=True) as stream:
        next(iter(stream))
    _await_rest(slow)


def test_timeouts_of_the_client(slow: Command, slow_api: Any) -> None:
    """A client that gives up ends its answers."""
    with pytest.raises(openai.APITimeoutError):
        slow_api.with_options(timeout=0.3).chat.completions.create(**LONG)
    _await_rest(slow)


def test_a_full_queue(slow_api: Any) -> None:
    """Too many answers at once are an error of its own; the client asks again by itself, and is answered."""
    short = {**LONG, "n": 1, "max_tokens": 2}
    streams: list[Any] = []

    def fill() -> None:
        while len(streams) < 4:
            streams.append(slow_api.chat.completions.create(**LONG, stream=True))

    with pytest.raises(openai.RateLimitError) as caught:
        fill()
    assert "queue_full" == caught.value.code
    assert caught.value.response.headers["retry-after"].isdigit()
    free = threading.Timer(0.3, lambda: [stream.close() for stream in streams])
    free.start()
    raw = slow_api.with_options(max_retries=5).chat.completions.with_raw_response.create(**{**short, "n": 8})
    free.join()
    assert 8 == len(raw.parse().choices)
    assert raw.retries_taken >= 1


async def _async_answers(command: Command) -> list[str]:
    async with openai.AsyncOpenAI(base_url=f"{command.address}/v1", api_key="none") as api:
        made = await asyncio.gather(
            *(api.chat.completions.create(model="sql", messages=MESSAGES, max_tokens=9) for _ in range(12))
        )
    return [one.choices[0].message.content for one in made]


def test_many_at_once(command: Command, manager: ExpertManager) -> None:
    """More clients than rows get the answer that each gets alone."""
    expected = manager.generate("sql", QUESTION, max_tokens=9).text
    assert [expected] * 12 == asyncio.run(_async_answers(command))
