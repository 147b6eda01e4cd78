"""Worker of transformers and PEFT, on a Hugging Face folder, in fp32 or bf16 (with AMX where the CPU has it)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import peft
import torch
import transformers
from protocol import Peer, UnsupportedError, serve

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Transformers(Peer):
    """The model; with adapters, all of them in one PEFT model, as `set_adapter` needs it."""

    def __init__(self, spec: dict[str, Any]):
        torch.set_num_threads(spec["threads"])
        torch.set_grad_enabled(False)
        transformers.logging.set_verbosity_error()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            spec["folder"], dtype=_TYPES[spec["precision"]], attn_implementation="sdpa"
        ).eval()
        self.end = spec["end"]
        self.adapters: set[str] = set()
        for name, folder in spec["experts"].items():
            self._add(name, folder)

    def _add(self, name: str, folder: str) -> None:
        if isinstance(self.model, peft.PeftModel):
            self.model.load_adapter(folder, adapter_name=name)
        else:
            self.model = peft.PeftModel.from_pretrained(self.model, folder, adapter_name=name)
        self._settle(name)

    def _settle(self, name: str) -> None:
        # PEFT keeps adapters in float32; beside a bf16 base that only converts back and forth.
        self.model.eval().to(next(self.model.parameters()).dtype)
        self.adapters.add(name)

    def add_adapter(self, name: str, kind: str, rank: int, modules: list[str]) -> dict[str, Any]:
        """See `Peer`."""
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=modules,
            use_dora=kind == "dora",
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        )
        if isinstance(self.model, peft.PeftModel):
            self.model.add_adapter(name, config)
        else:
            self.model = peft.get_peft_model(self.model, config, adapter_name=name)
        self._settle(name)
        return {}

    def _steps(
        self, prompts: list[list[int]], new_tokens: int, adapter: str | None
    ) -> tuple[list[float], Any]:
        """Times at which each token was there, the begin first, and the tokens [rows, new_tokens]."""
        if isinstance(self.model, peft.PeftModel):
            if adapter is None:
                with self.model.disable_adapter():
                    return self._decode(prompts, new_tokens)
            self.model.set_adapter(adapter)
        elif adapter is not None:
            raise UnsupportedError(f"there is no adapter {adapter}")
        return self._decode(prompts, new_tokens)

    def _decode(self, prompts: list[list[int]], new_tokens: int) -> tuple[list[float], Any]:
        # `generate` adds milliseconds of its own to every token: this is the model's forward alone.
        ids, cache, times, tokens = torch.tensor(prompts), transformers.DynamicCache(), [], []
        times.append(time.perf_counter())
        for _ in range(new_tokens):
            output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids = output.logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(ids)
            times.append(time.perf_counter())
        return times, torch.cat(tokens, dim=1)

    def generate(self, prompt_ids: list[int], new_tokens: int, adapter: str | None = None) -> dict[str, Any]:
        """See `Peer`."""
        times, tokens = self._steps([prompt_ids], new_tokens, adapter)
        return {
            "prefill_seconds": times[1] - times[0],
            "decode_seconds": times[-1] - times[1],
            "tokens": tokens[0].tolist(),
        }

    def swap(self, adapters: list[str], count: int) -> dict[str, Any]:
        """See `Peer`; `set_adapter` walks over all modules."""
        seconds = []
        for number in range(count):
            begin = time.perf_counter()
            self.model.set_adapter(adapters[number % len(adapters)])
            seconds.append(time.perf_counter() - begin)
        return {"seconds": seconds[len(adapters) :]}

    def batch(
        self, prompts: list[list[int]], adapters: list[str | None], new_tokens: int, together: bool
    ) -> dict[str, Any]:
        """See `Peer`."""
        if len(set(adapters)) > 1 and together:
            raise UnsupportedError("PEFT mixes adapters in a batch for LoRA, not for DoRA")
        begin = time.perf_counter()
        if together:
            self._steps(prompts, new_tokens, adapters[0])
        else:
            for prompt, adapter in zip(prompts, adapters, strict=True):
                self._steps([prompt], new_tokens, adapter)
        return {"seconds": time.perf_counter() - begin}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """See `Peer`; without a grammar, to the length that the reference answer has, through `generate`."""
        if request["expert"] not in self.adapters:
            raise UnsupportedError("the experts are for another base")
        length = request["length"]
        limits = {"max_new_tokens": request["max_tokens"]}
        if length is not None:
            limits = {"max_new_tokens": length, "min_new_tokens": length}
        begin = time.perf_counter()
        self.model.set_adapter(request["expert"])
        ids = torch.tensor([request["prompt_ids"]])
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            eos_token_id=self.end,
            pad_token_id=self.end,
            **limits,
        )
        seconds = time.perf_counter() - begin
        tokens = output[0, ids.shape[1] :].tolist()
        return {"seconds": seconds, "tokens": len(tokens), "ids": tokens, "valid": None}

    def logits(self, ids: list[int], file: str) -> dict[str, Any]:
        """See `Peer`."""
        model = self.model
        if isinstance(model, peft.PeftModel):
            raise UnsupportedError("asked of the base alone")
        np.save(file, model(input_ids=torch.tensor([ids])).logits[0].float().numpy())
        return {}


if __name__ == "__main__":
    serve(Transformers, ("transformers", "peft", "torch"))
