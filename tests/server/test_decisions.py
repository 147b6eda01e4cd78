"""`/v1/decisions`."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import httpx
import pytest
from api_calls import error_of
from fastapi.testclient import TestClient
from serving_command import Command

from hivellm_ort import ExpertManager
from hivellm_ort.engine.decoder import Decoder
from hivellm_ort.server import ServerLimits, ServerOptions, create_app

PATH = "/v1/decisions"
INPUT = "I was charged twice."
PREDICATE = {"type": "predicate", "name": "refund", "instructions": "A refund is due."}
CHOICE = {
    "type": "choice",
    "name": "team",
    "instructions": "Which team?",
    "choices": [{"value": "billing", "description": "Money"}, {"value": "support"}, {"value": True}],
}
SCORE = {
    "type": "score",
    "instructions": "How urgent?",
    "levels": [{"label": "low"}, {"label": "high", "description": "today"}],
}
ASKED = {
    "predicate": (
        "Is this true of the above? A refund is due.\n\nAnswer only with Yes or No.",
        ["Yes", "No"],
    ),
    "choice": (
        "Which team?\n\nA. billing: Money\nB. support\nC. true\n\nAnswer only with the letter of the right option.",
        ["A", "B", "C"],
    ),
    "score": (
        "How urgent?\n\nLevels, from the lowest to the highest:\nA. low\nB. high: today\n\n"
        "Answer only with the letter of the right level.",
        ["A", "B"],
    ),
}


def asked(*questions: Any, **fields: Any) -> dict[str, Any]:
    """The body of a request."""
    return {"model": "sql", "input": INPUT, "questions": list(questions), **fields}


def test_the_answers_are_the_managers(client: TestClient, manager: ExpertManager) -> None:
    """Each probability is the share that the manager's `score` gives the same label."""
    response = client.post(PATH, json=asked(PREDICATE, CHOICE, SCORE))
    document = response.json()
    assert (200, "sql", "sql", {"model", "answers", "usage"}) == (
        response.status_code,
        response.headers["x-hivellm-expert"],
        document["model"],
        set(document),
    )
    predicate, choice, score = document["answers"]
    results = {
        kind: manager.score("sql", f"{INPUT}\n\n{text}", labels) for kind, (text, labels) in ASKED.items()
    }
    shares = {kind: [one.share for one in result.answers] for kind, result in results.items()}
    near = {"abs": 1e-6}
    assert ("predicate", "refund") == (predicate["type"], predicate["name"])
    assert shares["predicate"][0] == pytest.approx(predicate["probability"], **near)
    assert ("choice", "team", ["billing", "support", True]) == (
        choice["type"],
        choice["name"],
        [one["value"] for one in choice["probabilities"]],
    )
    assert shares["choice"] == pytest.approx([one["probability"] for one in choice["probabilities"]], **near)
    best = max(choice["probabilities"], key=lambda one: one["probability"])
    assert best["value"] == choice["choice"]
    assert (best["probability"] - 1 / 3) / (2 / 3) == pytest.approx(choice["confidence"])
    assert ("score", None, [(0, "low"), (1, "high")]) == (
        score["type"],
        score["name"],
        [(one["value"], one["label"]) for one in score["probabilities"]],
    )
    assert shares["score"][1] == pytest.approx(score["score"], **near)
    assert abs(2 * score["score"] - 1) == pytest.approx(score["confidence"])
    for answer in document["answers"]:
        mass = sum(math.exp(one.logprob) for one in results[answer["type"]].answers)
        assert mass == pytest.approx(answer["coverage"], abs=1e-6)
    read = sum(result.prompt_tokens for result in results.values())
    usage = document["usage"]
    assert (read, 0, read) == (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"])


def test_the_input_is_computed_once(cache: Any, manager: ExpertManager) -> None:
    """All questions but the first take over what the input was computed to."""
    text = "An input that nobody has sent before, of some length. " * 3
    shared = len(manager.tokenizer("sql").encode(text))
    questions = [
        {**PREDICATE, "instructions": f"{word} is true."} for word in ("This", "That", "Nothing", "It")
    ]
    with TestClient(create_app(manager), base_url="http://localhost") as client:
        usage = client.post(PATH, json=asked(*questions, input=text)).json()["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] >= 3 * (shared - 4)
    assert usage["input_tokens"] > 4 * shared


def test_a_conversation(client: TestClient, manager: ExpertManager) -> None:
    """The question goes into the user's last turn; parts of JSON are read as text."""
    items = [
        {"role": "system", "content": "Be fair."},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_json", "data": {"b": [1]}}],
        },
    ]
    (answer,) = client.post(PATH, json=asked(PREDICATE, input=items)).json()["answers"]
    text, labels = ASKED["predicate"]
    turns = [
        {"role": "system", "content": "Be fair."},
        {"role": "user", "content": f'a\n{{"b": [1]}}\n\n{text}'},
    ]
    expected = manager.score("sql", None, labels, messages=turns)
    assert expected.answers[0].share == pytest.approx(answer["probability"], abs=1e-6)
    items.append({"role": "assistant", "content": "c"})
    turns = [
        {"role": "system", "content": "Be fair."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": '{"b": [1]}'}]},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": text},
    ]
    (answer,) = client.post(PATH, json=asked(PREDICATE, input=items)).json()["answers"]
    expected = manager.score("sql", None, labels, messages=turns)
    assert expected.answers[0].share == pytest.approx(answer["probability"], abs=1e-6)


def test_many_options(client: TestClient, manager: ExpertManager) -> None:
    """More options than there are letters have numbers, and all of them together are certain."""
    choices = [{"value": f"v{index}"} for index in range(30)]
    question = {"type": "choice", "instructions": "Which?", "choices": choices}
    (answer,) = client.post(PATH, json=asked(question)).json()["answers"]
    assert 1 == pytest.approx(sum(one["probability"] for one in answer["probabilities"]))
    lines = "\n".join(f"{index + 1}. v{index}" for index in range(30))
    text = f"{INPUT}\n\nWhich?\n\n{lines}\n\nAnswer only with the number of the right option."
    expected = manager.score("sql", text, [str(number) for number in range(1, 31)])
    assert [one.share for one in expected.answers] == pytest.approx(
        [one["probability"] for one in answer["probabilities"]], abs=1e-6
    )


def test_models(client: TestClient, manager: ExpertManager) -> None:
    """`base` is the base, and `auto` chooses by the input."""
    text, labels = ASKED["predicate"]
    (answer,) = client.post(PATH, json=asked(PREDICATE, model="base")).json()["answers"]
    expected = manager.score("base", f"{INPUT}\n\n{text}", labels).answers[0].share
    assert expected == pytest.approx(answer["probability"], abs=1e-6)
    response = client.post(PATH, json=asked(PREDICATE, model="auto"))
    assert (200, True) == (response.status_code, "x-hivellm-routing" in response.headers)
    error = error_of(client.post(PATH, json=asked(PREDICATE, model="xml")))
    assert ("model", "model_not_found") == (error["param"], error["code"])


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]",
            "'input_image'",
        ),
        ({"input": [{"type": "custom_tool_call"}]}, "input[0]", "'custom_tool_call' is not supported"),
        ({"questions": []}, "questions", "at least 1 item"),
        ({"questions": [PREDICATE] * 3}, "questions", "3 questions; at most 2 are allowed"),
        ({"questions": [{"type": "box"}]}, "questions[0]", "'box' is not supported"),
        ({"questions": [{"type": "predicate"}]}, "questions[0].instructions", "is missing"),
        ({"questions": [{**PREDICATE, "threshold": 1}]}, "questions[0].threshold", "not a field"),
        (
            {"questions": [{**CHOICE, "choices": [{"value": "a"}]}]},
            "questions[0].choices",
            "at least 2 items",
        ),
        (
            {"questions": [{**CHOICE, "choices": [{"value": str(index)} for index in range(256)]}]},
            "questions[0].choices",
            "at most 255 items",
        ),
        (
            {"questions": [{**CHOICE, "choices": [{"value": "a"}] * 2}]},
            "questions[0].choices",
            "is given twice",
        ),
        ({"questions": [{**CHOICE, "choices": ["a", "b"]}]}, "questions[0].choices[0]", "an object"),
        (
            {"questions": [{**SCORE, "levels": [{"label": str(index)} for index in range(11)]}]},
            "questions[0].levels",
            "at most 10 items",
        ),
        ({"decisions": []}, "decisions", "not a field of this request"),
        ({"stream": True}, "stream", "not a field of this request"),
        ({"prompt_cache_options": {}}, "prompt_cache_options", "is not supported"),
        ({"input": "x" * 600}, "questions[0]", "does not fit the model's context: send a shorter input"),
    ],
)
def test_what_is_wrong(fields: dict[str, Any], param: str, message: str, manager: ExpertManager) -> None:
    """The status is 400 and the error names the field."""
    app = create_app(manager, ServerOptions(limits=ServerLimits(max_questions=2)))
    with TestClient(app, base_url="http://localhost") as client:
        response = client.post(PATH, json={**asked(PREDICATE), **fields})
    error = error_of(response)
    assert (400, "invalid_request_error", param) == (response.status_code, error["type"], error["param"])
    assert message in error["message"]


