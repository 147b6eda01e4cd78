"""Which expert a question is for, why, and when the base model itself answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from managing import Gate, Variants, managed, together
from support.rows import begun
from support.running import Packages, held

from hivellm_ort import ExpertManager, LoadError, OptionError, OptionTypeError, UnknownExpertError

SQL = "show all tables of the database with a join"
JSON = "repair this JSON document, a comma is missing"
NOTHING = "good morning"


@pytest.fixture
def manager(packages: Packages, variants: Variants) -> Iterator[ExpertManager]:
    """A manager with an expert for SQL and one for JSON."""
    with managed(packages) as manager:
        routing = {"keywords": ["table", "join", "tables"], "priority": 0.6}
        manager.load_expert("sql", variants.make("expert-s", routing=routing))
        routing = {"keywords": ["json", "comma"], "exclude_keywords": ["table"]}
        manager.load_expert("json", variants.make("expert-j", "dora", routing=routing))
        yield manager


def test_the_expert_that_fits(manager: ExpertManager) -> None:
    """It is chosen by a prompt, by messages, by a system message or schema, and by tags."""
    for prompt, name, package in ((SQL, "sql", "expert-s"), (JSON, "json", "expert-j")):
        messages = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
        chosen = [
            manager.choose(prompt),
            manager.choose(prompt, or_base=True),
            manager.choose(messages=messages),
            manager.choose(NOTHING, system=prompt),
            manager.choose(NOTHING, schema=prompt),
        ]
        assert [name] * 5 == chosen
        assert package == manager.generate(chosen[0], prompt, max_tokens=1).expert


def test_reasons(manager: ExpertManager) -> None:
    """All fitting experts are listed with their reasons."""
    routes = manager.route("a join of a table with json")
    assert ["sql"] == [route.name for route in routes]
    assert any("table" in reason for reason in routes[0].reasons)
    assert [] == manager.route(NOTHING)
    assert ["json"] == [route.name for route in manager.route(JSON)]


def test_what_is_loaded_decides(manager: ExpertManager) -> None:
    """After unloading and loading others are chosen; threads that ask meanwhile get one or the other."""
    assert "expert-s" == manager.generate(manager.choose(SQL), SQL, max_tokens=1).expert
    stop = threading.Event()

    def change() -> None:
        path = manager._registry.get("json").load.args[0]
        for number in range(20):
            manager.load_expert(f"again {number}", path)
            manager.unload_expert(f"again {number}")
        stop.set()

    def ask() -> None:
        while not stop.is_set():
            assert "expert-s" == manager.generate(manager.choose(SQL), SQL, max_tokens=1).expert

    together([change, ask, ask])
    manager.unload_expert("sql")
    with pytest.raises(UnknownExpertError, match="no expert fits the prompt; loaded are: 'json'"):
        manager.choose(SQL)


def test_the_base_itself(manager: ExpertManager) -> None:
    """If no expert fits, `or_base` chooses the base, which answers with its own tokens."""
    with pytest.raises(UnknownExpertError, match=r"no expert fits.*or_base=True"):
        manager.choose(NOTHING)
    assert manager.BASE == manager.choose(NOTHING, or_base=True)
    result = manager.generate(manager.BASE, NOTHING, max_tokens=20)
    assert [result.tokens] == [
        one.tokens for one in manager.generate_batch([("base", NOTHING)], max_tokens=20)
    ]
    expert = held(manager, "sql")
    row = begun(expert.shared_base.engine, None, 256)
    messages = [{"role": "user", "content": NOTHING}]
    pending = expert.shared_base.template.encode(
        messages, expert.shared_base.tokenizer, enable_thinking=False
    ).token_ids
    expected: list[int] = []
    for _ in range(len(result.tokens)):
        expected.append(int(row.forward(pending).argmax()))
        pending = [expected[-1]]
    assert tuple(expected) == result.tokens
    assert 5 < len(expected)
    assert expert.base.name == result.expert
    assert result.tokens != manager.generate("sql", NOTHING, max_tokens=20).tokens


def test_names_are_never_guessed(manager: ExpertManager) -> None:
    """An unknown name is an error, also if it looks like a prompt. No expert may have the base's name."""
    for name in ("sqll", "SQL", "", SQL):
        for call in (manager.generate, manager.generate_stream):
            with pytest.raises(UnknownExpertError, match="no expert is loaded as"):
                call(name, NOTHING)
    with pytest.raises(OptionTypeError, match="the name of the expert is NoneType"):
        manager.generate(None, NOTHING)  # type: ignore[arg-type]
    for missing in ({}, {"messages": [{"role": "system", "content": "x"}]}):
        with pytest.raises(OptionError, match="nothing to answer"):
            manager.choose(**missing, or_base=True)  # type: ignore[arg-type]
    path = manager._registry.get("json").load.args[0]
    with pytest.raises(OptionError, match="'base' is the name of the base model"):
        manager.load_expert("base", path)


def test_base_beside_experts(manager: ExpertManager) -> None:
    """Requests to the base share steps with those of experts, and every answer is its own."""
    alone = [
        manager.generate("base", NOTHING, max_tokens=15).tokens,
        manager.generate("sql", NOTHING, max_tokens=15).tokens,
        manager.generate("json", NOTHING, max_tokens=15).tokens,
    ]
    assert 3 == len(set(alone))
    most: list[int] = []
    manager.events.add(lambda event: most.append(getattr(event, "rows", 0)))
    gate = Gate()
    first = manager.generate_stream("sql", NOTHING, max_tokens=15, processors=[gate])
    assert gate.reached.wait(20)
    streams = [manager.generate_stream("base", NOTHING, max_tokens=15) for _ in range(2)]
    streams += [manager.generate_stream(name, NOTHING, max_tokens=15) for name in ("sql", "json")]
    gate.open.set()
    for stream in (first, *streams):
        list(stream)
    expected = [alone[1], alone[0], alone[0], alone[1], alone[2]]
    assert expected == [stream.result.tokens for stream in (first, *streams)]
    assert 5 == max(most)
    counts = manager.metrics.snapshot()["requests_total"]
    assert 3 == sum(counts["base"].values())
    assert [1 + 1 + 1, 1 + 1] == [info.hits for info in manager.list_loaded_experts()]


def test_no_base_to_ask(packages: Packages) -> None:
    """Without experts, or with merged experts only, there is no base. With two bases the name is ambiguous."""
    with managed(packages) as manager:
        with pytest.raises(UnknownExpertError, match="no expert is loaded"):
            manager.generate("base", NOTHING)
        manager.load_expert("merged", packages.merged)
        with pytest.raises(UnknownExpertError, match="a merged expert has none"):
            manager.generate("base", NOTHING)
        manager.load_expert("lora", packages.lora)
        assert "tiny" == manager.generate("base", NOTHING, max_tokens=1).expert
        manager.load_expert("short", packages.short)
        with pytest.raises(LoadError, match="several bases"):
            manager.generate("base", NOTHING)
