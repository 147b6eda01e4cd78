"""Whether a tokenizer of a Hugging Face folder is the one of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hivellm_export.gguf_file import GgufFile
from hivellm_export.gguf_vocabulary import begin_id, end_ids, read_tokens
from hivellm_ort.errors import ExportError

__all__ = ["check_fit", "check_size"]


def check_size(tokenizer: Any, folder: Path, name: str, rows: int) -> None:
    """Refuse a tokenizer that has more tokens than the model `name` has rows in its embedding.

    Raises:
        ExportError: with both numbers.
    """
    last = max(tokenizer.get_vocab().values(), default=-1)
    if last >= rows:
        raise ExportError(
            f"{folder}: the tokenizer has a token {last}, and the embedding of {name} has {rows} rows: it is the "
            "tokenizer of another model"
        )


def check_fit(tokenizer: Any, folder: Path, file: GgufFile) -> None:
    """Refuse a tokenizer that gives a token another id than `file` does, or has other tokens for begin and end.

    Raises:
        ExportError: with the first id that differs and both texts.
    """
    texts = {i: token for token, i in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    for i, wanted in enumerate(read_tokens(file)):
        found = texts.get(i)
        if found is None and wanted.startswith(("[PAD", "[EMPTY_")):
            continue  # the file's filling of rows that no token has
        # llama.cpp's converter writes blanks for the signs that stand for them in added tokens.
        if found != wanted and not (
            i in added and found and found.replace("▁", " ") == wanted.replace("▁", " ")
        ):
            raise ExportError(
                f"{folder}: token {i} is {found!r}, and in {file.name} it is {wanted!r}: it is the tokenizer of "
                "another model"
            )
    begin, ends = begin_id(file), end_ids(file)
    if tokenizer.bos_token_id is not None and begin is not None and tokenizer.bos_token_id != begin:
        raise ExportError(
            f"{folder}: bos_token is {tokenizer.bos_token_id}, and tokenizer.ggml.bos_token_id of {file.name} is "
            f"{begin}"
        )
    if tokenizer.eos_token_id is not None and ends and tokenizer.eos_token_id not in ends:
        raise ExportError(
            f"{folder}: eos_token is {tokenizer.eos_token_id}, and the tokens that end an answer of {file.name} are "
            f"{', '.join(map(str, ends))}"
        )
