"""Hostile bodies: each is refused, and the server answers the next request normally."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from api_calls import chat, error_of
from raw_http import post
from serving_command import Command

pytestmark = pytest.mark.usefixtures("goes_on")
Server = tuple[Command, httpx.Client]


def bomb(levels: int) -> dict[str, Any]:
    """A schema that doubles with every level."""
    two = [[{"$ref": f"#/$defs/d{level + 1}"}] * 2 for level in range(levels)]
    defs: dict[str, Any] = {
        f"d{level}": {"type": "array", "prefixItems": pair, "minItems": 2} for level, pair in enumerate(two)
    }
    return {"$defs": {**defs, f"d{levels}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


LOOP = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
NESTED: dict[str, Any] = {"type": "integer"}
for _level in range(12):
    NESTED = {"anyOf": [NESTED, {"type": "array", "items": NESTED}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 10**6}, "n"),
        ({"n": -1}, "n"),
        ({"stop": ["x"] * 10_000}, "stop"),
        ({"stop": "x" * 100_000}, "stop"),
        ({"bad_words": ["x" * 100_000]}, "bad_words[0]"),
        ({"bad_words": [f"w{number}" for number in range(50_000)]}, "bad_words"),
        ({"logit_bias": {str(number): 1 for number in range(50_000)}}, "logit_bias"),
        ({"logit_bias": {"9" * 4000: 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 6000: 1}}, "logit_bias"),
        ({"logit_bias": {"٣": 1}}, "logit_bias"),
        ({"tools": [{"type": "function", "function": {"name": f"f{n}"}} for n in range(10_000)]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f" * 70_000}}]}, "tools[0]"),
        ({"messages": [{"role": "user", "content": "a"}] * 20_000}, None),
        ({"messages": [{"role": "user", "content": "ab " * 1_000_000}]}, None),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 30_000}]}, None),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"seed": -1}, "seed"),
        ({"seed": -(10**400)}, None),
        ({"top_k": 10**400}, None),
        ({"top_logprobs": 10**400, "logprobs": True}, None),
        ({"temperature": 10**30}, "temperature"),
        ({"model": "x" * 1_000_000}, "model"),
        ({"model": "sql\r\nset-cookie: a=b\x1b[2J\u202e\0"}, "model"),
        ({"model": "../sql"}, "model"),
        ({"chat_template": "{% for a in range(10**9) %}{{ a }}{% endfor %}"}, "chat_template"),
        ({"chat_template_kwargs": {"enable_thinking": "{{ 9**9**9 }}"}}, "chat_template_kwargs.enable_thinking"),
        ({"json_schema": LOOP}, None),
        ({"json_schema": {"$ref": "#"}}, None),
        ({"json_schema": {"$ref": "https://evil.example/schema.json"}}, None),
        ({"json_schema": {"$ref": "file:///etc/passwd"}}, None),
        ({"json_schema": {"enum": [f"{number:08}" for number in range(20_000)]}}, "json_schema"),
        ({"regex": "(((a{1000}){1000}){1000})"}, None),
        ({"regex": "(" * 5000 + "a" + ")" * 5000}, None),
        ({"grammar": 'root ::= root "a"'}, None),
        ({"grammar": 'root ::= "a"{1,1000000000}'}, None),
        ({"grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000}, None),
        ({"choice": ["x" * 70_000]}, "choice"),
        ({"metadata": {"a": {"b": 1}}}, "metadata.a"),
    ],
)  # fmt: skip
def test_fields_that_ask_for_too_much(fields: dict[str, Any], param: str | None, server: Server) -> None:
    """The field is named, nothing of it is echoed at length, and the error comes soon."""
    response = post(server[1], "/v1/chat/completions", json.dumps({**chat(), **fields}))
    assert (404 if param == "model" else 400) == response.status_code
    error = error_of(response)
    assert param is None or param == error["param"]
    assert len(error["message"]) < 2000
    assert error["message"].isprintable()
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize(
    "fields",
    [
        {"json_schema": bomb(40)},
        {"json_schema": NESTED},
        {"json_schema": {"allOf": [{"properties": {f"p{n}": {"type": "integer"}}} for n in range(200)]}},
        {"json_schema": {"type": "string", "pattern": "^(x+x+)+y$"}},
        {"json_schema": {"type": "string", "pattern": "(((a{1000}){1000}){1000})"}},
        {"json_schema": {"type": "string", "minLength": 10**9}},
        {"json_schema": {"type": "array", "items": {}, "minItems": 10**9}},
        {"regex": "((a*)*)*"},
        {"seed": 10**30, "temperature": 1},
        {"regex": "(a|aa)+" * 100},
        {"choice": [f"{number:06}" for number in range(5000)]},
        {"grammar": "root ::= " + " | ".join(f'"{number:06}"' for number in range(3000))},
        {"messages": [{"role": "user", "content": "{{ 9**9**9 }} {% for a in range(10**9) %}x{% endfor %}"}]},
        {"stop": ["\0", "\n" * 1000], "user": "\x1b[2J"},
    ],
)  # fmt: skip
def test_what_only_looks_dangerous(fields: dict[str, Any], server: Server) -> None:
    """It is refused or answered quickly."""
    response = post(server[1], "/v1/chat/completions", json.dumps({**chat(max_tokens=8), **fields}))
    assert response.status_code in (200, 400)
    if response.status_code == 400:
        error_of(response)


DEEP = b'{"a": ' * 200_000 + b"1" + b"}" * 200_000


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (DEEP, 400, "invalid_json"),
        (b"[" * 3_000_000, 400, "invalid_json"),
        (b'{"a": 1, "a": 2}', 400, "invalid_json"),
        (b'{"seed": NaN}', 400, "invalid_json"),
        (b'{"seed": -Infinity}', 400, "invalid_json"),
        (b'{"seed": ' + b"9" * 100_000 + b"}", 400, "invalid_json"),
        (b'{"seed": 1e' + b"9" * 100_000 + b"}", 400, "invalid_json"),
        (b'{"model": "\xff\xfe\xc0\xaf"}', 400, "invalid_json"),
        (b'{"model": "\xed\xa0\x80"}', 400, "invalid_json"),
        (b'{"model": "\\ud800"}', 400, "invalid_json"),
        (b'{"model": "\\udc00\\ud800"}', 400, "invalid_json"),
        (b'{"model": "a\0b"}', 400, "invalid_json"),
        (b"\x1f\x8b\x08" + b"\0" * 1000, 400, "invalid_json"),
        (b'{"a": [' + b",".join([b"1"] * 1_000_000) + b"]}", 400, "invalid_json"),
        (b'{"a": [' + b",".join([b"{}"] * 1_000_000) + b"]}", 400, "invalid_json"),
        (b"{" + b",".join(b'"%d":{}' % number for number in range(300_000)) + b"}", 400, "invalid_json"),
        (b'{"logit_bias": {' + b",".join(b'"%d":1' % n for n in range(1_000_000)) + b"}}", 413, "body_too_large"),
        (b'{"messages": [' + b",".join([b'{"role":"user","content":"a"}'] * 100_000) + b"]}", 400, "invalid_json"),
        (b" " * 4_000_000, 400, "invalid_json"),
        (b"null", 400, "invalid_json"),
        (b'"' + b"x" * 4_000_000, 400, "invalid_json"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/chat/completions"])
def test_bodies(path: str, body: bytes, status: int, code: str, server: Server) -> None:
    """Invalid JSON of any size is refused."""
    response = post(server[1], path, body)
    assert (status, code) == (response.status_code, error_of(response)["code"])
    assert len(response.text) < 2000


@pytest.mark.parametrize(
    ("path", "fields", "status", "param"),
    [
        ("/v1/completions", {"prompt": [2**70]}, 400, "prompt"),
        ("/v1/completions", {"prompt": [-1]}, 400, "prompt"),
        ("/v1/completions", {"prompt": [10**30]}, 400, "prompt"),
        ("/v1/completions", {"prompt": [1] * 90_000}, 400, None),
        ("/v1/completions", {"prompt": ["a"] * 10_000}, 400, "prompt"),
        ("/v1/completions", {"prompt": [[2**70]], "echo": True}, 400, "prompt"),
        ("/v1/completions", {"prompt": [[]]}, 400, None),
        ("/v1/completions", {"prompt": ["a", "a" * 3_000_000]}, 400, "prompt"),
        ("/v1/completions", {"prompt": "a", "logprobs": 10**30}, 400, "logprobs"),
        ("/detokenize", {"tokens": [2**70]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [1] * 90_000}, 200, None),
        ("/tokenize", {"prompt": "a" * 3_000_000}, 400, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}] * 20_000}, 400, "messages"),
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "../../etc/passwd"}, 403, "lora_path"),
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/etc/passwd"}, 403, "lora_path"),
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "sql.expert\0"}, 403, "lora_path"),
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "a/" * 100_000}, 403, "lora_path"),
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "\\\\evil\\share"}, 404, "lora_path"),
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "%2e%2e/%2e%2e"}, 404, "lora_path"),
        ("/v1/load_lora_adapter", {"lora_name": "x\r\ny: z", "lora_path": "sql.expert"}, 400, "lora_name"),
        ("/v1/load_lora_adapter", {"lora_name": "x" * 1000, "lora_path": "sql.expert"}, 400, "lora_name"),
        ("/v1/unload_lora_adapter", {"lora_name": "x\x1b[2J" * 10_000}, 400, "lora_name"),
    ],
)  # fmt: skip
def test_other_routes(
    path: str, fields: dict[str, Any], status: int, param: str | None, server: Server
) -> None:
    """Tokens that are none, texts that are too long, and paths that lead out."""
    body = fields if "lora" in path else {"model": "sql", **fields}
    response = post(server[1], path, json.dumps(body))
    assert status == response.status_code
    if status != 200:
        error = error_of(response)
        assert param is None or param == error["param"]
        assert len(error["message"]) < 2000
        assert error["message"].isprintable()
