"""Clears and prunes a store in a loop, until its standard input ends.

    python benchmarks/harness/cleaner.py FOLDER SEED

It writes a line for each time.
"""

from __future__ import annotations

import random
import sys
import threading
from pathlib import Path

from hivellm_ort.package.store import Store


def clean(store: Store, seed: int) -> None:
    """Clear and prune a store until the standard input ends."""
    draw, over = random.Random(seed), threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    while not over.wait(draw.uniform(0.05, 1)):
        kind = draw.choice(["clear", "prune", "prune to a size"])
        if kind == "clear":
            store.clear()
        else:
            store.prune(max_bytes=draw.randint(0, 1 << 22) if "size" in kind else None)
        print(kind, flush=True)


if __name__ == "__main__":
    clean(Store(Path(sys.argv[1])), int(sys.argv[2]))
