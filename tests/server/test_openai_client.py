"""OpenAI's own client for Python against a real process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="needs openai")

from asking import QUESTION
from pydantic import BaseModel
from serving_command import Command

from hivellm_ort import ExpertManager

MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]


class Answer(BaseModel):
    """What an answer holds."""

    ok: bool


@pytest.fixture
def api(command: Command) -> Any:
    """The client."""
    with openai.OpenAI(base_url=f"{command.address}/v1", api_key="none", max_retries=0) as api:
        yield api


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
