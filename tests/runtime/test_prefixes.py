"""Keys and values of earlier requests: reused where a request begins alike, never across adapters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.running import PROMPT, Packages, engine_of, held

from hivellm_ort import Expert, ExpertManager
from hivellm_ort.engine.prefix_cache import PrefixCache

LONG = "select name, age and city from users where age is over thirty, " * 3
OPTIONS: dict[str, Any] = {"temperature": 0, "max_tokens": 20}


def block(length: int) -> np.ndarray:
    """Keys and values of so many tokens, 8 bytes a token."""
    return np.zeros((2, 1, length, 1), np.float32)


def ids(begin: int, count: int) -> list[int]:
    """Tokens that no other beginning shares."""
    return list(range(begin, begin + count))


def test_longest_beginning_is_found() -> None:
    """The entry that agrees longest serves, and only one of the same adapter."""
    cache = PrefixCache(1 << 20)
    cache.add("a", ids(0, 40), block, 8)
    cache.add("a", ids(0, 30) + ids(100, 50), block, 8)
    cache.add("b", ids(0, 60), block, 8)
    entry, length = cache.find("a", ids(0, 30) + ids(100, 20) + [7])
    assert (50, 80) == (length, 0 if entry is None else len(entry.token_ids))
    assert 40 == cache.find("a", ids(0, 60))[1]
    assert (None, 0) == cache.find("c", ids(0, 60))
    assert (None, 0) == cache.find("a", ids(0, 10))
    assert (None, 0) == cache.find("a", ids(5, 60))


def test_an_entry_takes_the_place_of_its_beginning() -> None:
    """A prefix of a longer entry is kept once, and is not copied again."""
    cache = PrefixCache(1 << 20)
    cache.add("a", ids(0, 40), block, 8)
    cache.add("a", ids(0, 60), block, 8)
    assert 60 * 8 == cache.nbytes

    def fail(_: int) -> np.ndarray:
        raise AssertionError("copied again")

    cache.add("a", ids(0, 50), fail, 8)
    cache.add("a", ids(0, 60), fail, 8)
    assert 60 == cache.find("a", ids(0, 60))[1]


def test_budget() -> None:
    """The least recently used entry is evicted first. Too large and too short prefixes are not kept."""
    cache = PrefixCache(100 * 8)
    cache.add("a", ids(0, 40), block, 8)
    cache.add("a", ids(1000, 40), block, 8)
    cache.find("a", ids(0, 40))
    cache.add("a", ids(2000, 40), block, 8)
    assert [40, 0, 40] == [cache.find("a", ids(begin, 40))[1] for begin in (0, 1000, 2000)]
    cache.add("a", ids(3000, 101), block, 8)
    cache.add("a", ids(4000, 15), block, 8)
    assert 80 * 8 == cache.nbytes
    cache.clear("b")
    assert 80 * 8 == cache.nbytes
    cache.clear("a")
    assert 0 == cache.nbytes


def test_same_prompt_again(lora: Expert) -> None:
    """Of a known prompt only the last two tokens are read again, and the answer is the same."""
    engine_of(lora).prefixes.clear()
    first, second = (lora.generate(LONG, **OPTIONS) for _ in range(2))
    assert (0, first.prompt_tokens - 2) == (first.cached_tokens, second.cached_tokens)
    assert first.tokens == second.tokens
    third = lora.generate(LONG + "and more", **OPTIONS)
    assert 0 < third.cached_tokens < first.prompt_tokens - 2


def test_prompts_after_a_swap(packages: Packages) -> None:
    """The same prompt to one expert after the other reads it anew: keys and values are the adapter's."""
    with ExpertManager(cache_dir=packages.cache, threads=1, trust="off") as manager:
        for name in ("lora", "dora", "ia3"):
            manager.load_expert(name, getattr(packages, name))
        engine = engine_of(held(manager, "lora"))
        alone = {}
        for name in ("lora", "dora", "ia3"):
            engine.prefixes.clear()
            alone[name] = manager.generate(name, LONG, **OPTIONS).tokens
        engine.prefixes.clear()
        assert 3 == len(set(alone.values()))
        for round_ in range(3):
            for name, tokens in alone.items():
                result = manager.generate(name, LONG, **OPTIONS)
                assert tokens == result.tokens
                assert (round_ > 0) == (result.cached_tokens > 0)


def test_chat_goes_on_where_it_was(lora: Expert) -> None:
    """The next turn of a conversation reads what is new, not the history."""
    engine_of(lora).prefixes.clear()
    first = lora.generate(LONG, **OPTIONS)
    history = [{"role": "user", "content": LONG}, {"role": "assistant", "content": first.text}]
    second = lora.generate("and then?", messages=history, **OPTIONS)
    assert first.prompt_tokens <= second.cached_tokens < second.prompt_tokens


def test_rows_of_a_batch_share_a_beginning(lora: Expert) -> None:
    """The second row of a batch need not read what the first has read."""
    engine_of(lora).prefixes.clear()
    results = lora.generate_batch([LONG + str(i) for i in range(4)], **OPTIONS)
    assert 0 == results[0].cached_tokens
    assert all(result.cached_tokens > results[0].prompt_tokens // 2 for result in results[1:])


def test_closing_frees(packages: Packages) -> None:
    """The prefixes of an expert are dropped when it is closed; those of others stay."""
    with packages.load("lora") as lora, packages.load("dora") as dora:
        prefixes = engine_of(lora).prefixes
        prefixes.clear()
        lora.generate(LONG, **OPTIONS)
        dora.generate(LONG, **OPTIONS)
        both = prefixes.nbytes
        lora.close()
        assert 0 < prefixes.nbytes < both


@pytest.mark.parametrize("name", ["lora", "merged"])
def test_nothing_is_kept_without_a_budget(name: str, packages: Packages) -> None:
    """With no bytes allowed every prompt is read whole."""
    package, cache = getattr(packages, name), packages.cache
    with packages.load(name) as first:
        first.generate(PROMPT * 9, **OPTIONS)
        assert engine_of(first).prefixes.nbytes > 0
    # Of no base that another test has in memory: this is one with threads of its own.
    with Expert.load(package, cache_dir=cache, threads=2, trust="off", prefix_cache_bytes=0) as expert:
        assert [0, 0] == [expert.generate(PROMPT * 9, **OPTIONS).cached_tokens for _ in range(2)]
        assert 0 == engine_of(expert).prefixes.nbytes
