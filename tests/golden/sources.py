"""Tiny base models and PEFT adapters of random numbers, written with numpy alone.

Every number is a multiple of 1/64 with few digits: float16 and bfloat16 hold it exactly, and a package of such
weights is small. The numbers come from `numpy.random.default_rng`, whose stream is the same wherever numpy is of the
same version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

__all__ = ["ADAPTERS", "BASES", "CHATML", "THINKING", "Adapter", "Base", "save_adapter", "save_base"]

Tensors = dict[str, NDArray[np.float32]]

_INTERMEDIATE, _VOCABULARY, _LAYERS, _RANK = 32, 288, 2, 4
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TURN = 2
"""The id of `<|im_end|>`: its embedding is zero, so that it is never the likeliest token of tied embeddings."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template that shows roles and texts."""

THINKING = (
    "{% if tools %}<|im_start|>system\n"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""A chat template that shows tools and calls, and knows `enable_thinking`, as Qwen3's does."""


@dataclass(frozen=True)
class Base:
    """A base model to write.

    Attributes:
        model_type: as in `config.json`.
        seed: of its weights.
        context: its `max_position_embeddings`.
        heads: query heads, and key and value heads.
        hidden: its `hidden_size`; 8-bit and 4-bit weights are in blocks of 32.
        fields: further fields of `config.json`.
        template: its chat template.
        extra_tokens: texts that are tokens of their own, behind the learned ones; they are not special.
    """

    model_type: str
    seed: int
    context: int
    heads: tuple[int, int]
    hidden: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    template: str = CHATML
    extra_tokens: tuple[str, ...] = ()

    @property
    def tied(self) -> bool:
        """Whether embedding and LM head are one tensor."""
        return bool(self.fields.get("tie_word_embeddings", False))


@dataclass(frozen=True)
class Adapter:
    """An adapter to write; `fields` replace those of `adapter_config.json`."""

    kind: str
    seed: int
    fields: Mapping[str, Any] = field(default_factory=dict)


_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
BASES = {
    "tiny": Base("qwen3", 1, 512, (4, 2), 32, {"tie_word_embeddings": True}),
    "small": Base("llama", 2, 128, (4, 2), 32, {"tie_word_embeddings": True, "rope_scaling": _LLAMA3}),
    "windowed": Base("mistral", 3, 128, (2, 1), 16, {"sliding_window": 8}),
    "biased": Base("qwen2", 4, 256, (1, 1), 16, template=THINKING, extra_tokens=("<think>", "</think>")),
}
"""Base models by the name of their folder: every architecture, with tied and untied heads, biases, norms of query and
key, a sliding window, scaled rotary embeddings, and heads that are wider than their share of the hidden size."""

_LORA: dict[str, Any] = {"peft_type": "LORA", "r": _RANK, "lora_alpha": 8, "bias": "none"}
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": _LORA,
    "rslora": {**_LORA, "lora_alpha": 6, "use_rslora": True},
    "dora": {**_LORA, "use_dora": True},
    "adalora": {**_LORA, "peft_type": "ADALORA", "r": 8, "init_r": _RANK, "target_r": 2, "total_step": 10},
    "ia3": {"peft_type": "IA3", "feedforward_modules": ["down_proj"]},
    "lokr": {"peft_type": "LOKR", "r": _RANK, "alpha": 8, "decompose_factor": -1},
}
"""What `adapter_config.json` says of each kind, beside what all kinds have."""

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


def save_base(folder: Path, base: Base) -> Path:
    """Write a base model as Hugging Face writes one: `config.json`, the weights and the tokenizer.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True)
    heads, key_heads = base.heads
    config = {
        "architectures": [f"{base.model_type.capitalize()}ForCausalLM"],
        "model_type": base.model_type,
        "hidden_size": base.hidden,
        "intermediate_size": _INTERMEDIATE,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": _HEAD,
        "max_position_embeddings": base.context,
        "vocab_size": _VOCABULARY,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": END_OF_TURN,
        "dtype": "float32",
        **base.fields,
    }
    if base.model_type == "qwen2":
        del config["head_dim"]  # it is always the hidden size by the heads
    _write_json(folder / "config.json", config)
    save_file(_base_tensors(base), folder / "model.safetensors", {"format": "pt"})
    _save_tokenizer(folder, base)
    return folder


def save_adapter(folder: Path, base: Base, adapter: Adapter, manifest: Mapping[str, Any]) -> Path:
    """Write an adapter as PEFT writes one, on the weights of `base`, with a manifest beside.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True)
    targets = ("k_proj", "v_proj", "down_proj") if adapter.kind == "ia3" else (*_ATTENTION, *_MLP)
    config = {
        "base_model_name_or_path": "tiny",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "target_modules": list(targets),
        **ADAPTERS[adapter.kind],
        **adapter.fields,
    }
    _write_json(folder / "adapter_config.json", config)
    _write_json(folder / "manifest.json", manifest)
    tensors = {}
    rng = np.random.default_rng(adapter.seed)
    for name, weight in _base_tensors(base).items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in config["target_modules"]:
            for part, array in _adapter_tensors(adapter.kind, rng, weight, feedforward=".mlp." in module):
                tensors[f"base_model.model.{module}.{part}"] = array
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


