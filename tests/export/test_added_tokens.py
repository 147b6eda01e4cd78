"""Adapters that bring embeddings, tokens or a tokenizer of their own."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tokenizers
import torch
from parity import TOLERANCE, engine_of, expert_logits, peft_logits
from safetensors.numpy import load_file
from support import tiny
from support.exporting import WEIGHTS, Refusal, copied, edit_json, edit_tensors
from transformers import AutoTokenizer

from hivellm_export.pipeline import export
from hivellm_ort import AdapterError, Expert

ModelFolder = Callable[[str], Path]
ExpertFolder = Callable[..., Path]
Bundle = Callable[[str, str], Path]

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PREFIX = "base_model.model."
ROWS = 288
NEW = "<|new|>"
PROMPT = [1, 17, 288, 33, 90, 4, 289, 77, 200, 61, 12, 5, 256, 31, 8, 99]

pytestmark = pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`", "ignore:.*tie_word_embeddings"
)


def with_embedding(folder: Path, base: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """Store the base's embedding in an adapter, changed, as `save_embedding_layers` does."""
    table = load_file(base / "model.safetensors")[EMBED]

    def add(tensors: dict[str, np.ndarray]) -> None:
        tensors[PREFIX + EMBED] = change(table)

    edit_tensors(folder / WEIGHTS, add)
    return folder


def trained_with_tokens(
    folder: Path, base: Path, count: int, save: bool | str = "auto", **options: Any
) -> Path:
    """An adapter that was trained on a base with `count` rows more, and a tokenizer with two new tokens."""
    torch.manual_seed(3)
    model = tiny.load_model(base)
    model.resize_token_embeddings(ROWS + count, mean_resizing=False)
    wrapped = peft.get_peft_model(model, tiny.adapter_config("lora", **options))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
            elif "trainable_tokens" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.3)
    wrapped.save_pretrained(folder, save_embedding_layers=save)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"<|pad{i}|>" for i in range(ROWS - len(tokenizer))])
    tokenizer.add_tokens([NEW, "<|other|>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return tiny.with_manifest(folder)


def reference(base: Path, folder: Path, count: int) -> np.ndarray:
    """Logits of the adapter as PEFT runs it, on a base with rows for it."""
    model = tiny.load_model(base)
    model.resize_token_embeddings(ROWS + count, mean_resizing=False)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(model, folder).eval()(torch.tensor([PROMPT])).logits[0].numpy()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["fp32", "fp16"])
def test_the_bases_embedding(
    dtype: type, precision: str, model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path
) -> None:
    """An embedding that is the base's, exactly or as the adapter's file rounds it, changes nothing."""
    base = model_folder("llama")
    folder = copied(expert_folder(), tmp_path / "expert")
    with_embedding(folder, base, lambda table: table.astype(dtype))
    report = export(base, [folder], tmp_path / "out", precision=precision)
    if precision == "fp32":
        with Expert.load(tmp_path / "out" / report.packages[0].file, cache_dir=tmp_path, threads=1) as expert:
            actual = expert_logits(expert)
        difference = np.abs(peft_logits(base, expert_folder()) - actual)
        assert np.nanmax(difference) < TOLERANCE


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_bundles_embedding(
    precision: str, model_folder: ModelFolder, expert_folder: ExpertFolder, bundle: Bundle, tmp_path: Path
) -> None:
    """A bundle knows its own embedding by digest, also where it is quantised."""
    base = model_folder("llama")
    folder = with_embedding(copied(expert_folder(), tmp_path / "same"), base, lambda table: table)
    options: dict[str, Any] = {
        "base": bundle("llama", precision), "cache_dir": tmp_path / "cache", "threads": 1, "trust": "off",
    }  # fmt: skip
    Expert.load(folder, **options).close()
    other = with_embedding(copied(expert_folder(), tmp_path / "other"), base, lambda table: table * 1.001)
    with pytest.raises(AdapterError, match=r"embed_tokens.*both of 288 rows.*--merge"):
        Expert.load(other, **options)


def test_a_row_more(
    model_folder: ModelFolder, expert_folder: ExpertFolder, refused: Refusal, tmp_path: Path
) -> None:
    """An embedding of another size is refused with both sizes, and what to do."""
    base = model_folder("llama")
    folder = copied(expert_folder(), tmp_path / "expert")
    with_embedding(folder, base, lambda table: np.concatenate([table, table[:1]]))
    error, message = refused(base, folder)
    assert "BaseMismatchError" == error
    assert message.startswith(f"expert/{WEIGHTS}: tensor {PREFIX}{EMBED} has 289 rows")
    assert "288" in message
    assert "--merge" in message


@pytest.mark.parametrize(
    ("architecture", "options", "save"),
    [
        ("llama", {}, "auto"),
        ("qwen2", {}, "auto"),
        ("llama", {"trainable_token_indices": [ROWS, ROWS + 1]}, False),
        ("llama", {"trainable_token_indices": [17, ROWS, ROWS + 1]}, "auto"),
        ("qwen2", {"trainable_token_indices": [17, ROWS, ROWS + 1]}, "auto"),
        ("qwen2", {"modules_to_save": ["embed_tokens", "lm_head"]}, False),
        ("llama", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, False),
        ("qwen2", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, "auto"),
    ],
)
def test_tokens_of_its_own(
    architecture: str, options: dict[str, Any], save: bool | str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    """Trained rows of new tokens are in the merged base, and so are the tokens."""
    base = model_folder(architecture)
    folder = trained_with_tokens(tmp_path / "expert", base, 2, save, **options)
    expected = reference(base, folder, 2)
    report = export(base, [folder], tmp_path / "out", precision="fp32", merged=True)
    with Expert.load(tmp_path / "out" / report.packages[0].file, cache_dir=tmp_path, threads=1) as expert:
        assert ROWS + 2 == expert.base.architecture.vocab_size
        actual = expert_logits(expert, PROMPT)
        tokenizer = tokenizers.Tokenizer.from_file(str(engine_of(expert).folder / "tokenizer.json"))
        assert [ROWS] == tokenizer.encode(NEW, add_special_tokens=False).ids
    assert np.nanmax(np.abs(expected - actual)) < TOLERANCE


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {"trainable_token_indices": [ROWS + 1]}),
        ("qwen2", {"trainable_token_indices": [ROWS, ROWS + 1]}),
        ("llama", {"modules_to_save": ["embed_tokens"]}),
    ],
)
def test_rows_that_are_nowhere(
    architecture: str, options: dict[str, Any], model_folder: ModelFolder, refused: Refusal, tmp_path: Path
) -> None:
    """A base with rows that neither it nor the adapter has cannot be made up."""
    base = model_folder(architecture)
    folder = trained_with_tokens(tmp_path / "expert", base, 2, False, **options)
    error, message = refused(base, folder, options=("--merge",))
    assert "BaseMismatchError" == error
    assert "290" in message
    assert "288" in message
    assert "save_embedding_layers=True" in message


