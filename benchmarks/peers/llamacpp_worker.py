"""Worker of llama.cpp through llama-cpp-python, on a GGUF that `llamacpp_models.py` wrote."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from protocol import Peer, UnsupportedError, serve

_GROWTH = 1024


class LlamaCpp(Peer):
    """The base model; or, where the spec names experts, one model with each of them folded in."""

    def __init__(self, spec: dict[str, Any]):
        self.spec, self.context = spec, 0
        self.experts = {name: self._load(folder, 2048) for name, folder in spec["experts"].items()}
        if not self.experts:
            self._open(_GROWTH)
        self.grammars: dict[str, Any] = {}

    def _load(self, folder: str, context: int) -> Any:
        threads = self.spec["threads"]
        return llama_cpp.Llama(
            str(Path(folder) / "model.gguf"),
            n_ctx=context,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )

    def _open(self, tokens: int) -> None:
        """A context with room for so many tokens; it cannot grow."""
        wanted = -(-tokens // _GROWTH) * _GROWTH
        if wanted != self.context:
            self.model, self.context = None, wanted
            self.model = self._load(self.spec["folder"], wanted)

    def _read(self, ids: list[int]) -> int:
        self.model.eval(ids)
        logits = llama_cpp.llama_get_logits_ith(self.model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (self.model.n_vocab(),)).argmax())

    def generate(self, prompt_ids: list[int], new_tokens: int, adapter: str | None = None) -> dict[str, Any]:
        """See `Peer`."""
        if adapter is not None:
            raise UnsupportedError("adapters are GGUF files given at start, and DoRA is not supported")
        self._open(len(prompt_ids) + new_tokens)
        self.model.reset()
        begin = time.perf_counter()
        tokens = [self._read(prompt_ids)]
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            tokens.append(self._read(tokens[-1:]))
        end = time.perf_counter()
        return {"prefill_seconds": first - begin, "decode_seconds": end - first, "tokens": tokens}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """See `Peer`; each expert is a model of its own, which keeps the prefix of the prompt before."""
        if request["expert"] not in self.experts:
            raise UnsupportedError("no model with this expert folded in")
        grammar = None
        if request["enforce"]:
            text = request["grammar"]["gbnf"]
            if text not in self.grammars:
                self.grammars[text] = llama_cpp.LlamaGrammar.from_string(text, verbose=False)
            grammar = self.grammars[text]
        begin = time.perf_counter()
        output = self.experts[request["expert"]].create_completion(
            prompt=request["prompt_ids"],
            max_tokens=request["max_tokens"],
            temperature=0,
            grammar=grammar,
        )
        seconds = time.perf_counter() - begin
        ended = output["choices"][0]["finish_reason"] == "stop"
        return {
            "seconds": seconds,
            "tokens": output["usage"]["completion_tokens"],
            "text": output["choices"][0]["text"],
            "valid": ended if grammar else None,
        }

    def logits(self, ids: list[int], file: str) -> dict[str, Any]:
        """See `Peer`; token by token."""
        self._open(len(ids) + 1)
        self.model.reset()
        rows = []
        for token in ids:
            self._read([token])
            logits = llama_cpp.llama_get_logits_ith(self.model.ctx, -1)
            rows.append(np.ctypeslib.as_array(logits, (self.model.n_vocab(),)).copy())
        np.save(file, np.stack(rows))
        return {}


if __name__ == "__main__":
    serve(LlamaCpp, ("llama-cpp-python", "numpy"))
