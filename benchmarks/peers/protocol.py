"""How a worker talks: one line of JSON in, one line of JSON out.

Every script `<peer>_worker.py` here runs inside that peer's environment and imports only its packages, NumPy and the
standard library. Its argument is a JSON object, the spec:

    {"folder": "…", "precision": "int8", "threads": 2, "end": 2, "experts": {"sql": "…"}, "spawned": 1790000000.0}

`end` is the id that ends an answer, `spawned` the time at which the process was started. It answers
`{"ready": true, "import_seconds": …, "load_seconds": …, "versions": {…}}` once the model is loaded, and then one
line to every request. `op` names a method of `Peer`; the other members are its arguments. What a peer cannot do is
answered with `{"unsupported": "why"}`, what fails with `{"error": "…"}`; the next request is answered all the same.
Seconds are of wall-clock time and cover what the method says, never reading requests or writing answers.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Peer", "UnsupportedError", "difference", "serve"]


class UnsupportedError(Exception):
    """This peer cannot do that; the message says why, for the report."""


class Peer:
    """What a worker may be asked; every method that a peer does not override is unsupported."""

    def generate(self, prompt_ids: list[int], new_tokens: int, adapter: str | None = None) -> dict[str, Any]:
        """Greedy decoding to a fixed length, whatever the model would end with.

        Args:
            prompt_ids: never seen before, so that nothing kept of earlier prompts helps.
            new_tokens: how many to generate.
            adapter: one that `add_adapter` made; None for the base.

        Returns:
            `prefill_seconds`, until the first token is chosen; `decode_seconds`, all others together; `tokens`.
        """
        raise UnsupportedError("no generation from token ids")

    def add_adapter(self, name: str, kind: str, rank: int, modules: list[str]) -> dict[str, Any]:
        """Make an adapter of random weights, `lora` or `dora`, on `modules` of every layer."""
        raise UnsupportedError("no adapters at run time")

    def swap(self, adapters: list[str], count: int) -> dict[str, Any]:
        """Change from adapter to adapter; `seconds` of each change."""
        raise UnsupportedError("no adapters at run time")

    def batch(
        self, prompts: list[list[int]], adapters: list[str | None], new_tokens: int, together: bool
    ) -> dict[str, Any]:
        """Answer prompts at once, or one after another; `seconds` of all of it."""
        raise UnsupportedError("no batches")

    def clients(
        self, prompts: list[list[int]], adapters: list[str], new_tokens: int, http: bool
    ) -> dict[str, Any]:
        """Answer prompts at once, each as a stream; `seconds` of all of it.

        Args:
            prompts: never seen before.
            adapters: of each.
            new_tokens: that each answer has, whatever the model would end with.
            http: whether clients in another process ask over HTTP, or threads of this one.
        """
        raise UnsupportedError("no server")

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request of the expert workload (`harness/workload.py`).

        Returns:
            `seconds`; `tokens`, how many; `text`; `valid`, whether a grammar was enforced to its end, None without.
        """
        raise UnsupportedError("no requests of token ids under a grammar")

    def answers(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        """Answer requests of several experts that come at the same time, as soon as all are answered.

        One after the other where a peer does not override this: it has a model for every expert.

        Returns:
            `seconds` of all of it, and `answers`, what `answer` gives for each.
        """
        begin = time.perf_counter()
        answers = [self.answer(request) for request in requests]
        return {"seconds": time.perf_counter() - begin, "answers": answers}

    def logits(self, ids: list[int], file: str) -> dict[str, Any]:
        """Write the logits after every token of `ids` to a NumPy file, float32 [len(ids), vocab]."""
        raise UnsupportedError("its API gives no logits")


def difference(whole: float, first: float) -> dict[str, float]:
    """Times of a peer that can only time whole requests: with all tokens, and with one."""
    return {"prefill_seconds": first, "decode_seconds": max(whole - first, 1e-9)}


def serve(load: Callable[[dict[str, Any]], Peer], distributions: tuple[str, ...]) -> None:
    """Load the model of the spec and answer requests until standard input ends.

    Args:
        load: makes the peer from the spec.
        distributions: whose versions to tell.
    """
    spec = json.loads(sys.argv[1])
    import_seconds = time.time() - spec["spawned"]
    # Libraries print what they like: they get standard error, and the answers a descriptor of their own.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    begin = time.perf_counter()
    try:
        peer = load(spec)
    except Exception as error:
        reply({"error": f"{type(error).__name__}: {error}"})
        return
    reply(
        {
            "ready": True,
            "import_seconds": import_seconds,
            "load_seconds": time.perf_counter() - begin,
            "versions": {name: _version(name) for name in distributions},
        }
    )
    for line in sys.stdin:
        reply(_answer(peer, json.loads(line)))


def _answer(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    method = getattr(peer, request.pop("op"))
    cpu = _cpu_seconds()
    try:
        result: dict[str, Any] = method(**request)
    except UnsupportedError as reason:
        return {"unsupported": str(reason)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {**result, "cpu_seconds": _cpu_seconds() - cpu}


def _cpu_seconds() -> float:
    """Of this process and of those that it has started and that have ended."""
    return sum(os.times()[:4])


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
