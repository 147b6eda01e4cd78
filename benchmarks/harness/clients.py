"""Clients that ask a manager for everything at once, and know the right answers."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hivellm_ort import Expert, ExpertManager, InferenceError, InferenceResult, LoadError, UnknownExpertError
from hivellm_ort.observability import Event

__all__ = ["COUNTS", "KINDS", "NAMES", "PROMPTS", "TOKENS", "Answers", "Client", "RaisingListener", "record"]

NAMES = ("one", "two", "three")
"""What experts are loaded as, whatever package it is."""

PROMPTS = ("select the users", "count", "a list of 7 cities, sorted", "where x = 1 and y = 2", "zzz", "0")

TOKENS = 20
"""Most tokens of an answer."""

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.9, "top_p": 0.9, "seed": 7},
    "choice": {"choice": ["yes", "no", "not known"]},
    "schema": {
        "json_schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    },
    "logprobs": {"logprobs": 2},
}
"""Options of a request, by a name for them."""

COUNTS = {
    "finished": "answers that were compared whole",
    "cancelled": "by the client, while they ran or waited",
    "timed out": "by `timeout`",
    "abandoned": "streams that nobody read to their end",
    "raised": "ended by a processor that raises on purpose",
    "refused": "their expert was not loaded at that moment",
    "replaced": "a name got another package",
    "unloaded": "a name was unloaded and loaded again",
    "loaded beside": "experts that were loaded without the manager",
}
"""What clients count, and what that is."""

_ERRORS: tuple[type[BaseException], ...] = (
    RuntimeError,
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    StopIteration,
)
_MESSAGE = "raised on purpose"

Answers = Mapping[str, Mapping[tuple[str, str], InferenceResult]]
"""By the name in an expert's manifest: by prompt and kind of request, what it answers alone."""


def record(paths: Sequence[Path], **loading: Any) -> Answers:
    """What the packages answer, one request at a time.

    Args:
        paths: packages; the names in their manifests differ.
        loading: options of `Expert.load`.

    Raises:
        ValueError: one is not in fp32, or two have one name, or answer all alike, so that an answer of the wrong one
            would not be seen.
    """
    answers: dict[str, dict[tuple[str, str], InferenceResult]] = {}
    for path in paths:
        with Expert.load(path, **loading) as expert:
            if expert.base.precision != "fp32":
                raise ValueError(f"{path} is in {expert.base.precision}: give packages in fp32")
            if expert.name in answers:
                raise ValueError(f"two packages have the name {expert.name!r}: give each another one")
            answers[expert.name] = {
                (prompt, kind): expert.generate(prompt, max_tokens=TOKENS, **KINDS[kind])
                for prompt in PROMPTS
                for kind in KINDS
            }
    greedy = [tuple(one[prompt, "greedy"].tokens for prompt in PROMPTS) for one in answers.values()]
    if len(set(greedy)) < len(greedy):
        raise ValueError(
            "two packages give the same answers: a request that got the wrong one would not be seen"
        )
    return answers


def is_planted(error: BaseException) -> bool:
    """Whether a request failed by an error of a processor that raises on purpose, and tells of it."""
    told = error.__cause__ if isinstance(error, InferenceError) else error
    return isinstance(told, _ERRORS) and told.args == (_MESSAGE,)


@dataclass(frozen=True)
class _Asked:
    prompt: str
    kind: str
    tokens: int = TOKENS

    @property
    def options(self) -> dict[str, Any]:
        return {"max_tokens": self.tokens, **KINDS[self.kind]}


class RaisingListener:
    """A listener that raises now and then whatever Python can raise, and uses the manager that calls it.

    Args:
        manager: the manager.
        seed: of what it does.
    """

    def __init__(self, manager: ExpertManager, seed: int):
        self._manager = manager
        self._draw = random.Random(seed)
        self.raised = 0
        self._inside = threading.local()

    def __call__(self, event: Event) -> None:
        """Do something, most often nothing."""
        share = self._draw.random()
        if share < 0.01:
            self.raised += 1
            raise self._draw.choice(_ERRORS)(_MESSAGE)
        if share < 0.02:
            self._manager.stats()
            self._manager.list_loaded_experts()
        elif share < 0.021 and not getattr(self._inside, "asks", False):
            self._inside.asks = True
            try:
                self._manager.generate_stream(self._draw.choice(NAMES), "count", max_tokens=3).cancel()
            except UnknownExpertError:
                pass  # another thread has unloaded it
            finally:
                self._inside.asks = False


