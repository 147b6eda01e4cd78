"""The second reading of a base: tensors, rotary embedding and tokenizer, against transformers and plain numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny
from support.exporting import copied, edit_json
from tokenizers import Tokenizer
from transformers.models.llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from hivellm_export.verify.rotary import check_rotary
from hivellm_export.verify.source import GgufSource, RotaryFacts, open_source
from hivellm_export.verify.tokens import check_tokenizer, sample_texts
from hivellm_ort import ExportError
from hivellm_ort.text.tokenizer import TextTokenizer

ModelFolder = Callable[[str], Path]

HEADS, KEY_HEADS, WIDTH, HIDDEN = 4, 2, 8, 16


def write_gguf(path: Path, arrays: dict[str, np.ndarray], kind: str = "llama", **keys: Any) -> GgufSource:
    """A GGUF file of these tensors and keys below the architecture's name."""
    writer = gguf.GGUFWriter(path, kind)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_embedding_length(HEADS * WIDTH)
    writer.add_context_length(64)
    for name, value in keys.items():
        key = f"{kind}.{name.replace('__', '.')}"
        (writer.add_string if isinstance(value, str) else writer.add_float32)(key, value)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufSource(path)


def tables(facts: RotaryFacts, positions: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of transformers for what a source says, float32."""
    scaling = None
    if facts.kind != "default":
        known = {name: value for name, value in facts.scaling.items() if value is not None}
        scaling = {**known, "rope_type": facts.kind}
    config = LlamaConfig(
        hidden_size=facts.width * HEADS,
        num_attention_heads=HEADS,
        head_dim=facts.width,
        max_position_embeddings=facts.positions,
        rope_theta=facts.theta,
        rope_scaling=scaling,
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(positions)[None])
    half = facts.width // 2
    return cos[0, :, :half].numpy(), sin[0, :, :half].numpy()


LLAMA3 = {
    "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("kind", "scaling"),
    [
        ("default", {}),
        ("linear", {"factor": 2.0}),
        ("dynamic", {"factor": 2.0}),
        ("llama3", LLAMA3),
        ("yarn", YARN),
        ("yarn", {**YARN, "beta_fast": 16, "beta_slow": 2, "attention_factor": 1.5}),
        ("yarn", {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False}),
    ],
    ids=str,
)
def test_rotary_forms(kind: str, scaling: dict[str, Any]) -> None:
    """Every form is that of transformers, and one with another factor is not."""
    facts = RotaryFacts(500_000.0, 16, 64, kind, scaling)
    assert None is check_rotary(facts, *tables(facts), dtype="float32", where="bundle")
    if scaling:
        other = RotaryFacts(500_000.0, 16, 64, kind, {**scaling, "factor": 3.0})
        if kind != "dynamic":
            with pytest.raises(
                ExportError, match=r"^bundle: the rotary embedding differs from the source at "
            ):
                check_rotary(other, *tables(facts), dtype="float32", where="bundle")
    with pytest.raises(ExportError, match="says theta 10000"):
        check_rotary(
            RotaryFacts(10_000.0, 16, 64, kind, scaling), *tables(facts), dtype="float16", where="bundle"
        )


def test_rotary_that_is_not_known() -> None:
    """A form that the check does not know is said to be left out."""
    facts = RotaryFacts(1e4, 16, 64, "new")
    told = check_rotary(facts, np.ones((4, 8)), np.zeros((4, 8)), dtype="float32", where="bundle")
    assert "rotary embedding: not compared; the check does not know the form 'new'" == told
    with pytest.raises(ExportError, match="rotates 8 dimensions, rope_theta says 16"):
        check_rotary(RotaryFacts(1e4, 16, 64), np.ones((4, 4)), np.ones((4, 4)), dtype="float32", where="b")


@given(positions=st.sampled_from([2048, 131_072]), theta=st.sampled_from([1e4, 1e6]))
def test_long_contexts(positions: int, theta: float) -> None:
    """Angles of far positions are rounded in float32, which is not taken for a difference."""
    facts = RotaryFacts(theta, 16, positions)
    assert None is check_rotary(facts, *tables(facts, positions), dtype="float32", where="bundle")


@pytest.mark.parametrize("new", [False, True], ids=["4", "5"])
def test_fields_of_both_versions(new: bool, model_folder: ModelFolder, tmp_path: Path) -> None:
    """Transformers 4 has rope_theta and rope_scaling, 5 rope_parameters: they say the same."""
    base = copied(model_folder("qwen3"), tmp_path / "base")
    old = {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", **YARN}}
    if new:
        old = {"rope_theta": None, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **YARN}}
    edit_json(base / "config.json", **old)
    facts = open_source(base).rotary()
    assert (1e6, "yarn", 4.0, 32, 128) == (
        facts.theta, facts.kind, facts.scaling["factor"], facts.width, facts.positions,
    )  # fmt: skip


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_tensors_of_a_folder(architecture: str, model_folder: ModelFolder) -> None:
    """Every parameter by its name and value, and what config.json leaves out as transformers has it."""
    source, model = open_source(model_folder(architecture)), tiny.load_model(model_folder(architecture))
    parameters = dict(model.named_parameters())
    assert parameters.keys() == source.names() - ({"lm_head.weight"} if source.tied else set())
    assert model.config.tie_word_embeddings == source.tied
    for name, parameter in parameters.items():
        np.testing.assert_array_equal(parameter.detach().numpy(), source.tensor(name))
    facts = source.rotary()
    cos, sin = model.model.rotary_emb(torch.zeros(1), torch.arange(64)[None])
    half = cos.shape[-1] // 2
    found = (table[0, :, :half].numpy() for table in (cos, sin))
    assert None is check_rotary(facts, *found, dtype="float32", where="bundle")


def test_tensors_of_gguf(tmp_path: Path) -> None:
    """Names are those of transformers; of Llama's queries and keys the pairs are put apart."""
    random = np.random.default_rng(0)
    halves = {name: random.normal(size=(heads * WIDTH, HIDDEN)).astype(np.float32) for name, heads in
              (("attn_q", HEADS), ("attn_k", KEY_HEADS))}  # fmt: skip
    # llama.cpp puts the two halves of a head's dimensions side by side.
    paired = {
        f"blk.0.{name}.weight": array.reshape(-1, 2, WIDTH // 2, HIDDEN).swapaxes(1, 2).reshape(array.shape)
        for name, array in halves.items()
    }
    others = {"token_embd.weight": random.normal(size=(5, HIDDEN)).astype(np.float32)}
    source = write_gguf(tmp_path / "llama.gguf", {**paired, **others})
    assert {
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
    } == source.names()
    for name, array in halves.items():
        name = f"model.layers.0.self_attn.{name[-1]}_proj.weight"
        np.testing.assert_array_equal(array, source.tensor(name))
    assert source.tied
    straight = write_gguf(tmp_path / "qwen.gguf", paired, kind="qwen2")
    np.testing.assert_array_equal(
        paired["blk.0.attn_q.weight"], straight.tensor("model.layers.0.self_attn.q_proj.weight")
    )


def test_quantised_gguf(tmp_path: Path) -> None:
    """Tensors in blocks come back as floats."""
    values = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    path = tmp_path / "q8.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("blk.3.ffn_up.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    np.testing.assert_allclose(
        values, GgufSource(path).tensor("model.layers.3.mlp.up_proj.weight"), atol=0.02
    )


def test_rotary_of_gguf(tmp_path: Path) -> None:
    """Keys and the tensor of factors: base, YaRN, linear scaling as it was once written, Llama 3's divisors."""
    plain = write_gguf(tmp_path / "plain.gguf", {}).rotary()
    assert (10_000.0, WIDTH, 64, "default") == (plain.theta, plain.width, plain.positions, plain.kind)
    keys = {"rope__freq_base": 1e6, "rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    yarn = write_gguf(tmp_path / "yarn.gguf", {}, **keys).rotary()
    assert (1e6, "yarn", 4.0) == (yarn.theta, yarn.kind, yarn.scaling["factor"])
    assert None is check_rotary(yarn, *tables(yarn), dtype="float32", where="bundle")
    old = write_gguf(tmp_path / "old.gguf", {}, rope__scale_linear=2.0).rotary()
    assert ("linear", 2.0) == (old.kind, old.scaling["factor"])
    divisors = np.array([1, 1, 2, 32], np.float32)
    llama3 = write_gguf(tmp_path / "llama3.gguf", {"rope_freqs.weight": divisors}).rotary()
    angles = np.arange(64)[:, None] * 10_000.0 ** -(np.arange(0, WIDTH, 2) / WIDTH)
    assert None is check_rotary(
        llama3, np.cos(angles / divisors), np.sin(angles / divisors), dtype="float32", where="bundle"
    )
    with pytest.raises(
        ExportError, match=r"rope\.\* and rope_freqs\.weight says theta 10000, frequencies divided"
    ):
        check_rotary(llama3, np.cos(angles), np.sin(angles), dtype="float32", where="bundle")


@pytest.mark.parametrize(
    ("pre", "fits"), [("gpt-2", True), ("qwen2", False), ("llama-bpe", False), ("odd", True)]
)
def test_digits_of_gguf(pre: str, fits: bool, model_folder: ModelFolder, tmp_path: Path) -> None:
    """Without another tokenizer at hand a GGUF file still says how numbers are cut."""
    path = tmp_path / "base.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_pre(pre)
    writer.add_tokenizer_model("gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer = TextTokenizer.from_folder(model_folder("llama"))  # which cuts as GPT-2 does
    folder = model_folder("llama")
    if fits:
        assert None is check_tokenizer(tokenizer, GgufSource(path), [folder], where="bundle")
        return
    with pytest.raises(
        ExportError, match=rf"base.gguf: its pre-tokenizer cuts .*tokenizer.ggml.pre '{pre}' allows"
    ):
        check_tokenizer(tokenizer, GgufSource(path), [folder], where="bundle")


def test_tokenizer_without_another(
    model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a GGUF file alone, without llama.cpp, the tokenizer is said to be left out, with what to do."""
    monkeypatch.setattr("hivellm_export.verify.tokens.find_spec", lambda _: None)
    tokenizer = TextTokenizer.from_folder(model_folder("llama"))
    told = check_tokenizer(tokenizer, write_gguf(tmp_path / "base.gguf", {}), [], where="bundle")
    assert (
        "tokenizer: not compared; install llama-cpp-python, or pass the original one with --tokenizer FOLDER"
        == told
    )


def test_tokenizer_of_a_newer_transformers(model_folder: ModelFolder, tmp_path: Path) -> None:
    """A tokenizer class that this version does not know: tokenizer.json itself is compared, and still differs."""
    base = copied(model_folder("qwen3"), tmp_path / "base")
    edit_json(base / "tokenizer_config.json", tokenizer_class="TokenizersBackend")
    text = (base / "tokenizer.json").read_text()
    source, ours = open_source(base), Tokenizer.from_str(text)
    (base / "tokenizer.json").write_text(text, encoding="utf-16")
    ours.add_special_tokens(["<tool>"])  # as other files of the folder may say
    assert None is check_tokenizer(TextTokenizer(ours), source, [base], where="bundle")
    (base / "tokenizer.json").write_text(text)
    document = json.loads((base / "tokenizer.json").read_text())
    document["normalizer"] = {"type": "Lowercase"}
    other = copied(base, tmp_path / "other")
    (other / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(ExportError, match=r"differs from base/tokenizer.json: .*look at its"):
        check_tokenizer(TextTokenizer.from_folder(other), source, [base], where="bundle")


def test_sample_texts() -> None:
    """Some hundred different texts, the same every time, and added tokens among them."""
    texts = sample_texts(["<think>"])
    assert texts == sample_texts(["<think>"])
    assert len(set(texts)) > 200
    assert any(text.startswith("<think>") for text in texts)
