"""Time from logits to a token, on a large vocabulary, and where it goes.

    python benchmarks/sampler.py [--vocabulary 151936] [--rounds 300] [--context 4096] [--json FILE]

All settings take turns in one run, so that their ratios hold on a noisy machine. The first line is a yardstick: one
`numpy.exp` of the vocabulary, without which no probability is known.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hivellm_ort.decoding.arrays import FloatArray
from hivellm_ort.decoding.bad_words import TokenTexts
from hivellm_ort.decoding.logprobs import token_logprob
from hivellm_ort.decoding.params import SamplingParams
from hivellm_ort.decoding.processors import make_processors
from hivellm_ort.decoding.sampler import make_sampler

SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.7": {},
    "top-k 20": {"top_k": 20},
    "top-k 20, top-p 0.8": {"top_k": 20, "top_p": 0.8},
    "top-k 50, top-p 0.95, min-p 0.05": {"top_k": 50, "top_p": 0.95, "min_p": 0.05},
    "top-p 0.5": {"top_p": 0.5},
    "top-p 0.9": {"top_p": 0.9},
    "top-p 0.9, temperature 1": {"top_p": 0.9, "temperature": 1.0},
    "top-p 0.9, temperature 0.2": {"top_p": 0.9, "temperature": 0.2},
    "min-p 0.05": {"min_p": 0.05},
    "typical-p 0.9": {"typical_p": 0.9},
}
PROCESSING: dict[str, dict[str, Any]] = {
    "logit bias of 100": {"logit_bias": dict.fromkeys(range(100), 1.0)},
    "repetition penalty": {"repetition_penalty": 1.1},
    "presence and frequency": {"presence_penalty": 0.5, "frequency_penalty": 0.5},
    "no repeated 3-gram": {"no_repeat_ngram_size": 3},
    "bad words, 1000": {"bad_words": [f"{i} words" for i in range(1000)]},
    "all of these": {
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "no_repeat_ngram_size": 3,
        "logit_bias": dict.fromkeys(range(100), 1.0),
        "bad_words": [f"{i} words" for i in range(1000)],
        "min_tokens": 5,
    },
}


def make_logits(kind: str, vocabulary: int) -> FloatArray:
    """Logits as a sure model gives them, as an unsure one does, and nearly all alike."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(vocabulary, dtype=np.float32) * np.float32(0.1 if kind == "flat" else 2.5)
    if kind == "peaked":
        logits[rng.choice(vocabulary, 40, replace=False)] += 15 + rng.exponential(3, 40).astype(np.float32)
    return logits


def take_turns(systems: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Run every system once a round, after one run that brings its arrays into the caches."""
    times: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds + 5):
        for name, system in systems.items():
            system()
            begin = time.perf_counter()
            system()
            times[name].append(1e6 * (time.perf_counter() - begin))
    return {
        name: {"median": float(np.median(t[5:])), "p95": float(np.quantile(t[5:], 0.95)), "min": min(t[5:])}
        for name, t in times.items()
    }


def sampling_systems(vocabulary: int) -> dict[str, Callable[[], object]]:
    """A sampler for each setting and each kind of logits."""
    values, out = make_logits("unsure", vocabulary), np.empty(vocabulary, np.float32)
    systems: dict[str, Callable[[], object]] = {"numpy.exp": lambda: np.exp(values, out=out)}
    for kind in ("peaked", "unsure", "flat"):
        logits = make_logits(kind, vocabulary)
        for name, options in SAMPLING.items():
            sample = make_sampler(SamplingParams(**({"temperature": 0.7, "seed": 0} | options)))
            systems[f"{kind:7} {name}"] = lambda sample=sample, logits=logits: sample(logits)
        systems[f"{kind:7} logprobs, best 20"] = lambda logits=logits: token_logprob(logits, 7, 20)
    return systems


def processing_systems(vocabulary: int, context: int) -> dict[str, Callable[[], object]]:
    """A processor for each setting, at the end of a context of which half is the answer; each call adds a token."""
    rng = np.random.default_rng(1)
    logits, token_ids = make_logits("peaked", vocabulary), rng.integers(0, 3000, context + 10_000)
    systems = {}
    texts = TokenTexts([str(token_id).encode() for token_id in range(vocabulary)])
    for name, options in PROCESSING.items():
        process = make_processors(
            SamplingParams(**options),
            prompt_length=context // 2,
            eos_token_ids=[2],
            token_texts=lambda: texts,
        )
        lengths = iter(range(context, token_ids.size))
        systems[f"{context} tokens, {name}"] = lambda process=process, lengths=lengths: process(
            token_ids[: next(lengths)], logits
        )
    return systems


def profile(vocabulary: int) -> str:
    """Where the time of the slowest usual setting goes, as shares of it."""
    sample = make_sampler(SamplingParams(temperature=0.7, top_p=0.9, seed=0))
    logits = make_logits("flat", vocabulary)
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(200):
        sample(logits)
    profiler.disable()
    rows = pstats.Stats(profiler).stats.items()
    whole = sum(row[2] for _, row in rows)
    # Built-in methods are called "<method 'sort' of 'numpy.ndarray' objects>".
    shares = sorted(((row[2] / whole, (place[2].split("'") * 2)[1]) for place, row in rows), reverse=True)
    return ", ".join(f"{name.rpartition('.')[2].strip('>')} {share:.0%}" for share, name in shares[:8])


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    systems = sampling_systems(options.vocabulary) | processing_systems(options.vocabulary, options.context)
    report = take_turns(systems, options.rounds)
    print(f"microseconds per token, vocabulary {options.vocabulary}, {options.rounds} rounds")
    print(f"  {'':48} {'median':>7} {'p95':>7} {'min':>7}")
    for name, row in report.items():
        print(f"  {name:48} {row['median']:7.0f} {row['p95']:7.0f} {row['min']:7.0f}")
    where = profile(options.vocabulary)
    print(f"flat, top-p 0.9 spends its time in: {where}")
    if options.json:
        text = json.dumps({"vocabulary": options.vocabulary, "times": report, "where": where}, indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