_HEAD = 16  # the smallest that GroupQueryAttention rotates


def _base_tensors(base: Base) -> Tensors:
    """The weights by their Hugging Face names, each [out, in]."""
    rng = np.random.default_rng(base.seed)
    query, key = (count * _HEAD for count in base.heads)
    hidden, most = base.hidden, 12 if base.hidden == 32 else 17  # the fewer inputs, the larger the weights
    tensors: Tensors = {"model.embed_tokens.weight": _grid(rng, most, 32, _VOCABULARY, hidden)}
    tensors["model.embed_tokens.weight"][END_OF_TURN] = 0
    for layer in range(_LAYERS):
        prefix = f"model.layers.{layer}"
        for name, outputs, inputs in (
            ("self_attn.q_proj", query, hidden),
            ("self_attn.k_proj", key, hidden),
            ("self_attn.v_proj", key, hidden),
            ("self_attn.o_proj", hidden, query),
            ("mlp.gate_proj", _INTERMEDIATE, hidden),
            ("mlp.up_proj", _INTERMEDIATE, hidden),
            ("mlp.down_proj", hidden, _INTERMEDIATE),
        ):
            tensors[f"{prefix}.{name}.weight"] = _grid(rng, most, 32, outputs, inputs)
            if base.model_type == "qwen2" and name[-6:] in ("q_proj", "k_proj", "v_proj"):
                tensors[f"{prefix}.{name}.bias"] = _grid(rng, 28, 32, outputs)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = _factors(rng, hidden)
        if base.model_type == "qwen3":
            for norm in ("q_norm", "k_norm"):
                tensors[f"{prefix}.self_attn.{norm}.weight"] = _factors(rng, _HEAD)
    tensors["model.norm.weight"] = _factors(rng, hidden)
    if not base.tied:
        tensors["lm_head.weight"] = _grid(rng, most, 32, _VOCABULARY, hidden)
        tensors["lm_head.weight"][END_OF_TURN] = 0
    return tensors


def _adapter_tensors(
    kind: str, rng: np.random.Generator, weight: NDArray[np.float32], *, feedforward: bool
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The tensors of one module by the end of their PEFT names; `weight` is the base's [out, in]."""
    outputs, inputs = weight.shape
    match kind:
        case "ia3":
            yield "ia3_l", _factors(rng, 1, inputs) if feedforward else _factors(rng, outputs, 1)
        case "lokr":
            (a, b), (c, d) = _factored(outputs), _factored(inputs)
            yield "lokr_w1", _grid(rng, 10, 32, a, c)
            yield "lokr_w2", _grid(rng, 10, 32, b, d)  # as PEFT has it where the rank is not small
        case "adalora":
            yield "lora_A", _grid(rng, 12, 32, _RANK, inputs)
            yield "lora_B", _grid(rng, 12, 32, outputs, _RANK)
            yield "lora_E", _factors(rng, _RANK, 1)
        case _:
            yield "lora_A.weight", _grid(rng, 12, 32, _RANK, inputs)
            yield "lora_B.weight", _grid(rng, 12, 32, outputs, _RANK)
            if kind == "dora":
                norms = np.sqrt((weight.astype(np.float64) ** 2).sum(axis=1)) * _factors(rng, outputs)
                yield "lora_magnitude_vector", (np.round(norms * 64) / 64).astype(np.float32)


def _grid(rng: np.random.Generator, most: int, parts: int, *shape: int) -> NDArray[np.float32]:
    """Multiples of 1/parts, from -most to most of them."""
    return (rng.integers(-most, most + 1, shape) / parts).astype(np.float32)


def _factors(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Numbers from 0.5 to 1.5."""
    return (rng.integers(32, 97, shape) / 64).astype(np.float32)


def _factored(size: int) -> tuple[int, int]:
    """The two factors of a size that are nearest to each other, the smaller first, as LoKr takes them."""
    small = next(number for number in range(int(size**0.5), 0, -1) if size % number == 0)
    return small, size // small


def _save_tokenizer(folder: Path, base: Base) -> None:
    """A byte-level BPE with a few words, as transformers writes it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["select from where"], trainer)
    tokenizer.add_tokens([AddedToken(token, special=False) for token in base.extra_tokens])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": _SPECIAL[0],
            "eos_token": _SPECIAL[0],
            "clean_up_tokenization_spaces": False,
        },
    )
    (folder / "chat_template.jinja").write_bytes(base.template.encode())


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_bytes((json.dumps(document, indent=2) + "\n").encode())
