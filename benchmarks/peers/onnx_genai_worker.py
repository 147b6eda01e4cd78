"""Worker of onnx-genai, a Rust engine on ONNX Runtime, on a folder that `onnx_genai_models.py` made.

It takes texts, not token ids, and its callback fires after the fact. So a request is a text with as many tokens as
the prompt that was asked for, and it is timed as a whole, with all its tokens and with one.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import onnx_genai
from protocol import Peer, UnsupportedError, difference, serve

_WORDS = [
    "table",
    "user",
    "order",
    "price",
    "city",
    "name",
    "date",
    "total",
    "status",
    "value",
    "index",
    "query",
    "field",
    "count",
    "time",
    "note",
    "page",
    "line",
]


class OnnxGenAI(Peer):
    """One engine; the end-of-sequence id is one that no text has."""

    def __init__(self, spec: dict[str, Any]):
        path = Path(spec["folder"]) / "genai_config.json"
        config = json.loads(path.read_text())
        config["model"]["eos_token_id"] = config["model"]["vocab_size"] - 1
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = spec["threads"]
        path.write_text(json.dumps(config, indent=2))
        self.engine = onnx_genai.Engine.from_dir(spec["folder"])
        self.calls = 0

    def _text(self, length: int) -> str:
        """A text of exactly so many tokens, another one every time: the engine keeps prefixes."""
        self.calls += 1
        words = [str(self.calls)]
        number = self.calls
        while len(self.engine.tokenize(" ".join(words))) < length:
            number = (number * 1103515245 + 12345) % (1 << 31)
            words.append(_WORDS[number % len(_WORDS)])
        while len(self.engine.tokenize(" ".join(words))) > length:
            words.pop()
        text = " ".join(words)
        found = len(self.engine.tokenize(text))
        if found != length:
            raise RuntimeError(f"a text of {found} tokens instead of {length}")
        return text

    def _timed(self, length: int, new_tokens: int) -> tuple[float, list[int]]:
        text = self._text(length)
        begin = time.perf_counter()
        result = self.engine.generate(text, max_tokens=new_tokens, temperature=0.0)
        seconds = time.perf_counter() - begin
        if len(result.token_ids) != new_tokens:
            raise RuntimeError(f"{len(result.token_ids)} tokens instead of {new_tokens}")
        return seconds, list(result.token_ids)

    def generate(self, prompt_ids: list[int], new_tokens: int, adapter: str | None = None) -> dict[str, Any]:
        """See `Peer`; `tokens` answer another prompt of that length."""
        if adapter is not None:
            raise UnsupportedError("no adapters")
        first, tokens = self._timed(len(prompt_ids), 1)
        whole = first
        if new_tokens > 1:
            whole, tokens = self._timed(len(prompt_ids), new_tokens)
        return {**difference(whole, first), "tokens": tokens}


if __name__ == "__main__":
    serve(OnnxGenAI, ("onnx-genai", "onnxruntime"))
