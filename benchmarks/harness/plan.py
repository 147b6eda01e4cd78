"""What is measured: suites, sizes, systems, rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.environments import PEERS

__all__ = ["LOOKUP", "PRECISIONS", "SUITES", "Case", "System", "make_plan", "parse_system"]

PRECISIONS = {
    "ours": ("int8", "int4", "fp32", "w8a8", "int8+kv8", "w8a8+kv8"),
    "transformers": ("bf16", "fp32"),
    "genai": ("int8", "int4", "int4+head8", "fp32"),
    "llamacpp": ("q8_0", "q4_0", "q4_1"),
    "optimum": ("fp32",),
    "openvino": ("int8", "int4"),
    "onnx-genai": ("int8", "int4"),
}
"""As each peer names them; the first is the one of `--quick`. `+kv8` has keys and values in 8 bits, and
`+head8` the LM head, as ours has it in int4."""

LOOKUP = "+lookup"
"""Behind one of our precisions: the same with prompt lookup, which is off by default but in fp32."""

# Six copies of 2.4 GB beside each other would swap: the large model runs in the precisions it is used in.
_LARGE = {
    "ours": ("int8", "int4", "w8a8", "w8a8+kv8"),
    "transformers": ("bf16",),
    "genai": ("int8", "int4", "int4+head8"),
    "llamacpp": ("q8_0", "q4_0"),
    "openvino": ("int8", "int4"),
    "onnx-genai": ("int8",),
}
_NOT_MERGED = (
    "genai int4",
    "genai int4+head8",
    "genai fp32",
    "llamacpp q4_0",
    "llamacpp q4_1",
    "openvino int4",
)
SUITES = (
    "prefill",
    "decode",
    "adapters",
    "swap",
    "batch",
    "server",
    "workload",
    "load",
    "memory",
    "install",
    "quality",
)
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class System:
    """A peer in a precision."""

    peer: str
    precision: str

    @property
    def name(self) -> str:
        """As it stands in the report."""
        return f"{self.peer} {self.precision}"


def parse_system(name: str) -> System:
    """The system of a name."""
    peer, _, precision = name.rpartition(" ")
    return System(peer, precision)


@dataclass(frozen=True)
class Case:
    """One thing that all systems do in turns.

    Attributes:
        suite: one of `SUITES`.
        model: one of `harness.models.MODELS`.
        name: within the suite, such as the number of tokens.
        systems: who takes part.
        rounds: how often.
        warm_up: whether a first round is not counted.
        settings: what the suite needs to know.
    """

    suite: str
    model: str
    name: str
    systems: tuple[System, ...]
    rounds: int
    warm_up: bool = True
    settings: dict[str, Any] = field(default_factory=dict)


def make_plan(
    peers: Sequence[str], suites: Sequence[str], models: Sequence[str], *, quick: bool, rounds: int | None
) -> list[Case]:
    """Every case, ordered by model and suite.

    Args:
        peers: of `PEERS`; `ours` always takes part.
        suites: of `SUITES`.
        models: of `harness.models.MODELS`.
        quick: the first precision of each peer, the smallest sizes, the small model, two rounds, or one where a round
            takes long.
        rounds: instead of each case's own number, but for quick.
    """
    chosen = [peer for peer in PEERS if peer == "ours" or peer in peers]
    cases = []
    for model in ["smollm2"] if quick else models:
        table = PRECISIONS if model == "smollm2" else _LARGE
        systems = tuple(
            System(peer, precision)
            for peer in chosen
            for precision in (table.get(peer, ())[:1] if quick else table.get(peer, ()))
        )
        for suite in SUITES:
            if suite in suites and (model == "smollm2" or suite in ("prefill", "decode", "adapters")):
                cases += _cases(suite, model, systems, quick)
    if quick:
        return [replace(case, rounds=min(case.rounds, 2)) for case in cases]
    return cases if rounds is None else [replace(case, rounds=rounds) for case in cases]


def _cases(suite: str, model: str, systems: tuple[System, ...], quick: bool) -> list[Case]:
    small = model == "smollm2"

    def case(
        name: str, rounds: int, who: tuple[System, ...] = systems, warm_up: bool = True, **settings: Any
    ) -> Case:
        return Case(suite, model, name, who, rounds, warm_up, settings)

    def only(*names: str) -> tuple[System, ...]:
        return tuple(system for system in systems if system.peer in names)

    if suite == "prefill":
        sizes = {32: 9, 128: 7, 512: 7, 1024: 5, 2048: 3, 4096: 3} if small else {32: 5, 512: 5, 2048: 3}
        sizes = {32: 2, 512: 2} if quick else sizes
        return [case(str(size), n, warm_up=size < 2048, tokens=size) for size, n in sizes.items()]
    if suite == "decode":
        sizes = {16: 11, 256: 7, 1024: 5, 4096: 3} if small else {16: 7, 512: 5}
        sizes = {16: 2} if quick else sizes
        cases = [
            case(str(size), n, warm_up=size < 1024, context=size, new_tokens=64) for size, n in sizes.items()
        ]
        if (
            not small
        ):  # long contexts cost minutes a round in the peers: how our own speed holds is what is asked
            cases.append(case("4096", 3, only("ours"), warm_up=False, context=4096, new_tokens=32))
        return cases
    if suite == "adapters":
        ranks = [4, 16, 64] if small and not quick else [16]
        variants = [(kind, rank) for rank in ranks for kind in ("lora", "dora")]
        who = only("ours", "transformers") if small else only("ours")
        return [case("16", 7, who, context=16, new_tokens=16 if quick else 48, variants=variants)]
    if suite == "swap":
        who = only("ours", "transformers")
        return [case("three experts", 1, who, warm_up=False, count=200 if quick else 1000)]
    if suite == "batch":
        who = only("ours", "transformers", "genai", "optimum")
        sizes = [8] if quick else [1, 2, 4, 8, 16]
        new = 16 if quick else 32
        rounds = 1 if quick else 3
        return [case(str(size), rounds, who, rows=size, context=16, new_tokens=new) for size in sizes]
    if suite == "server":
        new, rounds = (32, 2) if quick else (64, 7)
        return [case("8", rounds, only("ours"), rows=8, context=32, new_tokens=new)]
    # A merged model for every expert is made in 8 bits only, where a peer needs one.
    merged = tuple(system for system in systems if system.name not in _NOT_MERGED)
    if suite == "workload":
        rounds, count = (1, 3) if quick else (5, 9)
        # Guesses are checked with rows of their own, so they are for one request at a time.
        guessing = () if quick else (System("ours", f"w8a8+kv8{LOOKUP}"),)
        return [
            case(name, rounds, who, warm_up=not quick, requests=count, together=together)
            for name, who, together in (("one by one", merged + guessing, False), ("at once", merged, True))
        ]
    if suite == "load":
        return [case("first token", 1 if quick else 5, warm_up=not quick)]
    if suite == "memory":
        who = tuple(system for system in merged if system.peer not in ("optimum", "onnx-genai"))
        experts = [] if quick else [case(f"experts {n}", 3, who, warm_up=False, experts=n) for n in (1, 3)]
        return [case("base", 1 if quick else 3, warm_up=False, experts=0), *experts]
    if suite == "install":
        first = tuple({system.peer: system for system in reversed(systems)}.values())
        return [] if quick else [case("size", 1, first, warm_up=False)]
    return [case("kl", 1, warm_up=False, windows=1 if quick else 4, window=256)] + (
        [] if quick else [case("held-out", 1, only("ours", "transformers"), warm_up=False)]
    )
