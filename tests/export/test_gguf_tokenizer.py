"""The tokenizer of a GGUF file gives the ids that llama.cpp gives for the same file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from support import gguf_files
from support.gguf_files import VOCABULARIES, Vocabulary
from support.gguf_texts import texts
from support.llamacpp import token_ids
from support.recorded_ids import SPECIAL, recorded
from transformers import PreTrainedTokenizerFast

from hivellm_export.gguf.file import GgufFile
from hivellm_export.gguf.pretokenizers import PRE_TOKENIZERS
from hivellm_export.gguf.tokenizer import read_tokenizer
from hivellm_export.gguf.vocabulary import end_ids


def saved(vocabulary: Vocabulary, folder: Path, **values: Any) -> Path:
    """A file of a tokenizer alone."""
    keys = {"general.architecture": "llama", **vocabulary.keys(), **values}
    return gguf_files.save(folder / "tokenizer.gguf", keys)


def tokenizer_of(vocabulary: Vocabulary, folder: Path, **values: Any) -> PreTrainedTokenizerFast:
    """The exporter's tokenizer of the vocabulary."""
    return read_tokenizer(GgufFile(saved(vocabulary, folder, **values)))


@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_are_those_recorded_from_llama_cpp(name: str, tmp_path: Path) -> None:
    """`tests/recorded_ids.py` recorded what llama.cpp gives; what is added before and after a text included."""
    record = recorded()
    tokenizer = tokenizer_of(VOCABULARIES[name](), tmp_path)
    for text, expected in zip(record["texts"], record[name], strict=True):
        assert expected == tokenizer(text)["input_ids"], text


