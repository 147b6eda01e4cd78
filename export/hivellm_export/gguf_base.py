"""A base model from a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from hivellm_export.config_fields import check_config
from hivellm_export.gguf_config import read_config
from hivellm_export.gguf_file import GgufFile
from hivellm_export.gguf_fit import check_fit, check_size
from hivellm_export.gguf_names import short_name
from hivellm_export.gguf_tokenizer import read_tokenizer
from hivellm_export.gguf_vocabulary import begin_id, end_ids, read_template, read_tokens
from hivellm_export.gguf_weights import read_model
from hivellm_export.tokenizer_files import load_tokenizer
from hivellm_ort.errors import ExportError

__all__ = ["GgufBase", "read_gguf"]


@dataclass(frozen=True)
class GgufBase:
    """What a GGUF file holds.

    Attributes:
        name: short name.
        model: the Hugging Face model in float32, its end tokens in `config` and `generation_config`.
        tokenizer: the file's own fast tokenizer, or the one that was given.
        files: the file, or all its parts.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    files: list[Path]


def read_gguf(path: Path, tokenizer_folder: Path | None = None) -> GgufBase:
    """Read a `.gguf` file, or a model in several of which `path` is the first.

    Args:
        path: the file.
        tokenizer_folder: a Hugging Face folder whose tokenizer is taken instead of the file's own, whose settings are
            then not read; it must give every token the file's id. Without a chat template it gets the file's.

    Raises:
        UnsupportedArchitectureError: the model computes something that the exporter does not express.
        ExportError: the file is damaged, not complete, or says what the exporter does not know.
    """
    file = GgufFile(path)
    config = check_config(read_config(file), file.name)
    count = len(read_tokens(file))
    if count > config["vocab_size"]:
        raise ExportError(
            f"{file.name}: tokenizer.ggml.tokens has {count} tokens, and token_embd.weight has "
            f"{config['vocab_size']} rows"
        )
    # Before the weights, which take longest.
    if tokenizer_folder is None:
        tokenizer = read_tokenizer(file)
    else:
        tokenizer = load_tokenizer(tokenizer_folder, transformers.AutoConfig.for_model(**config))
        check_size(tokenizer, tokenizer_folder, file.name, config["vocab_size"])
        check_fit(tokenizer, tokenizer_folder, file)
        if not tokenizer.chat_template:
            tokenizer.chat_template = read_template(file)
    config |= {"bos_token_id": begin_id(file), "eos_token_id": end_ids(file) or None, "pad_token_id": None}
    return GgufBase(short_name(file), read_model(file, config), tokenizer, file.paths)
