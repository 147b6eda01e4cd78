"""What a grammar costs: building its tokenizer, compiling, and masking the logits of every token.

    python benchmarks/grammar.py [FILE ...] [--tokenizer FOLDER] [--tokens 2000] [--json FILE]

Walks along answers drawn at random: half of the tokens among all that are allowed, half among the allowed ones of low
ids, which are the frequent ones. Stops are answers that a limit of the parser ended. FILEs are grammars, their kind
told by their ending (.gbnf, .json, .lark, .regex). FOLDER holds a `tokenizer.json`; without it a small byte-level BPE
is made, whose times say little.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hivellm_ort.cli.grammar import KINDS
from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.compiler import GrammarCompiler
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.grammar.matcher import fill_masks

FREQUENT = 2000
PLAN = {
    "type": "object",
    "properties": {
        "steps": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "tool": {"enum": ["search", "open_file", "run"]},
                    "arguments": {"type": "object", "additionalProperties": {"type": "string"}},
                    "confidence": {"type": "number", "minimum": 0, "maximum": 1},
                },
                "required": ["tool", "arguments"],
                "additionalProperties": False,
            },
        },
        "done": {"type": "boolean"},
    },
    "required": ["steps", "done"],
    "additionalProperties": False,
}
JSON = r"""
root ::= value
value ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? ws "}"
array ::= "[" ws (value ("," ws value)*)? ws "]"
string ::= "\"" ([^"\\\x00-\x1f] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}))* "\""
number ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)? ([eE] [-+]? [0-9]+)?
ws ::= [ \t\n]*
"""
BUILT_IN = {
    "schema: a plan": Grammar.json_schema(PLAN),
    "schema: any JSON": Grammar.json_schema(True),
    "gbnf: JSON": Grammar.gbnf(JSON),
    "regex: any text": Grammar.regex("(?s:.*)"),
    "choice of 100": Grammar.choice([f"option {number}" for number in range(100)]),
}


@dataclass
class Times:
    """Seconds of each token."""

    fill: list[float] = field(default_factory=list)
    apply: list[float] = field(default_factory=list)
    accept: list[float] = field(default_factory=list)
    forced: list[float] = field(default_factory=list)
    forced_tokens: int = 0
    stops: int = 0
    allowed: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Medians and 99th percentiles in milliseconds; the mask is fill and apply."""
        mask = np.add(self.fill, self.apply)
        rows = {
            "mask": mask,
            "fill": self.fill,
            "apply": self.apply,
            "accept": self.accept,
            "forced": self.forced,
        }
        quantiles = {name: 1e3 * np.quantile(times, [0.5, 0.99, 1]) for name, times in rows.items()}
        return {
            name: dict(zip(("median", "p99", "max"), row.tolist(), strict=True))
            for name, row in quantiles.items()
        } | {
            "tokens": len(self.fill) + self.forced_tokens,
            "forced_tokens": self.forced_tokens,
            "stops": self.stops,
            "allowed_median": float(np.median(self.allowed)),
        }


def small_tokenizer() -> Tokenizer:
    """Return a byte-level BPE, for a run without a published one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([json.dumps(PLAN), JSON, __doc__], trainer)
    return tokenizer


def walk(compiler: GrammarCompiler, grammar: Grammar, logits: np.ndarray, tokens: int) -> Times:
    """Write answers of up to 200 tokens until so many tokens were masked, and time each step."""
    times, rng = Times(), random.Random(0)
    while len(times.fill) < tokens and times.stops < tokens:
        try:
            walk_once(compiler, grammar, logits, times, rng)
        except GrammarError:  # a limit of the parser
            times.stops += 1
    return times


def walk_once(
    compiler: GrammarCompiler, grammar: Grammar, logits: np.ndarray, times: Times, rng: random.Random
) -> None:
    """Write one answer."""
    end, clock = logits.size - 1, time.perf_counter
    constraint = compiler.compile(grammar, end_token_ids=[end])
    for _ in range(200):
        begin = clock()
        forced = constraint.forced_tokens()
        times.forced.append(clock() - begin)
        for token in forced:
            constraint.accept(token)
        times.forced_tokens += len(forced)
        begin = clock()
        fill_masks([constraint])
        filled = clock()
        scores = constraint.apply(logits)
        times.apply.append(clock() - filled)
        times.fill.append(filled - begin)
        allowed = np.flatnonzero(scores > -np.inf)
        times.allowed.append(allowed.size)
        likely = allowed[allowed < FREQUENT]
        token = int(rng.choice(likely if likely.size and rng.random() < 0.5 else allowed))
        if token == end or (scores[end] > -np.inf and rng.random() < 0.05):
            return
        begin = clock()
        constraint.accept(token)
        times.accept.append(clock() - begin)


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--width", type=int, help="of the logits; default: 151936, or the vocabulary's")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    text = (
        (options.tokenizer / "tokenizer.json").read_text(encoding="utf-8")
        if options.tokenizer
        else small_tokenizer().to_str()
    )
    width = options.width or max(151_936, Tokenizer.from_str(text).get_vocab_size() + 1)
    begin = time.perf_counter()
    compiler = GrammarCompiler(lambda: text, width)
    compiler.compile(Grammar.regex("a"), end_token_ids=[])
    build = time.perf_counter() - begin
    print(f"tokenizer built in {build:.2f} s, logits {width}; milliseconds, median and 99th percentile")
    grammars = BUILT_IN | {
        f"{file.parent.name}/{file.name}": Grammar(
            KINDS[file.suffix], file.read_text(encoding="utf-8"), str(file)
        )
        for file in options.files
    }
    logits = np.random.default_rng(0).standard_normal(width, dtype=np.float32)
    report: dict[str, Any] = {"tokenizer_seconds": build, "width": width, "grammars": {}}
    columns = ("mask", "fill", "apply", "accept", "forced")
    print(
        f"  {'':24} {'compile':>8}"
        + "".join(f"{name:>16}" for name in columns)
        + f"{'forced':>10}{'stops':>7}"
    )
    for name, grammar in grammars.items():
        begin = time.perf_counter()
        compiler.compile(grammar, end_token_ids=[])
        compiled = 1e3 * (time.perf_counter() - begin)
        row = {"compile": compiled, **walk(compiler, grammar, logits, options.tokens).summary()}
        report["grammars"][name] = row
        cells = "".join(f"{row[column]['median']:8.3f}{row[column]['p99']:8.3f}" for column in columns)
        print(
            f"  {name:24} {compiled:8.1f}{cells}{row['forced_tokens'] / row['tokens']:10.0%}{row['stops']:7}"
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
