"""Worker of ONNX Runtime GenAI, on a folder that `genai_models.py` built.

The end-of-sequence id is taken out of the configuration, so every run has the length asked for; the cache is as long
as the run. GenAI uses half of the cores unless it is told how many.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import onnxruntime_genai as og
from protocol import Peer, UnsupportedError, serve


def load_model(folder: str, threads: int, ends: list[int]) -> Any:
    """A model whose sessions have so many threads, and which ends at `ends` only."""
    config = og.Config(folder)
    # An overlay is merged over genai_config.json before the session is created.
    session = {"intra_op_num_threads": threads}
    config.overlay(json.dumps({"model": {"eos_token_id": ends, "decoder": {"session_options": session}}}))
    return og.Model(config)


class GenAI(Peer):
    """The base model; or, where the spec names experts, one model with each of them folded in."""

    def __init__(self, spec: dict[str, Any]):
        og.disable_telemetry_events()
        threads, experts = spec["threads"], spec["experts"]
        self.experts = {name: load_model(folder, threads, [spec["end"]]) for name, folder in experts.items()}
        self.model = None if experts else load_model(spec["folder"], threads, [])

    def _generator(
        self, model: Any, length: int, rows: int = 1, guidance: tuple[str, str] | None = None
    ) -> Any:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(
            do_sample=False, num_beams=1, repetition_penalty=1.0, max_length=length, batch_size=rows
        )
        if guidance:
            parameters.set_guidance(*guidance)
        return og.Generator(model, parameters)

    def generate(self, prompt_ids: list[int], new_tokens: int, adapter: str | None = None) -> dict[str, Any]:
        """See `Peer`."""
        if adapter is not None:
            raise UnsupportedError("LoRA is built into the graph by Olive, and DoRA is not supported")
        generator = self._generator(self.model, len(prompt_ids) + new_tokens)
        begin = time.perf_counter()
        generator.append_tokens(np.asarray(prompt_ids, np.int32))
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            generator.generate_next_token()
        end = time.perf_counter()
        tokens = generator.get_sequence(0)[len(prompt_ids) :].tolist()
        return {"prefill_seconds": first - begin, "decode_seconds": end - first, "tokens": tokens}

    def batch(
        self, prompts: list[list[int]], adapters: list[str | None], new_tokens: int, together: bool
    ) -> dict[str, Any]:
        """See `Peer`; prompts must be equally long."""
        if any(adapters):
            raise UnsupportedError("no adapters in a batch")
        begin = time.perf_counter()
        if not together:
            for prompt in prompts:
                self.generate(prompt, new_tokens)
            return {"seconds": time.perf_counter() - begin}
        generator = self._generator(self.model, len(prompts[0]) + new_tokens, len(prompts))
        generator.append_tokens(np.asarray(prompts, np.int32))
        for _ in range(new_tokens):
            generator.generate_next_token()
        return {"seconds": time.perf_counter() - begin}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """See `Peer`; the expert is folded into a model of its own, the grammar is llguidance's."""
        if request["expert"] not in self.experts:
            raise UnsupportedError("no model with this expert folded in")
        prompt = np.asarray(request["prompt_ids"], np.int32)
        guidance = ("lark_grammar", request["grammar"]["lark"]) if request["enforce"] else None
        begin = time.perf_counter()
        generator = self._generator(
            self.experts[request["expert"]], len(prompt) + request["max_tokens"], guidance=guidance
        )
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
        seconds = time.perf_counter() - begin
        tokens = generator.get_sequence(0)[len(prompt) :].tolist()
        ended = len(tokens) < request["max_tokens"]
        return {
            "seconds": seconds,
            "tokens": len(tokens),
            "ids": tokens,
            "valid": ended if guidance else None,
        }

    def logits(self, ids: list[int], file: str) -> dict[str, Any]:
        """See `Peer`; token by token, because the graph gives the last row only."""
        generator = self._generator(self.model, len(ids) + 1)
        rows = []
        for token in ids:
            generator.append_tokens(np.asarray([token], np.int32))
            rows.append(np.asarray(generator.get_logits(), np.float32).reshape(-1).copy())
        np.save(file, np.stack(rows))
        return {}


if __name__ == "__main__":
    serve(GenAI, ("onnxruntime-genai", "onnxruntime", "numpy"))