@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_are_those_of_llama_cpp(name: str, tmp_path: Path) -> None:
    """On 1,500 texts, with llama.cpp itself where llama-cpp-python is installed."""
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    vocabulary = VOCABULARIES[name]()
    path = saved(vocabulary, tmp_path)
    tokenizer = read_tokenizer(GgufFile(path))
    words = vocabulary.tokens[:: max(1, len(vocabulary.tokens) // 300)]
    inputs = texts(1500, special=SPECIAL, words=words)
    for add_special in (False, True):
        expected = token_ids(path, inputs, add_special=add_special)
        actual = tokenizer(inputs, add_special_tokens=add_special)["input_ids"]
        different = [text for text, one, two in zip(inputs, expected, actual, strict=True) if one != two]
        assert [] == different


def test_every_way_to_cut_words_shows_in_what_is_recorded() -> None:
    """Two forms of pre-tokenizer give other ids for at least one text, so no form passes for another."""
    record = recorded()
    # Forms of the same expressions differ in what they do with whole words and with the beginning token.
    names = {form.expressions: name for name, form in PRE_TOKENIZERS.items()}.values()
    begin = VOCABULARIES["qwen2"]().values["bos_token_id"]
    ids = {name: str([[i for i in ids if i != begin] for ids in record[name]]) for name in names}
    assert len(ids) == len(set(ids.values()))


@pytest.mark.parametrize("token", ["<think>", "</think>"])
def test_user_defined_token_is_one_id(token: str, tmp_path: Path) -> None:
    """A token of type USER_DEFINED is read whole, with other text on both sides, and is not special."""
    tokenizer = tokenizer_of(gguf_files.byte_vocabulary(extra=("<think>", "</think>")), tmp_path)
    wanted = tokenizer.convert_tokens_to_ids(token)
    assert [wanted] == tokenizer(token)["input_ids"]
    assert 1 == tokenizer(f"a{token}\n\nb")["input_ids"].count(wanted)
    assert token in tokenizer.decode([wanted], skip_special_tokens=True)


def test_begin_and_end_are_not_mixed_up(tmp_path: Path) -> None:
    """`eos_token` in a template is the end token, and each token has its own name and id."""
    tokenizer = tokenizer_of(
        gguf_files.character_vocabulary(),
        tmp_path,
        **{"tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content + eos_token }}"},
    )
    assert ("<s>", "</s>", "<unk>") == (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    assert "<s>ab</s>" == tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert [1, 2] == tokenizer("<s></s>", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("pre", "values", "expected"),
    [
        ("llama-bpe", {}, ["<|endoftext|>"]),
        ("llama-bpe", {"add_bos_token": False}, []),
        ("qwen2", {}, []),
        ("qwen2", {"add_bos_token": True, "add_eos_token": True}, ["<|endoftext|>", "<|im_end|>"]),
    ],
)
def test_what_is_added_to_a_text(
    pre: str, values: dict[str, bool], expected: list[str], tmp_path: Path
) -> None:
    """The file's keys decide what goes before and after a text, and llama.cpp's default where there is none."""
    vocabulary = gguf_files.small_vocabulary(pre)
    vocabulary.values |= values
    assert expected == tokenizer_of(vocabulary, tmp_path).convert_ids_to_tokens(
        tokenizer_ids(vocabulary, tmp_path)
    )


def tokenizer_ids(vocabulary: Vocabulary, folder: Path) -> list[int]:
    """Ids of the empty text, with what is added to it."""
    return tokenizer_of(vocabulary, folder)("")["input_ids"]


@pytest.mark.parametrize(("name", "same"), [("Phi-3 mini", True), ("Llama 2", False)])
def test_special_tokens_that_take_white_space(name: str, same: bool, tmp_path: Path) -> None:
    """llama.cpp knows by the model's name that special tokens take the white space after them."""
    tokenizer = tokenizer_of(gguf_files.character_vocabulary(), tmp_path, **{"general.name": name})
    one, two = (tokenizer(f"<|user|>{blank}the</s>")["input_ids"] for blank in ("", " \n"))
    assert same == (one == two)


def test_several_templates(tmp_path: Path) -> None:
    """Templates by name come with the usual one, which is the one that the bundle gets."""
    values = {"tokenizer.chat_template": "usual", "tokenizer.chat_template.tool_use": "with tools"}
    tokenizer = tokenizer_of(gguf_files.small_vocabulary(), tmp_path, **values)
    assert {"default": "usual", "tool_use": "with tools"} == tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "usual" == (tmp_path / "saved" / "chat_template.jinja").read_text()


def test_all_end_tokens(tmp_path: Path) -> None:
    """An answer ends at the end token, at `eot` and `eom`, and at control tokens that llama.cpp ends one at."""
    vocabulary = gguf_files.small_vocabulary()
    vocabulary.add("<|eot_id|>", gguf_files.CONTROL)
    vocabulary.add("[stop]", gguf_files.CONTROL)
    vocabulary.add("</s>", gguf_files.NORMAL)
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    vocabulary.values["eom_token_id"] = ids["[stop]"]
    expected = sorted(ids[token] for token in ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "[stop]"))
    assert expected == end_ids(GgufFile(saved(vocabulary, tmp_path)))


def test_thirty_thousand_scores_in_seconds(tmp_path: Path) -> None:
    """A SentencePiece vocabulary of the usual size converts in time that grows with its size alone."""
    vocabulary = gguf_files.character_vocabulary()
    letters = "abcdefghijklmnopqrstuvwxyz"
    # Beginnings of words of four letters: each is one of the tokens before it and a letter.
    for one in letters:
        for two in letters:
            vocabulary.add(f"▁{one}{two}#", score=-float(len(vocabulary.tokens)))
            for three in letters:
                vocabulary.add(f"▁{one}{two}#{three}", score=-float(len(vocabulary.tokens)))
                vocabulary.add(f"▁{one}{two}#{three}{three}#", score=-float(len(vocabulary.tokens)))
    assert 30_000 < len(vocabulary.tokens)
    path = saved(vocabulary, tmp_path)
    begin = time.process_time()
    read_tokenizer(GgufFile(path))
    assert time.process_time() - begin < 20  # one second and a half here; the quadratic way takes minutes
