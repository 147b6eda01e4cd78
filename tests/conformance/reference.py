"""The answers of transformers and PEFT, token by token, for the lines that they can answer."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from golden.sources import BASES, save_base
from numpy.typing import NDArray
from support.golden import PEFT, adapter_folder
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin

__all__ = ["Reference", "answerable"]

_BASES = {"short": "small", "lokr": "small", "windowed": "windowed", "thinking": "biased"}
# Options that nothing in transformers does as the SDKs do.
_UNKNOWN = {"grammar", "json_schema", "regex", "choice", "bad_words", "tool_choice"}
_EOS = (2,)


def answerable(options: Mapping[str, Any]) -> bool:
    """Whether a reference can give the tokens, and not only how likely they are."""
    return not _UNKNOWN & {name for name, value in options.items() if value not in (None, False)}


class Reference:
    """Models of transformers with the golden adapters of PEFT, in float32.

    Args:
        work: a folder for their files.
    """

    def __init__(self, work: Path):
        self._work = work

    @functools.cache  # noqa: B019 - one instance lives as long as the program
    def _model(self, package: str) -> Any:
        name = _BASES.get(package, "tiny")
        base = self._work / "bases" / name
        if not base.is_dir():
            save_base(base, BASES[name])
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
        folder = PEFT if package == "reference" else adapter_folder(package, self._work / package)
        return peft.PeftModel.from_pretrained(model, folder).eval()

    ends = _EOS
    """Tokens that end an answer."""

    def encode(self, package: str, text: str) -> list[int]:
        """The tokens of a text."""
        self._model(package)
        path = self._work / "bases" / _BASES.get(package, "tiny") / "tokenizer.json"
        return list(Tokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids)

    def logits(self, package: str, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits float32 [len(token_ids), vocab]."""
        with torch.no_grad():
            return np.asarray(self._model(package)(torch.tensor([list(token_ids)])).logits[0].numpy())

    def tokens(
        self, package: str, prompt_ids: Sequence[int], options: Mapping[str, Any], limit: int
    ) -> list[int]:
        """What is generated: greedy, or drawn as `docs/decoding.md` says.

        Args:
            package: the golden package.
            prompt_ids: the prompt.
            options: of the line.
            limit: most tokens.
        """
        processors = self._processors(options, len(prompt_ids))
        draws = np.random.Generator(np.random.PCG64(np.random.SeedSequence(options.get("seed"))))
        ids, made = list(prompt_ids), []
        for _ in range(limit):
            scores = torch.from_numpy(self.logits(package, ids)[-1:].copy())
            scores = processors[0](torch.tensor([ids]), scores)
            for token in set(made):
                scores[0, token] -= options.get("presence_penalty", 0.0)
                scores[0, token] -= options.get("frequency_penalty", 0.0) * made.count(token)
            if options.get("temperature", 0):
                shares = processors[1](torch.tensor([ids]), scores).double().softmax(dim=-1)[0].numpy()
                total = np.cumsum(shares)
                token = int(np.searchsorted(total, draws.random() * total[-1], side="right"))
            else:
                token = int(scores[0].argmax())
            ids.append(token)
            made.append(token)
            if token in _EOS:
                break
        return made

    @staticmethod
    def _processors(options: Mapping[str, Any], prompt_length: int) -> tuple[Any, Any]:
        """The processors before the penalties of vLLM, and the warpers behind them."""
        bias = {(int(token),): float(value) for token, value in (options.get("logit_bias") or {}).items()}
        config = GenerationConfig(
            repetition_penalty=options.get("repetition_penalty", 1.0),
            no_repeat_ngram_size=options.get("no_repeat_ngram_size", 0),
            sequence_bias=bias or None,
            min_new_tokens=options.get("min_tokens"),
            eos_token_id=list(_EOS),
        )
        warping = GenerationConfig(
            do_sample=True,
            temperature=options.get("temperature") or 1.0,
            top_k=options.get("top_k", 0),
            top_p=options.get("top_p", 1.0),
            min_p=options.get("min_p"),
            typical_p=options.get("typical_p", 1.0),
        )
        made = []
        for one in (config, warping):
            one._eos_token_tensor = torch.tensor(_EOS)
            made.append(
                GenerationMixin()._get_logits_processor(one, input_ids_seq_length=prompt_length, device="cpu")
            )
        return made[0], made[1]
