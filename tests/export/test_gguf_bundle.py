"""Bundles from GGUF files: names, a tokenizer given beside the file, merging without asking the network."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import peft
import pytest
from support import gguf_files, tiny
from support.exporting import Refusal
from transformers import PreTrainedTokenizerFast
from transformers.models.llama import LlamaConfig

from hivellm_export.base_model import load_base
from hivellm_export.gguf.file import GgufFile
from hivellm_export.gguf.model import short_name
from hivellm_export.gguf.tokenizer import read_tokenizer
from hivellm_export.pipeline import export
from hivellm_ort import Expert

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": 260,
}


def base_file(folder: Path, name: str = "tiny.gguf", **values: Any) -> Path:
    """A whole file."""
    model = gguf_files.random_model(LlamaConfig(**SHAPE))
    keys = gguf_files.tiny_keys(model, "llama") | values
    return gguf_files.save(folder / name, keys, gguf_files.model_tensors(model, "llama"))


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("Qwen3-0.6B-Q8_0.gguf", "Qwen3-0.6B"),
        ("Llama-3.2-1B-Instruct.i1-Q4_K_M.gguf", "Llama-3.2-1B-Instruct"),
        ("SmolLM2-135M.Instruct.gguf", "SmolLM2-135M.Instruct"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
        ("Qwen2.5-Coder-1.5B-Instruct-UD-Q4_K_XL.gguf", "Qwen2.5-Coder-1.5B-Instruct"),
        ("mistral-7b-instruct-v0.2.q5_k_s.gguf", "mistral-7b-instruct-v0.2"),
        ("TinyLlama-1.1B-Chat-v1.0-IQ4_XS.gguf", "TinyLlama-1.1B-Chat-v1.0"),
        ("model-F16.gguf", "tiny-of-the-file"),
        ("Phi-F16.gguf", "Phi"),
        ("Phi.f32.gguf", "Phi"),
        ("Phi-BF16.GGUF", "Phi"),
        ("Phi-MXFP4.gguf", "Phi"),
        ("Phi-IQ2_XXS-imat.gguf", "Phi"),
        ("Phi-Q4_0_4_8.gguf", "Phi"),
        ("Phi-TQ1_0.gguf", "Phi"),
        ("Phi-Q6_K-00001-of-00001.gguf", "Phi"),
        ("Q4_K_M.gguf", "tiny-of-the-file"),
        ("ggml-model-q4_0.gguf", "tiny-of-the-file"),
        ("Qwen.gguf", "Qwen"),
        ("Q.gguf", "Q"),
        ("Model-FP8K.gguf", "Model-FP8K"),
    ],
)
def test_short_name(file: str, expected: str, tmp_path: Path) -> None:
    """A name is the file's without part and quantisation; the file's own values where nothing is left of it."""
    keys = {"general.architecture": "llama", "general.name": "tiny of the  file"}
    assert expected == short_name(GgufFile(gguf_files.save(tmp_path / file, keys)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"basename": "Smol", "size_label": "135M", "finetune": "Instruct", "version": "v2"},
            "Smol-135M-Instruct-v2",
        ),
        ({"basename": "Smol", "name": "another"}, "Smol"),
        ({"name": "org/some model"}, "org-some-model"),
        ({}, "folder"),
    ],
)
def test_name_of_a_file_without_one(values: dict[str, str], expected: str, tmp_path: Path) -> None:
    """`general.basename` and what belongs to it come before `general.name`, and that before the folder."""
    keys = {"general.architecture": "llama"} | {f"general.{name}": value for name, value in values.items()}
    assert expected == short_name(GgufFile(gguf_files.save(tmp_path / "folder" / "Q4_K_M.gguf", keys)))


def test_expert_finds_the_base_by_its_name(tmp_path: Path) -> None:
    """The base of a quantised file is the one that a manifest names without the quantisation."""
    path = base_file(tmp_path, "Tiny-1B-Instruct.i1-Q4_K_M.gguf")
    adapter = tmp_path / "expert"
    model = peft.get_peft_model(load_base(path).model, tiny.adapter_config("lora"))
    model.save_pretrained(adapter)
    tiny.with_manifest(adapter)
    manifest = json.loads((adapter / "manifest.json").read_text())
    manifest["base_models"][0]["name"] = "someone/Tiny-1B-Instruct"
    (adapter / "manifest.json").write_text(json.dumps(manifest))
    report = export(path, [adapter], tmp_path / "out", precision="fp32")
    assert "Tiny-1B-Instruct" == report.base
    with Expert.load(
        tmp_path / "out" / report.packages[0].file, cache_dir=tmp_path / "cache", threads=1
    ) as expert:
        assert "Tiny-1B-Instruct" == expert.base.name


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked of the network, all of which fails."""
    asked: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        asked.append(arguments)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


