"""Tiny random models and adapters in the forms of Hugging Face and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

KINDS = ("lora", "rslora", "dora", "adalora", "ia3", "lokr")
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]

_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "vocab_size": 288,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    # Between them: tied and untied heads, biases, q/k norms, a sliding window, rope scaling, odd head sizes.
    "llama": (
        LlamaConfig,
        {
            "tie_word_embeddings": True,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": False}),
    "qwen3": (Qwen3Config, {"head_dim": 32, "tie_word_embeddings": True}),
    "mistral": (MistralConfig, {"sliding_window": 8, "tie_word_embeddings": False}),
}
ARCHITECTURES = tuple(_CONFIGS)
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def spread_out(model: torch.nn.Module) -> None:
    """Give every parameter random values that are large enough to change answers."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.5)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.15)


def save_model(folder: Path, architecture: str, *, seed: int = 0, **options: Any) -> Path:
    """Save a random model with large weights, and a byte-level tokenizer with a ChatML template.

    `options` replace fields of the architecture's configuration.
    """
    torch.manual_seed(seed)
    config_class, fields = _CONFIGS[architecture]
    model = AutoModelForCausalLM.from_config(config_class(**{**_SHAPE, **fields, **options})).eval()
    spread_out(model)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["select from where"],
        trainers.BpeTrainer(
            vocab_size=280, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        chat_template=_TEMPLATE,
    )
    fast.save_pretrained(folder)
    return folder


def load_model(folder: Path) -> torch.nn.Module:
    """Load the model in float32 with eager attention, as for the references."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def adapter_config(kind: str, **options: Any) -> peft.PeftConfig:
    """Return a PEFT configuration of `kind` for every projection (for IA3, the usual ones)."""
    common = {"task_type": "CAUSAL_LM", "target_modules": [*ATTENTION, *MLP], **options}
    match kind:
        case "lora":
            return peft.LoraConfig(r=4, lora_alpha=8, **common)
        case "rslora":
            return peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, **common)
        case "dora":
            return peft.LoraConfig(r=4, lora_alpha=8, use_dora=True, **common)
        case "adalora":
            return peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=8, total_step=10, **common)
        case "ia3":
            common["target_modules"] = ["k_proj", "v_proj", "down_proj"]
            return peft.IA3Config(feedforward_modules=["down_proj"], **{**common, **options})
        case "lokr":
            return peft.LoKrConfig(r=4, alpha=8, **common)
    raise ValueError(kind)


def save_adapter(folder: Path, model_folder: Path, config: peft.PeftConfig, *, seed: int = 1) -> Path:
    """Make an adapter with random weights that are large enough to change answers."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(load_model(model_folder), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ia3_l" in name or "magnitude" in name:
                parameter.mul_(torch.empty_like(parameter).uniform_(0.5, 1.5))
            elif "lora_" in name or "lokr_" in name:
                parameter.normal_(0, 0.2)
            elif "modules_to_save" in name or "trainable_tokens" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def save_pruned_adalora(folder: Path, model_folder: Path) -> Path:
    """Train an AdaLoRA adapter for three steps. Most ranks are pruned, in some modules all of them."""
    config = peft.AdaLoraConfig(
        task_type="CAUSAL_LM",
        target_modules=[*ATTENTION, *MLP],
        init_r=4,
        target_r=1,
        lora_alpha=8,
        tinit=0,
        tfinal=1,
        total_step=3,
    )
    torch.manual_seed(1)
    model = peft.get_peft_model(load_model(model_folder), config)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(0, 0.4)
    token_ids = torch.randint(3, 280, (2, 20))
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    for step in range(config.total_step):
        optimizer.zero_grad()
        model(token_ids, labels=token_ids).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
    model.save_pretrained(folder)
    return folder


def with_manifest(folder: Path, name: str = "expert-tiny", **base: Any) -> Path:
    """Add the smallest valid manifest to an expert's folder."""
    import json

    document = {
        "name": name,
        "version": "1.0.0",
        "schema_version": "2.0",
        "base_models": [{"name": "tiny", "adapters": [{"type": "lora"}], **base}],
    }
    (folder / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    return folder
