"""The expert workload: three experts in turns, each with a long schema that its requests share, under grammars.

A request is about 300 tokens of schema in the system message, a short question, and about 60 tokens of answer. Every
round asks other questions.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from harness.models import EXPERTS, ROOT

__all__ = ["MAX_TOKENS", "encode", "heldout", "requests"]

MAX_TOKENS = 160
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_SERVICES = [
    "apache",
    "nginx",
    "redis",
    "mysql",
    "postgresql",
    "logstash",
    "kafka",
    "haproxy",
    "traefik",
    "mongodb",
    "rabbitmq",
    "etcd",
]
_FIELDS = [
    "host.name",
    "host.ip",
    "source.ip",
    "destination.ip",
    "process.name",
    "process.pid",
    "event.type",
    "event.action",
    "message",
    "status",
    "tags",
    "category",
    "url.path",
    "url.query",
    "user.name",
    "user.id",
    "log.level",
    "http.request.method",
    "http.response.status_code",
    "trace.id",
]

_TABLES = "\n".join(
    f"CREATE TABLE {table} (id INT PRIMARY KEY, {columns}, created_at TIMESTAMPTZ);"
    for table, columns in {
        "customers": "name TEXT, email VARCHAR(255), city TEXT, country TEXT, age INT",
        "orders": "customer_id INT, status VARCHAR(50), total NUMERIC, discount INT, country TEXT",
        "products": "title VARCHAR(255), category TEXT, price NUMERIC, stock INT, rating INT",
        "reviews": "product_id INT, customer_id INT, score INT, body TEXT",
        "shipments": "order_id INT, carrier TEXT, weight INT, city TEXT, state VARCHAR(50)",
        "employees": "full_name TEXT, department VARCHAR(50), salary INT, experience_years INT",
        "invoices": "order_id INT, amount NUMERIC, currency TEXT, paid BOOLEAN, due_date DATE",
    }.items()
)
_MAPPING = "\n".join(f"{name}: {'long' if number % 3 else 'keyword'}, indexed, documented, stored as doc values"
                     for number, name in enumerate(_FIELDS))  # fmt: skip
_JSON_SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            name: {"type": kind, "description": f"the {name.replace('_', ' ')} of the item in the stock list"}
            for name, kind in {
                "id": "integer",
                "name": "string",
                "price": "number",
                "in_stock": "boolean",
                "colour": "string",
                "weight": "integer",
                "maker": "string",
                "country": "string",
            }.items()
        },
        "required": ["id", "name", "price"],
    }
)
_SYSTEM = {
    "sql": f"Dialect: postgres\nSchema:\n{_TABLES}",
    "elastic": f"Dialect: elastic\nTask: mapping_create\nDomain: service:logs\nSchema:\n{_MAPPING}",
    "json": f"Task: json_correction\nFormat: json_schema\nError type: syntax_error\nSchema:\n{_JSON_SCHEMA}",
}
_GRAMMARS = {"sql": "sql", "elastic": "json", "json": "json"}


def _question(expert: str, number: int) -> str:
    if expert == "sql":
        month, year = _MONTHS[number % 12], 2000 + number % 23
        column = ("total", "discount")[number % 2]
        return f"Get the mean {column} of orders that were created in {month} {year} by status, highest first"
    if expert == "elastic":
        fields = random.Random(number).sample(_FIELDS, 3)
        service = _SERVICES[number % 12]
        return (
            f"Create an ECS mapping for {service} logs with fields {fields[0]}, {fields[1]}, and {fields[2]}."
        )
    item = {"id": number, "name": f"kettle {number}", "price": 10 + number % 80, "in_stock": number % 2 == 0}
    item |= {"colour": "red", "weight": 3 * number, "maker": "Smith", "country": "Norway"}
    return "Fix this invalid JSON:\n" + json.dumps(item)[:-1] + ",}"


def requests(source: Path) -> Iterator[dict[str, Any]]:
    """Requests without end, the experts in turns.

    Args:
        source: the Hugging Face folder, for its tokenizer.
    """
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    grammars = {name: _grammar(name) for name in set(_GRAMMARS.values())}
    for number, expert in zip(itertools.count(), itertools.cycle(EXPERTS), strict=False):
        question = _question(expert, number)
        yield {
            "expert": expert,
            "system": _SYSTEM[expert],
            "user": question,
            "prompt_ids": encode(tokenizer, _SYSTEM[expert], question),
            "grammar": grammars[_GRAMMARS[expert]],
            "enforce": True,
            "max_tokens": MAX_TOKENS,
        }


def heldout(folder: Path, source: Path, expert: str) -> list[dict[str, Any]]:
    """The held-out prompts of an expert with their answers, without a grammar.

    Args:
        folder: holds `expert-NAME/heldout.jsonl`, with `system`, `user` and `answer` in every line.
        source: the Hugging Face folder, for its tokenizer.
        expert: its name.
    """
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    lines = (folder / f"expert-{expert}" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {
            "expert": expert,
            "system": row["system"],
            "user": row["user"],
            "reference": row["answer"],
            "prompt_ids": encode(tokenizer, row["system"], row["user"]),
            "grammar": {},
            "enforce": False,
            "length": None,
            "max_tokens": MAX_TOKENS,
        }
        for row in map(json.loads, lines)
    ]


def encode(tokenizer: Tokenizer, system: str, user: str) -> list[int]:
    """The prompt in ChatML, as the experts were trained on it."""
    text = "".join(
        f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in (("system", system), ("user", user))
    )
    ids: list[int] = tokenizer.encode(text + "<|im_start|>assistant\n", add_special_tokens=False).ids
    return ids


def _grammar(name: str) -> dict[str, str]:
    """A grammar in the notations that the peers read: GBNF, and Lark for llguidance."""
    from hivellm_ort.grammar.gbnf import parse_gbnf
    from hivellm_ort.grammar.lark import to_lark
    from hivellm_ort.grammar.normalise import normalise

    text = (ROOT / "models" / f"expert-{name}" / "grammar.gbnf").read_text(encoding="utf-8")
    return {"gbnf": text, "lark": to_lark(normalise(parse_gbnf(text)), exact=False)}