@pytest.mark.parametrize("folder", [".", "models"])
@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_merging_asks_nobody(
    kind: str, folder: str, no_network: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base given by a relative path merges with an adapter without a look at the network."""
    path = base_file(tmp_path / folder)
    base = load_base(path)
    if kind == "folder":
        path = tmp_path / folder / "base"
        base.model.save_pretrained(path)
        base.tokenizer.save_pretrained(path)
    peft.get_peft_model(base.model, tiny.adapter_config("lora")).save_pretrained(tmp_path / "expert")
    tiny.with_manifest(tmp_path / "expert")
    monkeypatch.chdir(tmp_path)
    export(path.relative_to(tmp_path), [Path("expert")], Path("out"), precision="fp32", merged=True)
    assert [] == no_network


def tokenizer_folder(folder: Path, **values: Any) -> Path:
    """The tokenizer of `base_file` as a folder; `values` replace its own."""
    vocabulary = gguf_files.small_vocabulary()
    keys = {"general.architecture": "llama", **vocabulary.keys(), **values}
    tokenizer = read_tokenizer(GgufFile(gguf_files.save(folder / "own.gguf", keys)))
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def test_given_tokenizer_is_taken(tmp_path: Path) -> None:
    """With a folder's tokenizer a file whose own cannot be made is exported, and the bundle has the folder's."""
    path = base_file(tmp_path, **{"tokenizer.ggml.pre": "a-form-of-the-future"})
    folder = tokenizer_folder(
        tmp_path, **{"tokenizer.ggml.pre": "smollm", "tokenizer.chat_template": "of the folder"}
    )
    export(path, [], tmp_path / "out", precision="fp32", tokenizer=folder)
    assert (folder / "tokenizer.json").read_text() == (tmp_path / "out" / "tokenizer.json").read_text()
    assert "of the folder" == (tmp_path / "out" / "chat_template.jinja").read_text()


def test_template_of_the_file_where_the_folder_has_none(tmp_path: Path) -> None:
    """A tokenizer without a chat template gets that of the file."""
    base = load_base(base_file(tmp_path), tokenizer_folder(tmp_path))
    assert gguf_files.TEMPLATE == base.tokenizer.chat_template


def other_text(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Two tokens have changed places."""
    document = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    (folder / "tokenizer.json").write_text(json.dumps(document))


def too_large(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """One token more than the embedding has rows."""
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(folder)


def other_end(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Another end token."""
    tokenizer.eos_token = "<|im_start|>"
    tokenizer.save_pretrained(folder)


def other_begin(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Another beginning token."""
    tokenizer.bos_token = "<|im_end|>"
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (other_text, "token 0 is '\"', but '!' in tiny.gguf"),
        (too_large, "the tokenizer has a token 260, but the embedding of tiny.gguf has 260 rows"),
        (other_end, "eos_token is 258, but the end tokens of tiny.gguf are 257, 259"),
        (other_begin, "bos_token is 259, but tokenizer.ggml.bos_token_id of tiny.gguf is 257"),
    ],
)
def test_tokenizer_that_does_not_fit(change: Any, expected: str, refused: Refusal, tmp_path: Path) -> None:
    """A tokenizer that gives a token another id, has too many or other special ones is refused with both."""
    folder = tokenizer_folder(tmp_path)
    change(PreTrainedTokenizerFast.from_pretrained(folder), folder)
    found, message = refused(base_file(tmp_path), options=("--tokenizer", str(folder)))
    assert "ExportError" == found
    assert message.startswith(f"{folder}: ")
    assert expected in message


def test_tokenizer_for_a_folder(refused: Refusal, tmp_path: Path) -> None:
    """A folder takes another tokenizer too, unless it has more tokens than the embedding has rows."""
    base = load_base(base_file(tmp_path))
    base.model.save_pretrained(tmp_path / "base")
    folder = tokenizer_folder(tmp_path)
    export(tmp_path / "base", [], tmp_path / "out", precision="fp32", tokenizer=folder)
    assert (folder / "tokenizer.json").read_text() == (tmp_path / "out" / "tokenizer.json").read_text()
    too_large(PreTrainedTokenizerFast.from_pretrained(folder), folder)
    found, message = refused(tmp_path / "base", options=("--tokenizer", str(folder)))
    assert "ExportError" == found
    assert "the embedding of base has 260 rows" in message


def test_folder_without_a_tokenizer(refused: Refusal, tmp_path: Path) -> None:
    """A folder for `--tokenizer` that holds none is refused by its name."""
    (tmp_path / "empty").mkdir()
    found, message = refused(base_file(tmp_path), options=("--tokenizer", str(tmp_path / "empty")))
    assert "ExportError" == found
    assert message.startswith("empty: no tokenizer: tokenizer.json is missing")