def test_true_and_its_text_are_two(client: TestClient) -> None:
    """OpenAI tells a boolean from the text, and so do the labels."""
    question = {**CHOICE, "choices": [{"value": True}, {"value": "true"}, {"value": False}]}
    (answer,) = client.post(PATH, json=asked(question)).json()["answers"]
    assert [True, "true", False] == [one["value"] for one in answer["probabilities"]]


@pytest.fixture
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    append = Decoder.append

    def slow_append(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.05)
        return append(*arguments, **options)

    monkeypatch.setattr(Decoder, "append", slow_append)


MANY = [{**PREDICATE, "instructions": f"{index} is a number."} for index in range(30)]


@pytest.mark.usefixtures("_slow")
@pytest.mark.parametrize("end", ["leaves", "late", "stops", "full"])
def test_the_queue_and_the_end(end: str, manager: ExpertManager) -> None:
    """Whoever goes away, waits too long, or is there when the server stops, leaves no place taken."""
    limits = ServerLimits(request_timeout=0.3 if end == "late" else 30, max_waiting=1)
    app = create_app(manager, ServerOptions(limits=limits))
    state = app.state.server
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    async def run() -> httpx.Response | None:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as client:
            task = asyncio.create_task(client.post(PATH, json=asked(*MANY)))
            await asyncio.sleep(0.2)
            assert state._reserved > 1
            if end == "stops":
                state.stop()
            elif end == "full":
                response = await client.post(PATH, json=asked(PREDICATE))
                task.cancel()
                return response
            elif end == "leaves":
                task.cancel()
                await asyncio.wait([task])
                return None
            return await task

    before = time.monotonic()
    response = asyncio.run(run())
    if response is not None:
        expected = {"late": (504, "timeout"), "stops": (503, "shutting_down"), "full": (429, "queue_full")}
        assert expected[end] == (response.status_code, error_of(response)["code"])
    while state._reserved or any(base["active"] + base["queued"] for base in manager.stats()["bases"]):
        assert time.monotonic() < before + 10
        time.sleep(0.01)
    assert set() == state._running


def test_openais_client(command: Command, manager: ExpertManager) -> None:
    """OpenAI's own client gets the same from a real process, in the types that it knows."""
    openai = pytest.importorskip("openai", reason="needs openai")
    if not hasattr(openai.OpenAI, "decisions"):
        pytest.skip("this openai has no decisions")
    from openai.types import Decision

    with openai.OpenAI(base_url=f"{command.address}/v1", api_key="none", max_retries=0) as api:
        made = api.decisions.create(model="sql", input=INPUT, questions=[PREDICATE, CHOICE, SCORE])
        with pytest.raises(openai.BadRequestError) as caught:
            api.decisions.create(model="sql", input=INPUT, questions=[])
    Decision.model_validate(made.to_dict())
    text, labels = ASKED["predicate"]
    expected = manager.score("sql", f"{INPUT}\n\n{text}", labels).answers[0].share
    assert expected == pytest.approx(made.answers[0].probability, abs=1e-6)
    assert ("questions", True) == (caught.value.param, made.answers[1].choice in ("billing", "support", True))
