"""A base model from a GGUF file: name, weights, and tokenizer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import transformers
from torch import nn

from hivellm_export.gguf.config import read_config
from hivellm_export.gguf.file import GgufFile
from hivellm_export.gguf.tokenizer import read_tokenizer
from hivellm_export.gguf.vocabulary import begin_id, end_ids, read_template, read_tokens
from hivellm_export.gguf.weights import read_model
from hivellm_export.huggingface.config import check_config
from hivellm_export.huggingface.tokenizer import check_size, load_tokenizer
from hivellm_ort.errors import ExportError

__all__ = ["GgufBase", "check_fit", "read_gguf", "short_name"]

_PART = re.compile(r"-\d{5}-of-\d{5}$")
# Quantisations, as llama.cpp and publishers of files write them, and marks beside them: UD (Unsloth), i1 and imat
# (made with an importance matrix).
_STORAGE = re.compile(
    r"(?:^|[-._])(?:I?Q[1-8](?:_[0-9A-Z]{1,3})*|TQ[12]_0|(?:B?F|FP)16|FP?(?:8|32|64)|(?:MX|NV)FP4(?:_MOE)?|UD|i1|i?mat"
    r"|imatrix|GGUF)$",
    re.IGNORECASE,
)
_NO_NAME = ("", "ggml-model", "model", "ggml-vocab")


@dataclass(frozen=True)
class GgufBase:
    """The contents of a GGUF file.

    Attributes:
        name: Short name.
        model: The Hugging Face model in float32. Its `config` and `generation_config` have the end tokens.
        tokenizer: The file's own fast tokenizer, or the given one.
        files: The file, or all parts of a model in several files.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    files: list[Path]


def read_gguf(path: Path, tokenizer_folder: Path | None = None) -> GgufBase:
    """Read a `.gguf` file.

    Args:
        path: The file, or the first part of a model in several files.
        tokenizer_folder: A Hugging Face folder whose tokenizer replaces the file's own. Every token must have the
            same id as in the file. If it has no chat template, that of the file is used.

    Raises:
        UnsupportedArchitectureError: The exporter cannot express the model.
        ExportError: The file is damaged or incomplete, or has a key that the exporter does not know.
    """
    file = GgufFile(path)
    config = check_config(read_config(file), file.name)
    count = len(read_tokens(file))
    if count > config["vocab_size"]:
        raise ExportError(
            f"{file.name}: tokenizer.ggml.tokens has {count} tokens, but token_embd.weight only "
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


def short_name(file: GgufFile) -> str:
    """Make a short name from the file's name, without part, quantisation and suffix.

    `Qwen3-0.6B-Q8_0.gguf` is `Qwen3-0.6B`. If nothing is left, as for `Q4_K_M.gguf`, the name is made from
    `general.basename` and its relatives, else from `general.name`, else it is the name of the folder.
    """
    path = file.paths[0]
    name = _PART.sub("", path.name[: -len(path.suffix)])
    while (shorter := _STORAGE.sub("", name)) != name:
        name = shorter
    if name.lower() not in _NO_NAME:
        return name
    base = file.value("general.basename", str, "")
    if base:
        parts = (file.value(f"general.{key}", str, None) for key in ("finetune", "version", "size_label"))
        finetune, version, size = parts
        name = gguf.utility.naming_convention(None, base, finetune, version, size, output_type=None)
    else:
        name = "-".join(file.value("general.name", str, "").split())
    return name.replace("/", "-").replace("\\", "-") or path.resolve().parent.name


def check_fit(tokenizer: Any, folder: Path, file: GgufFile) -> None:
    """Check that a tokenizer has the ids of `file`, and the same begin and end tokens.

    Args:
        tokenizer: The tokenizer.
        folder: Its folder, for messages.
        file: The GGUF file.

    Raises:
        ExportError: An id differs. The message has the first one and both texts.
    """
    texts = {i: token for token, i in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    for i, wanted in enumerate(read_tokens(file)):
        found = texts.get(i)
        if found is None and wanted.startswith(("[PAD", "[EMPTY_")):
            continue  # the file fills rows without a token with such texts
        # In added tokens, llama.cpp's converter writes spaces for the signs that stand for them.
        if found != wanted and not (
            i in added and found and found.replace("▁", " ") == wanted.replace("▁", " ")
        ):
            raise ExportError(
                f"{folder}: token {i} is {found!r}, but {wanted!r} in {file.name}: this is the tokenizer of "
                "another model"
            )
    begin, ends = begin_id(file), end_ids(file)
    if tokenizer.bos_token_id is not None and begin is not None and tokenizer.bos_token_id != begin:
        raise ExportError(
            f"{folder}: bos_token is {tokenizer.bos_token_id}, but tokenizer.ggml.bos_token_id of {file.name} is "
            f"{begin}"
        )
    if tokenizer.eos_token_id is not None and ends and tokenizer.eos_token_id not in ends:
        raise ExportError(
            f"{folder}: eos_token is {tokenizer.eos_token_id}, but the end tokens of {file.name} are "
            f"{', '.join(map(str, ends))}"
        )
