"""What a precision costs: agreement of greedy answers, and KL of the next-token distributions, against fp32.

    python benchmarks/quality.py --reference OUT_FP32 --candidate OUT_INT8 [--tokens 2000] [--json FILE]

Both folders come from `hivellm-ort export --thin` with the same experts. The text is the READMEs of `models/`;
every position counts once, with what stands before it as context, up to `--window` tokens. KL(reference ||
candidate) is in nats.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hivellm_export.demo import PROMPTS
from hivellm_ort import Expert
from hivellm_ort.engine.decoder import Decoder
from hivellm_ort.engine.session import Engine
from hivellm_ort.text.tokenizer import TextTokenizer

ROOT = Path(__file__).parent.parent


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities in float64."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def kl_per_token(reference: Path, candidate: Path, tokens: int, window: int) -> tuple[np.ndarray, float]:
    """KL at each position of the text, and the share of positions where both prefer the same token."""
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted((ROOT / "models").rglob("README.md"))
    )
    ids = TextTokenizer.from_folder(reference / "base").encode(text)[:tokens]
    engines = [Engine(folder / "base") for folder in (reference, candidate)]
    kl, same = [], 0
    for begin in range(0, len(ids), window):
        rows: list[Decoder] = [engine.decoder(adapters=False) for engine in engines]
        for row in rows:
            row.start(0, None, window)
        for token in tqdm(ids[begin : begin + window], desc=f"text at {begin}", disable=None):
            p, q = (log_softmax(row.forward([token])) for row in rows)
            kl.append(float((np.exp(p) * (p - q)).sum()))
            same += int(p.argmax() == q.argmax())
    return np.array(kl), same / len(kl)


def agreement(reference: Path, candidate: Path, shared: Path | None) -> dict[str, list[int]]:
    """Per expert: greedy answers that are equal token by token, and how many were compared."""
    counts = {}
    for package in sorted(reference.glob("*.expert")):
        with (
            Expert.load(package, base=reference / "base") as one,
            Expert.load(candidate / package.name, base=candidate / "base") as other,
        ):
            requests = [(p.text, p.options) for p in PROMPTS if p.expert == one.name]
            if shared:
                lines = (shared / one.name / "references.jsonl").read_text(encoding="utf-8").splitlines()
                requests = [(r["user"], {"system": r["system"]}) for r in map(json.loads, lines)]
            equal = sum(
                one.generate(text, temperature=0, max_tokens=96, **options).tokens
                == other.generate(text, temperature=0, max_tokens=96, **options).tokens
                for text, options in requests
            )
            counts[one.name] = [equal, len(requests)]
    return counts


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--candidate", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--window", type=int, default=500)
    parser.add_argument("--prompts", type=Path, help="a folder with <expert>/references.jsonl")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kl, same = kl_per_token(options.reference, options.candidate, options.tokens, options.window)
    counts = agreement(options.reference, options.candidate, options.prompts)
    report = {
        "tokens": len(kl),
        "kl_mean": float(kl.mean()),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "same_top_token": same,
        "equal_greedy_answers": counts,
    }
    print(f"KL      mean {report['kl_mean']:.4f}, p99 {report['kl_p99']:.3f} nats over {len(kl)} tokens")
    print(f"top     {100 * same:.1f} % of positions prefer the same token")
    for name, (equal, total) in counts.items():
        print(f"greedy  {name}: {equal} of {total} answers equal token by token")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
