"""The fields of a `config.json` that the exporter knows, for each family. Any other field is refused by name.

A field is one of these:

* honoured: it changes the graph.
* harmless: it changes no logits.
* fixed: only values are accepted that mean "off", or what the family always does.
* unknown: it may change the computation, so only null is accepted, which means unused.

Sources: the configuration and model classes of transformers 4.57.6 and 5.24.0, and fields that training tools add.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hivellm_export.huggingface.files import shown
from hivellm_export.huggingface.rope import ROPE_FIELDS, read_rope
from hivellm_ort.errors import ExportError, UnsupportedArchitectureError

__all__ = ["ACTIVATIONS", "ARCHITECTURES", "check_config", "checked_token_ids"]

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
"""Every `model_type` that can be exported."""

ACTIVATIONS = (
    "silu", "swish", "gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2",
)  # fmt: skip
"""Every `hidden_act` that can be exported."""

_CLASSES = {
    "llama": ("LlamaForCausalLM", "LLaMAForCausalLM"),
    "mistral": ("MistralForCausalLM",),
    "qwen2": ("Qwen2ForCausalLM",),
    "qwen3": ("Qwen3ForCausalLM",),
}

# For training and bookkeeping, outputs of transformers, and defaults for sampling, which requests set themselves.
_HARMLESS = (
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash",
    "_flash_attn_2_enabled", "_from_model_config", "_name_or_path", "attention_dropout",
    "attn_implementation", "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "classifier_dropout",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype", "early_stopping", "embd_pdrop",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuning_task",
    "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "hidden_dropout", "id2label",
    "initializer_range", "is_decoder", "is_llama_config", "is_qwen2_config", "label2id", "length_penalty",
    "max_length", "max_sequence_length", "min_length", "model_max_length", "name_or_path",
    "neftune_noise_alpha", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels",
    "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores", "pad_token_id",
    "prefix", "pretraining_tp", "problem_type", "remove_invalid_values", "repetition_penalty", "resid_pdrop",
    "return_dict", "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params",
    "temperature", "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p",
    "torch_dtype", "torchscript", "transformers.js_config", "transformers_version", "typical_p",
    "unsloth_fixed", "unsloth_version", "use_bfloat16", "use_cache",
)  # fmt: skip

# Only these values are accepted: they describe what the graph does anyway.
_FIXED: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "attention_bias": (False,),
    "chunk_size_feed_forward": (0,),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "mlp_bias": (False,),
    "pruned_heads": ({},),
    "rope_interleaved": (False,),
    "sliding_window": (),
    "use_mrope": (False,),
    "use_sliding_window": (False,),
}
_FIXED_BY_FAMILY: dict[str, dict[str, tuple[Any, ...]]] = {
    # Queries, keys and values always have biases. A missing tensor is refused later.
    "qwen2": {"attention_bias": (True,)},
}

_Check = Callable[[Any, str], Any]


def check_config(document: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
    """Check every field of a base model's configuration.

    Args:
        document: A `config.json` of any transformers version, or the same from another source.
        where: Name of the file, for messages.

    Returns:
        Keyword arguments for the family's configuration class in transformers 4.57, with `model_type` and `head_dim`.

    Raises:
        UnsupportedArchitectureError: The graph cannot express the family, a field or a value.
        ExportError: A field has an invalid value, or a required one is missing.
    """
    family = document.get("model_type")
    if family not in ARCHITECTURES:
        raise UnsupportedArchitectureError(
            f"{where}: model_type {shown(family)} is not supported; supported are {', '.join(ARCHITECTURES)}"
        )
    _check_code(document, str(family), where)
    honoured = _HONOURED[str(family)]
    fixed = {**_FIXED, **_FIXED_BY_FAMILY.get(str(family), {})}
    config: dict[str, Any] = {"model_type": family}
    for name, value in document.items():
        if name in honoured:
            config[name] = honoured[name](value, f"{where}: {name}")
        elif name in _ELSEWHERE or name in _HARMLESS or value is None:
            continue
        elif name in fixed:
            if value not in fixed[name]:
                raise UnsupportedArchitectureError(
                    f"{where}: {name} = {shown(value)} is not supported for {family}; "
                    + (f"only {shown(fixed[name][0])} is" if fixed[name] else "it has no such field")
                )
        else:
            label = name if name.isprintable() else shown(name)
            raise UnsupportedArchitectureError(
                f"{where}: {label} = {shown(value)} is a field that the exporter does not know. It may change what "
                f"{family} computes: use a newer exporter, or remove the field if it changes nothing"
            )
    for name in _NEEDED:
        if config.get(name) is None:
            raise ExportError(f"{where}: {name} is missing")
    checked_token_ids(config.get("eos_token_id"), f"{where}: eos_token_id", config["vocab_size"])
    _check_heads(config, document, where)
    _check_layers(config, document, where)
    rope = read_rope(
        document,
        head_dim=config["head_dim"],
        positions=config.get("max_position_embeddings", _POSITIONS[str(family)]),
        where=where,
    )
    return config | rope


def checked_token_ids(value: Any, name: str, vocab_size: int) -> list[int]:
    """Check a field with one token id, a list of them, or null.

    Args:
        value: Value of the field.
        name: File and field, for messages.
        vocab_size: Upper limit of ids, exclusive.

    Returns:
        The ids; empty for null.

    Raises:
        ExportError: The value is something else.
    """
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token_id in ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
            raise ExportError(
                f"{name} must be a token id from 0 to {vocab_size - 1} or a list of them, it is {shown(value)}"
            )
    return ids


def _check_code(document: Mapping[str, Any], family: str, where: str) -> None:
    """Refuse fields that make the model another one than `model_type` says."""
    classes = document.get("architectures")
    if classes is not None and (
        not isinstance(classes, list) or set(map(str, classes)) - {*_CLASSES[family]}
    ):
        raise UnsupportedArchitectureError(
            f"{where}: architectures {shown(classes)} is not supported for {family}; supported is "
            f"{_CLASSES[family][0]}"
        )
    if document.get("auto_map"):
        raise UnsupportedArchitectureError(
            f"{where}: auto_map = {shown(document['auto_map'])} names code in the folder, which is never run: use a "
            f"model that is part of transformers, or remove the field if the code computes the same as {family}"
        )
    quantised = document.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
        raise UnsupportedArchitectureError(
            f"{where}: quantization_config says that the weights are quantised"
            + (f" with {method}" if method else "")
            + ": use the model's original weights, and --precision"
        )


def _check_heads(config: dict[str, Any], document: Mapping[str, Any], where: str) -> None:
    heads, size = config["num_attention_heads"], config["hidden_size"]
    groups = config.get("num_key_value_heads", _KEY_VALUE_HEADS.get(config["model_type"], heads))
    groups = heads if groups is None else groups
    if heads % groups:
        raise ExportError(
            f"{where}: num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}"
        )
    config["num_key_value_heads"] = groups
    if config.get("head_dim") is None:
        if config["model_type"] == "qwen3":
            if "head_dim" in document:
                raise ExportError(f"{where}: head_dim must be a whole number above 0, it is None")
            config["head_dim"] = _QWEN3_HEAD_DIM
        else:
            config["head_dim"] = size // heads
    if config["head_dim"] < 2 or config["head_dim"] % 2:
        raise ExportError(
            f"{where}: head_dim {config['head_dim']} (or hidden_size / num_attention_heads) must be an even number: "
            "rotary embeddings rotate pairs of channels"
        )


def _check_layers(config: dict[str, Any], document: Mapping[str, Any], where: str) -> None:
    """Refuse fields that contradict each other about the sliding window of layers."""
    always = config["model_type"] == "mistral" and config.get("sliding_window", _WINDOW) is not None
    if always and document.get("use_sliding_window") is False:
        raise UnsupportedArchitectureError(
            f"{where}: use_sliding_window is false, and mistral has a sliding_window of "
            f"{config.get('sliding_window', _WINDOW)}: write null for the latter, or remove the former"
        )
    types = document.get("layer_types")
    if types is None:
        config.pop("layer_types", None)
        return
    layers = config["num_hidden_layers"]
    if not isinstance(types, list) or len(types) != layers:
        raise ExportError(f"{where}: layer_types must be a list of num_hidden_layers {layers} names")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedArchitectureError(
                f"{where}: layer_types has {shown(kind)}; supported are full_attention and sliding_attention"
            )
    family = config["model_type"]
    if family in ("qwen2", "qwen3"):
        windowed = (
            config.get("use_sliding_window", False) and config.get("sliding_window", _WINDOW) is not None
        )
        wrong = "sliding_attention" in types and not windowed
    else:
        windowed = always
        wrong = set(types) != {"sliding_attention" if windowed else "full_attention"}
        config.pop("layer_types", None)
    if wrong:
        raise UnsupportedArchitectureError(
            f"{where}: layer_types {shown(sorted(set(types)))} contradicts the window, which is "
            + (f"{config.get('sliding_window', _WINDOW)} for every layer" if windowed else "off")
        )


def _whole(value: Any, name: str, most: int = 1 << 31) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < most:
        raise ExportError(f"{name} must be a whole number above 0 and below {most}, it is {shown(value)}")
    return value


def _layers(value: Any, name: str) -> int:
    return _whole(value, name, 10_000)  # transformers makes lists of this length


def _whole_or_none(value: Any, name: str) -> int | None:
    return None if value is None else _whole(value, name)


def _from_zero(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ExportError(f"{name} must be a whole number from 0, it is {shown(value)}")
    return value


def _positive(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ExportError(f"{name} must be a number between 0 and 1, it is {shown(value)}")
    return float(value)


def _flag(value: Any, name: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise ExportError(f"{name} must be true or false, it is {shown(value)}")
    return bool(value)


def _activation(value: Any, name: str) -> str:
    if value not in ACTIVATIONS:
        raise UnsupportedArchitectureError(
            f"{name} {shown(value)} is not supported; supported are {', '.join(ACTIVATIONS)}"
        )
    return str(value)


def _as_it_is(value: Any, name: str) -> Any:
    return value


_ALL: dict[str, _Check] = {
    "vocab_size": _whole,
    "hidden_size": _whole,
    "intermediate_size": _whole,
    "num_hidden_layers": _layers,
    "num_attention_heads": _whole,
    "num_key_value_heads": _whole_or_none,
    "head_dim": _whole_or_none,
    "hidden_act": _activation,
    "max_position_embeddings": _whole,
    "rms_norm_eps": _positive,
    "tie_word_embeddings": _flag,
    "eos_token_id": _as_it_is,
}
_WINDOWED: dict[str, _Check] = {
    "use_sliding_window": _flag,
    "sliding_window": _whole_or_none,
    "max_window_layers": _from_zero,
    "layer_types": _as_it_is,
}
_HONOURED: dict[str, dict[str, _Check]] = {
    "llama": {**_ALL, "attention_bias": _flag, "mlp_bias": _flag},
    "mistral": {**_ALL, "sliding_window": _whole_or_none},
    "qwen2": {**_ALL, **_WINDOWED},
    "qwen3": {**_ALL, **_WINDOWED, "attention_bias": _flag},
}
# Read by other functions.
_ELSEWHERE = (
    *ROPE_FIELDS, "architectures", "auto_map", "layer_types", "max_window_layers", "model_type",
    "quantization_config",
)  # fmt: skip
_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# Defaults of the configuration classes.
_POSITIONS = {"llama": 2048, "mistral": 131_072, "qwen2": 32_768, "qwen3": 32_768}
_KEY_VALUE_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
_QWEN3_HEAD_DIM = 128
_WINDOW = 4096
