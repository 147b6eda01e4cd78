"""No more experts and bytes in memory than were allowed, however many are asked."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
from harness.clients import PROMPTS
from managing import STRESS, Variants, at_rest, managed, together
from support.running import PROMPT, Packages

from hivellm_ort import ExpertManager

_FIFTY = """
    import json, random, sys
    from concurrent.futures import ThreadPoolExecutor
    import psutil
    from hivellm_ort import ExpertManager

    cache, requests, *paths = sys.argv[1:]
    manager = ExpertManager(cache_dir=cache, threads=1, trust="off", max_loaded_experts=8)
    for number, path in enumerate(paths):
        manager.load_expert(str(number), path)
    draw, count, sizes, most, answers = random.Random(1), int(requests), [], 0, {}

    def ask(number):
        return number, manager.generate(str(number), "select the users", max_tokens=12).tokens

    with ThreadPoolExecutor(4) as pool:
        for begin in range(0, count, 20):
            for number, tokens in pool.map(ask, [draw.randrange(50) for _ in range(20)]):
                assert answers.setdefault(number, tokens) == tokens
            most = max(most, manager.stats()["loaded_experts"])
            sizes.append(psutil.Process().memory_info().rss)
    stats = manager.stats()
    manager.close()
    print(json.dumps({"sizes": sizes, "most": most, "evictions": stats["evictions"], "answers": len(answers),
                      "different": len(set(answers.values()))}))
