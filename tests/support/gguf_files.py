"""Writes GGUF files of tiny models and vocabularies, in the form of llama.cpp's converter."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from torch import nn

from hivellm_export.gguf.pretokenizers import PRE_TOKENIZERS
from support import tiny
from support.gguf_texts import PARTS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass
class Vocabulary:
    """The values `tokenizer.ggml.*` of a file; `values` are those that are not lists."""

    values: dict[str, Any]
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def add(self, token: str, kind: int = NORMAL, score: float = 0.0) -> None:
        """Put a token at the end."""
        self.tokens.append(token)
        self.types.append(kind)
        self.scores.append(score)

    def keys(self) -> dict[str, Any]:
        """Return all values by key, without empty lists."""
        lists = {
            "tokens": self.tokens,
            "token_type": self.types,
            "merges": self.merges,
            "scores": self.scores,
        }
        values = {**self.values, **{name: value for name, value in lists.items() if value}}
        if values["model"] == "gpt2":
            del values["scores"]
        return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def byte_vocabulary(
    pre: str = "qwen2", *, extra: Sequence[str] = ("<think>", "</think>"), lacking: str = ""
) -> Vocabulary:
    """Return a vocabulary of all bytes except `lacking`, with merges for parts and pairs of parts of the texts.

    The first part is `!`; what llama.cpp does not cut out of a text therefore shows in the ids.
    """
    encode = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    without = {encode.pre_tokenize_str(byte)[0][0] for byte in lacking}
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - without)
    made = Vocabulary({"model": "gpt2", "pre": pre}, list(alphabet), [NORMAL] * len(alphabet))
    known = set(alphabet)
    pieces = [";\n\n", *(part for group in PARTS for part in group)]
    pieces += [blank + piece for blank in (" ", "\t") for piece in pieces[:60]]
    pieces += [f"{one}{two}" for one, two in zip(pieces, pieces[7:], strict=False)]
    for piece in pieces:
        (whole, _), *_ = encode.pre_tokenize_str(piece) or [("!", (0, 0))]
        for i in range(1, min(len(whole), 12)):
            token = whole[: i + 1]
            if token not in known and not without & set(token):
                known.add(token)
                made.add(token)
                made.merges.append(f"{whole[:i]} {whole[i]}")
    made.scores = [0.0] * len(made.tokens)
    for marker in MARKERS:
        made.values["eos_token_id"] = len(made.tokens)
        made.add(marker, CONTROL)
    made.values["bos_token_id"] = len(made.tokens) - 3
    for token in extra:
        made.add(token, USER_DEFINED)
    return made


def small_vocabulary(pre: str = "qwen2") -> Vocabulary:
    """Return a vocabulary for models: every byte and the markers, without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Vocabulary({"model": "gpt2", "pre": pre}, list(alphabet), [NORMAL] * len(alphabet))
    made.scores = [0.0] * len(alphabet)
    made.add("ab")
    made.merges.append("a b")
    for marker in MARKERS:
        made.values["eos_token_id"] = len(made.tokens)
        made.add(marker, CONTROL)
    made.values["bos_token_id"] = len(made.tokens) - 3
    return made


def character_vocabulary(**values: Any) -> Vocabulary:
    """Return a vocabulary in SentencePiece's form: bytes, characters and beginnings of the parts, with scores."""
    made = Vocabulary(
        {"model": "llama", "pre": "default", "bos_token_id": 1, "eos_token_id": 2, **values}, [], []
    )
    for token, kind in (("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)):
        made.add(token, kind)
    for byte in range(256):
        made.add(f"<0x{byte:02X}>", BYTE)
    pieces = [part.replace(" ", "▁") for group in PARTS[:3] for part in group]
    known, score = set(made.tokens), 0.0
    for piece in ["▁" * 16, *pieces, *(f"▁{piece}" for piece in pieces)]:
        for end in range(2, min(len(piece), 10) + 1):
            token = piece[:end]
            if token not in known and "\n" not in token:
                score -= 1.0
                known.add(token)
                # Blanks are one score, as in Llama's vocabulary.
                made.add(token, NORMAL, -1e9 if set(token) == {"▁"} else score)
    for character in sorted({character for token in known for character in token} - known):
        score -= 1.0
        made.add(character, NORMAL, score)
    for token in ("<|user|>", "<|assistant|>"):
        made.add(token, USER_DEFINED)
    return made


def model_keys(config: Any, kind: str) -> dict[str, Any]:
    """Return the values of the architecture, in the form of the converter."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return {
        "general.architecture": kind,
        f"{kind}.context_length": config.max_position_embeddings,
        f"{kind}.embedding_length": config.hidden_size,
        f"{kind}.block_count": config.num_hidden_layers,
        f"{kind}.feed_forward_length": config.intermediate_size,
        f"{kind}.attention.head_count": heads,
        f"{kind}.attention.head_count_kv": config.num_key_value_heads,
        f"{kind}.attention.key_length": head_dim,
        f"{kind}.attention.value_length": head_dim,
        f"{kind}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{kind}.rope.freq_base": config.rope_theta,
        f"{kind}.rope.dimension_count": head_dim,
    }


def model_tensors(model: nn.Module, kind: str) -> dict[str, np.ndarray]:
    """Return the weights by llama.cpp's names. Llama's q and k have llama.cpp's order of rows."""
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    tensors = {}
    for place, parameter in model.named_parameters():
        name = names.get_name(place, try_suffixes=(".weight", ".bias"))
        values = parameter.detach().numpy()
        if kind == "llama" and (".attn_q." in name or ".attn_k." in name):
            q = ".attn_q." in name
            heads = model.config.num_attention_heads if q else model.config.num_key_value_heads
            halves = values.reshape(heads, 2, -1, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        tensors[name] = np.ascontiguousarray(values)
    return tensors


def save(
    path: Path,
    keys: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray] | None = None,
    *,
    raw: Mapping[str, tuple[np.ndarray, gguf.GGMLQuantizationType]] | None = None,
    order: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
) -> Path:
    """Write a file; keys whose value is None are left out. `raw` has tensors as bytes, with their types."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = {key: value for key, value in keys.items() if value is not None}
    writer = gguf.GGUFWriter(path, keys["general.architecture"], endianess=order)
    for key, value in keys.items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
            writer.add_key_value(key, value, gguf.GGUFValueType[kinds[type(value)]])
    for name, values in (tensors or {}).items():
        data, kind = (raw or {}).get(name, (values, None))
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_model(config: Any, *, seed: int = 0) -> nn.Module:
    """Return a model in float32 with large weights."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    tiny.spread_out(model)
    return model


def tiny_keys(model: nn.Module, kind: str, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
    """Return all values of a file of `model`: architecture, tokenizer and template."""
    words = (vocabulary or small_vocabulary()).keys()
    return {**model_keys(model.config, kind), **words, "tokenizer.chat_template": TEMPLATE}


VOCABULARIES: dict[str, Callable[[], Vocabulary]] = {
    **{pre: functools.partial(byte_vocabulary, pre) for pre in sorted(PRE_TOKENIZERS)},
    "bytes-missing": functools.partial(byte_vocabulary, "gpt-2", lacking="\x04\x14"),
    "characters": character_vocabulary,
    "characters-no-prefix": functools.partial(character_vocabulary, add_space_prefix=False),
    "characters-ends": functools.partial(character_vocabulary, add_bos_token=False, add_eos_token=True),
}
"""The vocabularies for comparing texts, by name: one for each way to split words, and one with scores."""
