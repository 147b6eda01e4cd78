"""Worker of Optimum's ORTModelForCausalLM, on a folder that `optimum_models.py` exported: fp32, a growing cache."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForCausalLM
from protocol import Peer, serve


class Optimum(Peer):
    """The base model."""

    def __init__(self, spec: dict[str, Any]):
        torch.set_num_threads(spec["threads"])
        torch.set_grad_enabled(False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = spec["threads"]
        options.log_severity_level = 3
        self.end = spec["end"]
        self.model = ORTModelForCausalLM.from_pretrained(
            spec["folder"], session_options=options, provider="CPUExecutionProvider"
        )

    def _decode(self, prompts: list[list[int]], new_tokens: int) -> tuple[list[float], Any]:
        # `generate` adds milliseconds of its own to every token: this is the model's forward alone.
        ids, past, tokens = torch.tensor(prompts), None, []
        mask = torch.ones_like(ids)
        times = [time.perf_counter()]
        for _ in range(new_tokens):
            output = self.model(input_ids=ids, attention_mask=mask, past_key_values=past, use_cache=True)
            past = output.past_key_values
            ids = output.logits[:, -1].argmax(-1, keepdim=True)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            tokens.append(ids)
            times.append(time.perf_counter())
        return times, torch.cat(tokens, dim=1)

    def generate(self, prompt_ids: list[int], new_tokens: int, adapter: str | None = None) -> dict[str, Any]:
        """See `Peer`."""
        if adapter is not None:
            return super().generate(prompt_ids, new_tokens, adapter)
        times, tokens = self._decode([prompt_ids], new_tokens)
        return {
            "prefill_seconds": times[1] - times[0],
            "decode_seconds": times[-1] - times[1],
            "tokens": tokens[0].tolist(),
        }

    def batch(
        self, prompts: list[list[int]], adapters: list[str | None], new_tokens: int, together: bool
    ) -> dict[str, Any]:
        """See `Peer`."""
        if any(adapters):
            return super().batch(prompts, adapters, new_tokens, together)
        begin = time.perf_counter()
        for rows in [prompts] if together else [[prompt] for prompt in prompts]:
            self._decode(rows, new_tokens)
        return {"seconds": time.perf_counter() - begin}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """See `Peer`; the base stands for a merged expert, which is the same work, to the reference's length."""
        length = request["length"]
        if length is None:
            return super().answer(request)
        ids = torch.tensor([request["prompt_ids"]])
        begin = time.perf_counter()
        self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            eos_token_id=self.end,
            pad_token_id=self.end,
            max_new_tokens=length,
            min_new_tokens=length,
        )
        return {"seconds": time.perf_counter() - begin, "tokens": length, "valid": None}

    def logits(self, ids: list[int], file: str) -> dict[str, Any]:
        """See `Peer`."""
        tensor = torch.tensor([ids])
        output = self.model(input_ids=tensor, attention_mask=torch.ones_like(tensor))
        np.save(file, output.logits[0].float().numpy())
        return {}


if __name__ == "__main__":
    serve(Optimum, ("optimum-onnx", "transformers", "onnxruntime", "torch"))
