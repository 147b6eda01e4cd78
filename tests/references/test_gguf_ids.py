"""The tokenizer of SmolLM2's GGUF file gives the ids that llama.cpp gives for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.gguf_texts import texts
from support.llamacpp import token_ids
from support.recorded_ids import SMOLLM2, SPECIAL, recorded

from hivellm_export.gguf.file import GgufFile
from hivellm_export.gguf.tokenizer import read_tokenizer


def test_ids_are_those_recorded_from_llama_cpp(base_file: Path) -> None:
    """`tests/recorded_ids.py` recorded what llama.cpp gives."""
    record = recorded()
    tokenizer = read_tokenizer(GgufFile(base_file))
    for text, expected in zip(record["texts"], record[SMOLLM2], strict=True):
        assert expected == tokenizer(text)["input_ids"], text


def test_ids_are_those_of_llama_cpp(base_file: Path) -> None:
    """On 4,000 texts, with llama.cpp itself where llama-cpp-python is installed."""
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    tokenizer = read_tokenizer(GgufFile(base_file))
    vocabulary = tokenizer.get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)[::100]
    inputs = texts(4000, special=[*tokenizer.all_special_tokens, *SPECIAL], words=words)
    expected = token_ids(base_file, inputs, add_special=True)
    actual = tokenizer(inputs)["input_ids"]
    assert [] == [text for text, one, two in zip(inputs, expected, actual, strict=True) if one != two]
