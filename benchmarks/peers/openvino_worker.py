"""Worker of OpenVINO GenAI, on a folder that `openvino_models.py` converted.

Its defaults hold where nothing is said: activations in bf16 where the CPU has AMX, keys and values in 8 bits. Kept
prefixes are off but for the expert workload.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openvino
import openvino_genai
from protocol import Peer, UnsupportedError, serve


class OpenVINO(Peer):
    """The base model; or, where the spec names experts, one pipeline with each of them folded in."""

    def __init__(self, spec: dict[str, Any]):
        self.spec = spec
        self.experts = {name: self._load(folder, prefixes=True) for name, folder in spec["experts"].items()}
        self.model = None if self.experts else self._load(spec["folder"], prefixes=False)

    def _load(self, folder: str, prefixes: bool) -> Any:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = prefixes
        scheduler.max_num_batched_tokens = 8192
        return openvino_genai.LLMPipeline(
            folder, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=self.spec["threads"]
        )

    @staticmethod
    def _ids(prompt: list[int]) -> Any:
        return openvino.Tensor(np.asarray([prompt], np.int64))

    def generate(self, prompt_ids: list[int], new_tokens: int, adapter: str | None = None) -> dict[str, Any]:
        """See `Peer`; the time to the first token is the pipeline's own figure."""
        if adapter is not None:
            raise UnsupportedError("adapters are given at load, and DoRA is not supported")
        config = openvino_genai.GenerationConfig(
            max_new_tokens=new_tokens, ignore_eos=True, do_sample=False, apply_chat_template=False
        )
        begin = time.perf_counter()
        output = self.model.generate(self._ids(prompt_ids), config)
        seconds = time.perf_counter() - begin
        first = output.perf_metrics.get_ttft().mean / 1e3
        tokens = list(output.tokens[0])
        if len(tokens) != new_tokens:
            raise RuntimeError(f"{len(tokens)} tokens instead of {new_tokens}")
        return {"prefill_seconds": first, "decode_seconds": seconds - first, "tokens": tokens}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """See `Peer`; each expert is a pipeline of its own, with kept prefixes; the grammar is XGrammar's."""
        if request["expert"] not in self.experts:
            raise UnsupportedError("no model with this expert folded in")
        config = openvino_genai.GenerationConfig(
            max_new_tokens=request["max_tokens"],
            eos_token_id=self.spec["end"],
            stop_token_ids={self.spec["end"]},
            do_sample=False,
            apply_chat_template=False,
        )
        if request["enforce"]:
            config.structured_output_config = openvino_genai.StructuredOutputConfig(
                grammar=request["grammar"]["gbnf"]
            )
        begin = time.perf_counter()
        output = self.experts[request["expert"]].generate(self._ids(request["prompt_ids"]), config)
        seconds = time.perf_counter() - begin
        tokens = list(output.tokens[0])
        ended = len(tokens) < request["max_tokens"]
        return {
            "seconds": seconds,
            "tokens": len(tokens),
            "ids": tokens,
            "valid": ended if request["enforce"] else None,
        }


if __name__ == "__main__":
    serve(OpenVINO, ("openvino-genai", "openvino"))