class Client:
    """One thread's random requests, of all kinds, to names whose packages change.

    Args:
        manager: who is asked; its experts are called by some of `NAMES`.
        answers: the right ones, of all packages.
        paths: by name, the packages that may be loaded as it.
        seed: of what it does.
        loading: options of `Expert.load`, for experts beside the manager; None for no such.

    Attributes:
        counts: what became of the requests, and how often it changed the manager.
        failures: by the type of an error that should not be: how often, and one traceback.
        wrong: what was wrong about an answer, one text for each.
        since: when the request that runs began, of `time.monotonic`; None between two.
        longest: seconds of the longest request.
    """

    def __init__(
        self,
        manager: ExpertManager,
        answers: Answers,
        paths: Mapping[str, Sequence[Path]],
        seed: int,
        loading: Mapping[str, Any] | None = None,
    ):
        self._manager, self._answers, self._paths, self._loading = manager, answers, paths, loading
        self._draw = random.Random(seed)
        self._kinds: list[Callable[[str], None]] = [*[self._generate] * 6, *[self._stream] * 5]
        self._kinds += [*[self._batch] * 2, self._await, self._await_some, self._raise]
        self._kinds += [self._replace, self._reload, self._pin]
        if loading is not None:
            self._kinds.append(self._beside)
        self.counts: Counter[str] = Counter()
        self.failures: dict[str, tuple[int, str]] = {}
        self.wrong: list[str] = []
        self.since: float | None = None
        self.longest = 0.0

    def run(self, turns: Iterable[object]) -> None:
        """Make one request, or change the manager once, for each of the turns."""
        for _ in turns:
            self.since = begin = time.monotonic()
            self._attempt(self._draw.choice(self._kinds))
            self.since = None
            self.longest = max(self.longest, time.monotonic() - begin)

    def _attempt(self, kind: Callable[[str], None]) -> None:
        try:
            kind(self._draw.choice(list(self._paths)))
        except UnknownExpertError:  # another thread has unloaded it and not loaded it again yet
            self.counts["refused"] += 1
        except BaseException as error:
            name = type(error).__name__
            times, first = self.failures.get(name, (0, "".join(traceback.format_exception(error))))
            self.failures[name] = (times + 1, first)

    def _question(self, *, whole: bool = False) -> _Asked:
        kind = self._draw.choice(["greedy", *KINDS])
        # Where a grammar ends an answer that is cut short depends on where it is cut.
        free = kind in ("greedy", "sampled", "logprobs") and not whole
        return _Asked(self._draw.choice(PROMPTS), kind, self._draw.randint(1, TOKENS) if free else TOKENS)

    def _generate(self, name: str) -> None:
        asked, timeout = self._question(), self._draw.choice([None, None, None, 0.005, 0.05])
        result = self._manager.generate(name, asked.prompt, timeout=timeout, **asked.options)
        self._check(result, asked, ended_by="timed out" if timeout else None)

    def _stream(self, name: str) -> None:
        asked = self._question(whole=True)
        stream = self._manager.generate_stream(name, asked.prompt, **asked.options)
        share = self._draw.random()
        if share < 0.5:
            pieces = list(stream)
            if "".join(pieces) != stream.result.text:
                self.wrong.append(f"pieces {pieces!r} of the text {stream.result.text!r}")
            self._check(stream.result, asked)
            return
        for _ in range(self._draw.randint(0, 3)):
            next(stream, None)
        if share < 0.75:
            stream.close()
            self._check(stream.result, asked, ended_by="cancelled")
        else:
            self.counts["abandoned"] += 1  # and nobody looks at it again

    def _batch(self, name: str) -> None:
        questions = [self._question(whole=True) for _ in range(4)]
        requests = [(self._draw.choice([name, *self._paths]), asked.prompt) for asked in questions]
        options = KINDS[questions[0].kind]
        results = self._manager.generate_batch(
            requests, max_tokens=TOKENS, batch_size=self._draw.choice([2, 8]), **options
        )
        for asked, result in zip(questions, results, strict=True):
            self._check(result, _Asked(asked.prompt, questions[0].kind))

    def _await(self, name: str) -> None:
        questions = [self._question() for _ in range(2)]

        async def both() -> list[InferenceResult]:
            calls = [self._manager.agenerate(name, asked.prompt, **asked.options) for asked in questions]
            results = await asyncio.gather(*calls, return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            return results

        for asked, result in zip(questions, asyncio.run(both()), strict=True):
            self._check(result, asked)

    def _await_some(self, name: str) -> None:
        """A task that is cancelled, and an asynchronous stream that is left half-way."""
        asked = self._question(whole=True)
        delay = self._draw.choice([0.0, 0.001, 0.01])

        async def some() -> InferenceResult | None:
            task = asyncio.create_task(self._manager.agenerate(name, asked.prompt, **asked.options))
            await asyncio.sleep(delay)
            task.cancel()
            async for _ in self._manager.agenerate_stream(name, asked.prompt, **asked.options):
                break
            try:
                return await task
            except asyncio.CancelledError:
                return None

        result = asyncio.run(some())
        self.counts["abandoned"] += 1
        if result is None:
            self.counts["cancelled"] += 1
        else:
            self._check(result, asked, ended_by="cancelled")

    def _raise(self, name: str) -> None:
        asked, kind = self._question(), self._draw.choice(_ERRORS)
        calls, last = itertools.count(), self._draw.randint(0, 5)

        def process(_: Any, logits: Any) -> Any:
            if next(calls) == last:
                raise kind(_MESSAGE)
            return logits

        try:
            result = self._manager.generate(name, asked.prompt, processors=[process], **asked.options)
        except Exception as error:
            if not is_planted(error):
                raise
            self.counts["raised"] += 1
        else:  # it was shorter than that
            self._check(result, asked)

    def _replace(self, name: str) -> None:
        self._manager.load_expert(name, self._draw.choice(self._paths[name]), replace=True)
        self.counts["replaced"] += 1

    def _reload(self, name: str) -> None:
        self._manager.unload_expert(name)
        path = self._draw.choice(self._paths[name])
        self.counts["unloaded"] += 1
        try:
            self._manager.load_expert(name, path)
        except LoadError as error:
            if "already" not in str(error):  # another thread was quicker
                raise

    def _pin(self, name: str) -> None:
        self._manager.pin(name)
        try:
            self._generate(name)
        finally:
            try:
                self._manager.unpin(name)
            except ValueError as error:
                if "not pinned" not in str(error):  # unloaded and loaded meanwhile
                    raise

    def _beside(self, name: str) -> None:
        """An expert of its own, which shares its base with those of the manager."""
        asked = self._question()
        with Expert.load(self._draw.choice(self._paths[name]), **self._loading or {}) as expert:
            self._check(expert.generate(asked.prompt, **asked.options), asked)
        self.counts["loaded beside"] += 1

    def _check(self, result: InferenceResult, asked: _Asked, ended_by: str | None = None) -> None:
        """What was generated is what the package that the answer names says to the prompt."""
        expected = self._answers[result.expert][asked.prompt, asked.kind]
        if result.finish_reason == "cancelled":
            if ended_by is None:
                self.wrong.append(f"{asked} was cancelled by nobody")
            self.counts[ended_by or "cancelled"] += 1
            right = expected.tokens[: len(result.tokens)] == result.tokens
        elif asked.tokens < len(expected.tokens):
            self.counts["finished"] += 1
            right = expected.tokens[: asked.tokens] == result.tokens
        else:
            self.counts["finished"] += 1
            given = (expected.tokens, expected.text, expected.finish_reason)
            right = given == (result.tokens, result.text, result.finish_reason)
        if not right:
            self.wrong.append(
                f"{result.expert}, {asked}: {list(result.tokens)} ({result.finish_reason}), and alone "
                f"{list(expected.tokens)} ({expected.finish_reason})"
            )