"""


def test_fifty_experts(packages: Packages, variants: Variants) -> None:
    """50 thin experts of one base, eight in memory: resident memory does not grow after the first third."""
    paths = [variants.make(f"expert-{number}", factor=0.5 + number / 25) for number in range(50)]
    count = 2000 if STRESS else 300
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(_FIFTY),
        str(packages.cache),
        str(count),
        *map(str, paths),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert "" == done.stderr
    report = json.loads(done.stdout)
    settled = report["sizes"][len(report["sizes"]) // 3 :]
    assert max(settled) < 1.03 * settled[0]
    assert min(settled) > 0.97 * settled[0]
    assert report["most"] <= 8 + 4  # four requests at a time may need one more each
    assert report["evictions"] > count / 2
    assert report["answers"] >= 45
    assert report["different"] > 20


def _loaded(manager: ExpertManager) -> list[str]:
    return [info.name for info in manager.list_loaded_experts() if info.loaded]


def test_never_more_than_eight_at_rest(packages: Packages, variants: Variants) -> None:
    """After requests of many threads the least recently used are gone, and the last eight are there."""
    with managed(packages, max_loaded_experts=8) as manager:
        for number in range(20):
            manager.load_expert(str(number), variants.make(f"expert-{number}", factor=0.5 + number / 10))
        assert [str(number) for number in range(12, 20)] == _loaded(manager)
        together(
            [lambda n=n: manager.generate(str(n), PROMPT, max_tokens=3) for n in range(20)],
        )
        at_rest(manager)
        assert 8 == len(_loaded(manager)) == manager.stats()["loaded_experts"]
        for number in (3, 1, 4, 15, 9, 2, 6, 5):
            manager.generate(str(number), PROMPT, max_tokens=1)
        at_rest(manager)
        assert {"3", "1", "4", "15", "9", "2", "6", "5"} == set(_loaded(manager))
        assert 20 == len(manager.list_loaded_experts())


def _check_sums(manager: ExpertManager) -> int:
    """The bytes of a manager at rest, after a look at how they are made up."""
    at_rest(manager)
    stats = manager.stats()
    bases = stats["bases"]
    parts = [base[name] for base in bases for name in ("bytes", "key_value_bytes", "prefix_bytes")]
    assert stats["bytes"] == stats["adapter_bytes"] + sum(parts)
    infos = manager.list_loaded_experts()
    assert stats["adapter_bytes"] == sum(info.adapter_bytes for info in infos)
    assert all((info.adapter_bytes > 0) == info.loaded for info in infos)
    assert stats["loaded_experts"] == sum(info.loaded for info in infos)
    return stats["bytes"]


def test_memory_budget(packages: Packages) -> None:
    """Evicted are first prefixes, then adapters, then bases without adapters. A request loads them again."""
    names = ("lora", "dora", "short")

    def ask_all(manager: ExpertManager) -> dict[tuple[str, str], tuple[int, ...]]:
        requests = [(name, prompt) for name in names for prompt in PROMPTS[:3]]
        return {request: manager.generate(*request, max_tokens=20).tokens for request in requests}

    def ask_all_at_once(manager: ExpertManager) -> None:
        together([lambda: ask_all(manager) for _ in range(4)])

    with managed(packages) as manager:
        for name in names:
            manager.load_expert(name, getattr(packages, name))
        expected = ask_all(manager)
        _check_sums(manager)
        stats, infos = manager.stats(), manager.list_loaded_experts()
    adapters = {info.name: info.adapter_bytes for info in infos}
    prefixes = sum(base["prefix_bytes"] for base in stats["bases"])
    fixed = {base["name"]: base["bytes"] + base["key_value_bytes"] for base in stats["bases"]}
    assert prefixes > 0
    all_but_prefixes = sum(fixed.values()) + sum(adapters.values())

    budgets = {
        "all": all_but_prefixes + prefixes // 2,
        "no prefixes": all_but_prefixes,
        "one adapter each": sum(fixed.values()) + adapters["short"] + max(adapters["lora"], adapters["dora"]),
        "one base": fixed["tiny"] + adapters["lora"] + 1000,
        "nothing": 1,
    }
    found: dict[str, tuple[int, int, bool]] = {}
    for title, budget in budgets.items():
        with managed(packages, memory_budget=budget) as manager:
            for name in names:
                manager.load_expert(name, getattr(packages, name))
            ask_all_at_once(manager)  # with more rows, and so more bytes, than one after another
            at_rest(manager)
            assert manager.stats()["bytes"] <= budget or title == "nothing"
            assert expected == ask_all(manager)
            manager.generate("lora", PROMPT, max_tokens=20)
            assert _check_sums(manager) <= budget or title == "nothing"
            stats = manager.stats()
            kept = sum(base["prefix_bytes"] for base in stats["bases"])
            found[title] = (len(stats["bases"]), stats["loaded_experts"], kept > 0)
    assert (2, 3, True) == found["all"]
    assert (2, 3, False) == found["no prefixes"]
    assert (2, 2) == found["one adapter each"][:2]
    assert (1, 1) == found["one base"][:2]
    assert (0, 0, False) == found["nothing"]


def test_idle_bases_go_the_least_recently_used_first(packages: Packages) -> None:
    """Of two unused bases the last used one stays."""
    with managed(packages) as manager:
        for name in ("lora", "short", "merged"):
            manager.load_expert(name, getattr(packages, name))
            manager.generate(name, PROMPT, max_tokens=1)
        at_rest(manager)
        sizes = {info.base_sha256: info.name for info in manager.list_loaded_experts()}
        stats = {sizes[base["sha256"]]: base for base in manager.stats()["bases"]}
    bytes_of = {name: base["bytes"] + base["key_value_bytes"] for name, base in stats.items()}
    # After `merged` comes in, there is room for its own base and the larger of the others, without adapters.
    with managed(packages, memory_budget=bytes_of["merged"] + bytes_of["short"] + 1000) as manager:
        for name in ("lora", "short", "merged"):
            manager.load_expert(name, getattr(packages, name))
            manager.generate(name, PROMPT, max_tokens=1)
        at_rest(manager)
        bases = {sizes[base["sha256"]] for base in manager.stats()["bases"]}
        assert {"short", "merged"} == bases


@pytest.mark.parametrize("option", ["max_loaded_experts", "memory_budget"])
@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (-1, ValueError), (2.5, TypeError), ("8", TypeError), (True, TypeError)],
)
def test_wrong_limits(option: str, value: object, error: type[Exception]) -> None:
    """A limit is an integer from 1."""
    with pytest.raises(error, match=f"{option} is .*: .*, or None"):
        ExpertManager(**{option: value})  # type: ignore[arg-type]
