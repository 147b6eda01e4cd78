"""Clients of a server that ask for everything at once, and know the right answers."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any

import httpx

from harness.clients import KINDS as LIBRARY_KINDS

__all__ = ["BAD_BODIES", "KINDS", "TOKENS", "Answer", "ServerClient"]

TOKENS = 24
"""Most tokens of an answer."""

KINDS = {name: fields for name, fields in LIBRARY_KINDS.items() if name != "logprobs"}
"""Fields of a request, by a name for them. The library has options of the same names, but for `logprobs`."""

BAD_BODIES = (
    (b"{", 400), (b'{"model": "one", "model": "two"}', 400), (b"[" * 100_000, 400), (b"\xff", 400),
    (b'{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}', 404),
    (b'{"model": "one", "messages": [], "n": 1000000}', 400), (b'{"model": "one", "prompt": "x"}', 400),
)  # fmt: skip
"""Bodies that are refused, and the status."""

Answer = tuple[str, str]
"""The text, and OpenAI's reason why it ended."""


class ServerClient:
    """One client, which asks until it is told to stop.

    Args:
        http: what it asks with; may be shared.
        expected: the right answers, by expert, prompt and kind: one of each package that the name may have.
        seed: what it asks follows from it.

    Attributes:
        counts: what it did.
        wrong: answers that were wrong, and failures.
        first: seconds to the first text of each stream that was read at once.
        tokens: that it got.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        expected: Mapping[tuple[str, str, str], Collection[Answer]],
        seed: int,
    ) -> None:
        self._http, self._expected, self._draw = http, expected, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.first: list[float] = []
        self.tokens = 0

    async def run(self, end: float) -> None:
        """Ask until a moment of `time.monotonic()`."""
        ways = (self._whole, self._stream, self._stream, self._leave, self._read_slowly, self._send_badly)
        while time.monotonic() < end:
            key = self._draw.choice(sorted(self._expected))
            try:
                await self._draw.choice(ways)(key)
            except httpx.HTTPError as error:
                self.wrong.append(f"{key}: {error!r}")

    def _body(self, key: tuple[str, str, str], **fields: Any) -> dict[str, Any]:
        name, prompt, kind = key
        messages = [{"role": "user", "content": prompt}]
        return {"model": name, "messages": messages, "max_tokens": TOKENS, **KINDS[kind], **fields}

    async def _whole(self, key: tuple[str, str, str]) -> None:
        response = await self._http.post("/v1/chat/completions", json=self._body(key))
        if self._refused(response.status_code, key):
            return
        document = response.json()
        choice = document["choices"][0]
        self.tokens += document["usage"]["completion_tokens"]
        self._check(key, choice["message"]["content"], choice["finish_reason"], "whole")

    async def _stream(self, key: tuple[str, str, str]) -> None:
        begin = time.monotonic()
        text = ""
        async for delta, reason in self._chunks(key):
            if delta and not text:
                self.first.append(time.monotonic() - begin)
            text += delta
            if reason:
                self._check(key, text, reason, "streams")

    async def _read_slowly(self, key: tuple[str, str, str]) -> None:
        text = ""
        async for delta, reason in self._chunks(key):
            await asyncio.sleep(0.02)
            text += delta
            if reason:
                self._check(key, text, reason, "read slowly")

    async def _leave(self, key: tuple[str, str, str]) -> None:
        """Go away after some chunks, or before the first."""
        left, text = self._draw.randint(0, 8), ""
        async for delta, _ in self._chunks(key):
            text += delta
            if left == 0:
                break
            left -= 1
        if not any(answer.startswith(text) for answer, _ in self._expected[key]):
            self.wrong.append(f"{key}: begins with {text!r}")
        self.counts["left"] += 1

    async def _send_badly(self, _key: tuple[str, str, str]) -> None:
        body, status = self._draw.choice(BAD_BODIES)
        headers = {"content-type": "application/json"}
        response = await self._http.post("/v1/chat/completions", content=body, headers=headers)
        if response.status_code != status or "error" not in response.json():
            self.wrong.append(f"{body[:40]!r} has status {response.status_code}: {response.text[:200]}")
        self.counts["bad bodies"] += 1

    async def _chunks(self, key: tuple[str, str, str]) -> AsyncIterator[tuple[str, str | None]]:
        body = self._body(key, stream=True, stream_options={"include_usage": True})
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if self._refused(response.status_code, key):
                return
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                document = json.loads(line.removeprefix("data: "))
                if "error" in document:
                    self.wrong.append(f"{key}: {document['error']}")
                    return
                if document["usage"]:
                    self.tokens += document["usage"]["completion_tokens"]
                for choice in document["choices"]:
                    yield choice["delta"].get("content") or "", choice["finish_reason"]

    def _refused(self, status: int, key: tuple[str, str, str]) -> bool:
        if status == 429:
            self.counts["queue full"] += 1
        elif status != 200:
            self.wrong.append(f"{key}: status {status}")
        return status != 200

    def _check(self, key: tuple[str, str, str], text: str, reason: str, way: str) -> None:
        self.counts[way] += 1
        if (text, reason) not in self._expected[key]:
            self.wrong.append(f"{key}, {way}: {(text, reason)}, and alone {self._expected[key]}")