def adapter_tokenizer(folder: Path, base: Path, *, added: str | None = None, swapped: bool = False) -> Path:
    """Put the base's tokenizer into an adapter's folder: with a token more, or with two ids changed over."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (base / name).is_file():
            shutil.copy(base / name, folder / name)
    path = folder / "tokenizer.json"
    if swapped:
        document = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = document["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        path.write_text(json.dumps(document), encoding="utf-8")
    if added is not None:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        tokenizer.add_special_tokens([added])
        tokenizer.save(str(path))
    return folder


def loaded(folder: Path, bundle: Path, cache: Path) -> None:
    """Load the folder on a bundle, and close it."""
    Expert.load(folder, base=bundle, cache_dir=cache, threads=1, trust="off").close()


def test_tokenizer_with_other_ids(
    model_folder: ModelFolder, expert_folder: ExpertFolder, bundle: Bundle, refused: Refusal, tmp_path: Path
) -> None:
    """An adapter whose tokenizer has other ids is refused: exported, loaded and merged."""
    base = model_folder("llama")
    folder = adapter_tokenizer(copied(expert_folder(), tmp_path / "expert"), base, swapped=True)
    for options in ((), ("--merge",)):
        error, message = refused(base, folder, options=options)
        assert "AdapterError" == error
        assert "tokenizer.json" in message
    with pytest.raises(
        AdapterError, match=r"tokenizer.json: 'a', 'b' have other ids|'b', 'a' have other ids"
    ):
        loaded(folder, bundle("llama", "fp32"), tmp_path / "cache")


def test_token_that_is_only_the_adapters(
    model_folder: ModelFolder,
    expert_folder: ExpertFolder,
    bundle: Bundle,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A token that the base lacks is named in a warning; the padding needs none; one in the template is refused."""
    base = bundle("llama", "fp32")
    folder = adapter_tokenizer(
        copied(expert_folder(), tmp_path / "expert"), model_folder("llama"), added="<|tool|>"
    )
    with caplog.at_level(logging.WARNING, "hivellm_ort"):
        loaded(folder, base, tmp_path / "first")
    assert ["<|tool|>" in message for message in caplog.messages] == [True]
    caplog.clear()
    edit_json(folder / "tokenizer_config.json", pad_token="<|tool|>")
    with caplog.at_level(logging.WARNING, "hivellm_ort"):
        loaded(folder, base, tmp_path / "second")
    assert [] == caplog.messages
    edit_json(folder / "tokenizer_config.json", pad_token=None)
    (folder / "chat_template.jinja").write_text("<|tool|>{{ messages[0]['content'] }}")
    with pytest.raises(AdapterError, match=r"'<\|tool\|>', which chat_template.jinja writes.*--merge"):
        loaded(folder, base, tmp_path / "third")


def test_tokenizer_that_splits_otherwise(
    model_folder: ModelFolder,
    expert_folder: ExpertFolder,
    bundle: Bundle,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The same vocabulary with another pre-tokenizer is named in a warning."""
    folder = adapter_tokenizer(copied(expert_folder(), tmp_path / "expert"), model_folder("llama"))
    path = folder / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.save(str(path))
    with caplog.at_level(logging.WARNING, "hivellm_ort"):
        loaded(folder, bundle("llama", "fp32"), tmp_path / "cache")
    assert ["splits texts differently" in message for message in caplog.messages] == [True]
