"""OpenAI's own client for Python against `/v1/responses` of a real process."""

from __future__ import annotations

from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="needs openai")

from api_calls import QUESTION
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from hivellm_ort import ExpertManager

TOOL: dict[str, Any] = {
    "type": "function",
    "name": "root",
    "description": "Root",
    "parameters": {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Answer(BaseModel):
    """What an answer holds."""

    ok: bool


def test_an_answer(api: Any, manager: ExpertManager) -> None:
    """It is the manager's, and every field has the type that the client knows."""
    made = api.responses.create(
        model="sql",
        input=QUESTION,
        max_output_tokens=12,
        temperature=1,
        top_p=0.9,
        extra_body={"seed": 2, "top_k": 50},
    )
    expected = manager.generate("sql", QUESTION, max_tokens=12, temperature=1, top_p=0.9, seed=2, top_k=50)
    assert (expected.text, "incomplete", "max_output_tokens") == (
        made.output_text,
        made.status,
        made.incomplete_details.reason,
    )
    assert (expected.prompt_tokens, 12, 0) == (
        made.usage.input_tokens,
        made.usage.output_tokens,
        made.usage.output_tokens_details.reasoning_tokens,
    )
    # The client builds its objects unchecked; here they are checked.
    Response.model_validate(made.to_dict())


def test_events(api: Any, manager: ExpertManager) -> None:
    """Each is of a type that the client knows, and together they are the answer."""
    check = TypeAdapter(ResponseStreamEvent)
    stream = api.responses.create(
        model="sql",
        input=QUESTION,
        max_output_tokens=12,
        stream=True,
        include=["message.output_text.logprobs"],
    )
    events = list(stream)
    for event in events:
        check.validate_python(event.to_dict())
    expected = manager.generate("sql", QUESTION, max_tokens=12).text
    assert expected == "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert expected == events[-1].response.output_text
    with api.responses.stream(model="sql", input=QUESTION, text_format=Answer) as helper:
        helper.until_done()
        final = helper.get_final_response()
    assert isinstance(final.output_parsed, Answer)


def test_a_call_and_its_result(tool_api: Any) -> None:
    """The client's own objects go back as they are."""
    question = {"role": "user", "content": QUESTION}
    options = {"model": "sql", "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    made = tool_api.responses.create(input=[question], **options)
    Response.model_validate(made.to_dict())
    (call,) = made.output
    Answer.model_validate_json(call.arguments)
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "2"}
    after = tool_api.responses.create(
        input=[question, call, output], model="sql", tools=[TOOL], max_output_tokens=4
    )
    assert after.usage.input_tokens > made.usage.input_tokens
    with tool_api.responses.stream(input=[question], **options) as events:
        events.until_done()
        (streamed,) = events.get_final_response().output
    assert (call.name, call.arguments) == (streamed.name, streamed.arguments)


def test_parsed_answers(api: Any) -> None:
    """A Pydantic class is a strict schema, and the answer an object of it."""
    made = api.responses.parse(model="sql", input=QUESTION, text_format=Answer)
    assert isinstance(made.output_parsed, Answer)


def test_errors(api: Any) -> None:
    """The client raises the class that belongs to the status, with the field that is wrong."""
    with pytest.raises(openai.NotFoundError) as missing:
        api.responses.create(model="xml", input=QUESTION)
    assert ("model", "model_not_found") == (missing.value.param, missing.value.code)
    with pytest.raises(openai.BadRequestError) as caught:
        api.responses.create(model="sql", input=QUESTION, previous_response_id="resp_1", stream=True)
    assert ("previous_response_id", "unsupported_parameter") == (caught.value.param, caught.value.code)
