"""Write a model as a Hugging Face folder in float32; runs in the environment of the harness, with `[export]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from hivellm_export.base_model import load_base
from hivellm_export.merge import merge


def save_tokenizer(gguf: Path, folder: Path) -> None:
    """Write the GGUF's tokenizer as the byte-level BPE that it is.

    Its reader makes half a SentencePiece of it. The tokens are the same, but GenAI would not know their bytes, and
    its grammars would fail.
    """
    load_base(gguf).tokenizer.save_pretrained(folder)
    rewrite(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    path = folder / "tokenizer.json"
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = {"byte_fallback": False, "fuse_unk": False}
    rewrite(
        path, {"decoder": level, "post_processor": level, "normalizer": None, "model": {**model, **plain}}
    )


def rewrite(path: Path, changes: dict[str, Any]) -> None:
    """Change members of a JSON file."""
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**document, **changes}, ensure_ascii=False, indent=2), encoding="utf-8")


def smollm2(spec: dict[str, Any], folder: Path) -> None:
    """The GGUF dequantised, with an expert folded in where `merged` names its folder."""
    base = load_base(Path(spec["gguf"]))
    if "merged" in spec:
        base, _ = merge(base, Path(spec["merged"]))
    base.model.save_pretrained(folder)
    save_tokenizer(Path(spec["gguf"]), folder)


def random_qwen3(spec: dict[str, Any], folder: Path) -> None:
    """Random weights in the shape of Qwen3-0.6B."""
    shape = spec["model"]
    config = transformers.Qwen3Config(
        hidden_size=shape["hidden"],
        intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        vocab_size=shape["vocab"],
        max_position_embeddings=40960,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    save_tokenizer(Path(spec["gguf"]), folder)  # any will do: random weights are only given token ids


if __name__ == "__main__":
    _spec = json.loads(sys.argv[1])
    (smollm2 if _spec["model"]["name"] == "smollm2" else random_qwen3)(_spec, Path(_spec["output"]))
