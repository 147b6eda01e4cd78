"""The reference tokenizer of llama.cpp, from llama-cpp-python."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path


def token_ids(path: Path, texts: Sequence[str], *, add_special: bool) -> list[list[int]]:
    """Return the ids of each text. Special tokens in it count as such; `add_special` adds those around the text."""
    import llama_cpp

    global _quiet
    _quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
    assert model, f"llama.cpp does not read {path}"
    try:
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        found = []
        for text in texts:
            data = text.encode()
            ids = (llama_cpp.llama_token * (len(data) + 8))()
            count = llama_cpp.llama_tokenize(vocabulary, data, len(data), ids, len(ids), add_special, True)
            assert count >= 0
            found.append(list(ids[:count]))
        return found
    finally:
        llama_cpp.llama_model_free(model)


_quiet: object = None  # llama.cpp calls it as long as the process runs
