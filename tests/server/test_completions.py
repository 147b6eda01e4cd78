"""`/v1/completions`, `/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing import Any

import pytest
from api_calls import QUESTION, chunks, error_of
from fastapi.testclient import TestClient

from hivellm_ort import ExpertManager

PATH = "/v1/completions"


def asked(prompt: Any = QUESTION, **fields: Any) -> dict[str, Any]:
    """The body of a request."""
    return {"model": "sql", "prompt": prompt, **fields}


def test_a_completion_is_the_managers(client: TestClient, manager: ExpertManager) -> None:
    """A prompt of text or tokens is encoded without a template."""
    token_ids = manager.tokenizer("sql").encode(QUESTION)
    options: dict[str, Any] = {"temperature": 1, "seed": 4, "max_tokens": 10}
    expected = manager.generate("sql", prompt_ids=token_ids, **options)
    for prompt in (QUESTION, token_ids, [QUESTION], [token_ids]):
        answer = client.post(PATH, json=asked(prompt, **options)).json()
        assert ("text_completion", "sql") == (answer["object"], answer["model"])
        assert [{"index": 0, "text": expected.text, "logprobs": None, "finish_reason": "length"}] == answer[
            "choices"
        ]
        assert (len(token_ids), 10) == (
            answer["usage"]["prompt_tokens"],
            answer["usage"]["completion_tokens"],
        )


def test_several_prompts_with_several_answers(client: TestClient, manager: ExpertManager) -> None:
    """The answers to a prompt stand together, in the order of the prompts; `echo` puts the prompt before each."""
    prompts = ["users", "tables"]
    body = asked(prompts, n=2, temperature=1, seed=1, max_tokens=6, echo=True)
    answer = client.post(PATH, json=body).json()
    encode = manager.tokenizer("sql").encode
    expected = [
        prompt
        + manager.generate("sql", prompt_ids=encode(prompt), temperature=1, seed=seed, max_tokens=6).text
        for prompt in prompts
        for seed in (1, 2)
    ]
    assert expected == [choice["text"] for choice in answer["choices"]]
    assert [0, 1, 2, 3] == [choice["index"] for choice in answer["choices"]]
    assert sum(len(encode(prompt)) for prompt in prompts) == answer["usage"]["prompt_tokens"]


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_is_the_completion(echo: bool, client: TestClient) -> None:
    """The chunks together are the texts, with the counts at the end."""
    body = asked(["users", "tables"], temperature=1, seed=1, max_tokens=8, echo=echo)
    expected = client.post(PATH, json=body).json()
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    *found, last = chunks(client.post(PATH, json=body).text)
    assert 1 == len({chunk["id"] for chunk in found})
    for choice in expected["choices"]:
        own = [chunk["choices"][0] for chunk in found if chunk["choices"][0]["index"] == choice["index"]]
        assert choice["text"] == "".join(one["text"] for one in own)
        assert "length" == own[-1]["finish_reason"]
    assert expected["usage"]["total_tokens"] == last["usage"]["total_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(stream: bool, client: TestClient, manager: ExpertManager) -> None:
    """Tokens, their probabilities, the likeliest and their places are lists of one length."""
    expected = manager.generate(
        "sql", prompt_ids=manager.tokenizer("sql").encode(QUESTION), max_tokens=5, logprobs=2
    )
    assert expected.logprobs is not None
    response = client.post(PATH, json=asked(max_tokens=5, logprobs=2, stream=stream))
    documents = chunks(response.text) if stream else [response.json()]
    parts = [document["choices"][0]["logprobs"] for document in documents]
    told = {
        name: [one for part in parts if part for one in part[name]]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    }
    assert [5] * 4 == [len(values) for values in told.values()]
    assert [one.logprob for one in expected.logprobs] == pytest.approx(told["token_logprobs"], abs=1e-4)
    assert [sum(map(len, told["tokens"][:index])) for index in range(5)] == told["text_offset"]
    assert {1, 2} >= {len(top) for top in told["top_logprobs"]}  # two tokens may have one text


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": None}, "prompt", "a text, a list of token ids"),
        ({"prompt": []}, "prompt", "0 prompts"),
        ({"prompt": ["a"] * 17}, "prompt", "17 prompts; 1 to 16 are allowed"),
        ({"prompt": ["a", 5]}, "prompt[1]", "a text, a list of token ids"),
        ({"prompt": [True]}, "prompt[0]", "a text, a list of token ids"),
        ({"prompt": ""}, "prompt", "prompt is empty"),
        ({"prompt": [10**6]}, "prompt", "prompt[0] is 1000000: the vocabulary has the ids"),
        ({"suffix": "x"}, "suffix", "do not fill gaps"),
        ({"best_of": 2}, "best_of", "ask for n"),
        ({"echo": True, "logprobs": 1}, "echo", "log probabilities of the prompt are unavailable"),
        ({"logprobs": 21}, "logprobs", "0 to 20"),
        ({"messages": []}, "messages", "not a field"),
        ({"tools": []}, "tools", "not a field"),
        ({"model": "auto", "prompt": ["a", "b"]}, "model", "one prompt"),
        ({"model": "auto", "prompt": [1, 2]}, "model", "needs a question"),
    ],
)
def test_fields_that_are_wrong(fields: dict[str, Any], param: str, message: str, client: TestClient) -> None:
    """The error names the field."""
    response = client.post(PATH, json={**asked(), **fields})
    error = error_of(response)
    assert (400, param) == (response.status_code, error["param"])
    assert message in error["message"]


def test_tokens_of_a_text_and_back(client: TestClient, manager: ExpertManager) -> None:
    """`/tokenize` and `/detokenize` are the base's tokenizer."""
    tokenizer = manager.tokenizer("sql")
    body = {"model": "base", "prompt": "<|im_start|>users é", "return_token_strs": True}
    found = client.post("/tokenize", json=body).json()
    expected = tokenizer.encode("<|im_start|>users é")
    assert {
        "count": len(expected),
        "max_model_len": 512,
        "tokens": expected,
        "token_strs": [tokenizer.id_to_token(token_id) for token_id in expected],
    } == found
    back = client.post("/detokenize", json={"model": "sql", "tokens": expected}).json()
    assert {"prompt": "<|im_start|>users é"} == back


def test_tokens_of_a_conversation(client: TestClient, manager: ExpertManager) -> None:
    """Messages are counted as the model would read them."""
    messages = [{"role": "user", "content": QUESTION}]
    found = client.post("/tokenize", json={"model": "sql", "messages": messages}).json()
    assert manager.generate("sql", QUESTION, max_tokens=1).prompt_tokens == found["count"]
    assert manager.prompt_ids("sql", QUESTION) == found["tokens"]
    assert found["token_strs"] is None


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"prompt": "a", "tools": []}, "tools"),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": "a"}], "add_special_tokens": True},
            "add_special_tokens",
        ),
        ("/tokenize", {"prompt": "a", "x": 1}, "x"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1, 10**7]}, "tokens[1]"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [2**32]}, "tokens[0]"),
        ("/detokenize", {"tokens": [10**30]}, "tokens[0]"),
        ("/v1/completions", {"prompt": [2**32], "echo": True}, "prompt"),
        ("/v1/completions", {"prompt": [[1], [-1]], "echo": True}, "prompt"),
        ("/v1/completions", {"prompt": [10**30]}, "prompt"),
    ],
)
def test_wrong_questions_about_tokens(
    path: str, body: dict[str, Any], param: str, client: TestClient
) -> None:
    """The error names the field."""
    response = client.post(path, json={"model": "sql", **body})
    assert (400, param) == (response.status_code, error_of(response)["param"])
