"""Recorded token ids of llama.cpp, for tests without it. Run this file as a script to record them again.

    pip install llama-cpp-python
    PYTHONPATH=tests python -m support.recorded_ids [SmolLM2-135M-Instruct.Q4_1.gguf]

Without the file, what was recorded for it stays.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

PLACE = Path(__file__).parent / "recorded_ids.json"
SMOLLM2 = "SmolLM2"
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<unk>",
    "<s>",
    "</s>",
    "<|user|>",
)


def recorded() -> dict[str, Any]:
    """Return the texts as `texts`, and for each vocabulary's name one list of ids for each text.

    They are those with what goes before and after a text, special tokens in the text being read as such. In the file
    a name stands for the ids of the vocabulary of that name, if they are the same.
    """
    found: dict[str, Any] = json.loads(PLACE.read_text(encoding="utf-8"))
    return {name: found[value] if isinstance(value, str) else value for name, value in found.items()}


def _record(smollm2: Path | None) -> None:
    from support.gguf_files import VOCABULARIES, save
    from support.gguf_texts import PARTS, texts
    from support.llamacpp import token_ids

    kept = recorded() if PLACE.exists() else {}
    chosen = [text for text in texts(2000, special=SPECIAL, seed=5)[-1500:] if 8 < len(text) < 48][:48]
    chosen += [
        "f(x);\n\ny = 1234567 != 12;\r\n  }",
        "'\x14.\x04'\x04s",
        "ÉCOLE naïve don't DON'T हिन्दी में 2024",
        *PARTS[2],
    ]
    made: dict[str, Any] = {"texts": chosen}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in VOCABULARIES.items():
            path = save(Path(folder) / "x.gguf", {"general.architecture": "llama", **make().keys()})
            made[name] = token_ids(path, chosen, add_special=True)
    if smollm2 is not None:
        made[SMOLLM2] = token_ids(smollm2, chosen, add_special=True)
    elif kept.get("texts") == chosen:
        made[SMOLLM2] = kept[SMOLLM2]
    first: dict[str, str] = {}
    for name, ids in made.items():
        other = first.setdefault(json.dumps(ids), name)
        if other != name:
            made[name] = other
    lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in made.items()]
    PLACE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    _record(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
