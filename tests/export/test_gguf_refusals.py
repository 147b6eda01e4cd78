"""What a GGUF file says and the exporter cannot do is refused by its key or tensor, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from support import gguf_files
from support.exporting import Refusal, truncate
from support.gguf_files import Vocabulary
from transformers.models.llama import LlamaConfig
from transformers.models.qwen2 import Qwen2Config

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "vocab_size": 260,
    "tie_word_embeddings": False,
}
Keys = dict[str, Any]
Tensors = dict[str, np.ndarray]


def parts(kind: str = "llama") -> tuple[Keys, Tensors]:
    """Values and tensors of a sound file, to be spoilt."""
    model = gguf_files.random_model((LlamaConfig if kind == "llama" else Qwen2Config)(**SHAPE))
    return gguf_files.tiny_keys(model, kind), gguf_files.model_tensors(model, kind)


def test_the_sound_file_is_exported(tmp_path: Path) -> None:
    """Of what the other tests spoil, nothing is refused."""
    from hivellm_export.pipeline import export

    report = export(
        gguf_files.save(tmp_path / "tiny.Q8_0.gguf", *parts()), [], tmp_path / "out", precision="fp32"
    )
    assert "tiny" == report.base


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("llama", "general.architecture", "gemma3"),
        ("llama", "general.architecture", "qwen3moe"),
        ("llama", "general.type", "adapter"),
        ("llama", "llama.expert_count", 8),
        ("llama", "llama.attention.head_count_kv", [1, 2]),
        ("llama", "llama.feed_forward_length", [48, 32]),
        ("llama", "llama.attention.value_length", 8),
        ("llama", "llama.rope.dimension_count", 8),
        ("llama", "llama.rope.scaling.type", "longrope"),
        ("llama", "llama.rope.scaling.factor", -2.0),
        ("llama", "llama.rope.scaling.attn_factor", 1.5),
        ("llama", "llama.rope.scaling.yarn_ext_factor", 0.5),
        ("llama", "llama.rope.scaling.yarn_log_multiplier", 0.1),
        ("llama", "llama.attention.causal", False),
        ("llama", "llama.attention.scale", 0.1),
        ("llama", "llama.attention.sliding_window_pattern", 2),
        ("llama", "llama.logit_scale", 2.0),
        ("llama", "llama.a_value_of_the_future", True),
        ("llama", "llama.vocab_size", 261),
        ("llama", "llama.block_count", 3),
        ("llama", "llama.block_count", "two"),
        ("llama", "llama.embedding_length", 64),
        ("llama", "llama.attention.head_count", 0),
        ("llama", "llama.context_length", None),
        ("llama", "llama.attention.layer_norm_rms_epsilon", None),
        ("qwen2", "qwen2.attention.sliding_window", 16),
        ("qwen2", "qwen2.final_logit_softcapping", 30.0),
    ],
)
def test_value_of_the_architecture(kind: str, key: str, value: Any, refused: Refusal, tmp_path: Path) -> None:
    """A value that changes the computation and that the exporter does not express is named by its key."""
    keys, tensors = parts(kind)
    path = gguf_files.save(tmp_path / "tiny.gguf", keys | {key: value}, tensors)
    found, message = refused(path)
    assert found in ("ExportError", "UnsupportedArchitectureError")
    assert message.startswith("tiny.gguf: ")
    shapes = {"llama.block_count": "blk.2.", "llama.embedding_length": "token_embd.weight"}
    assert (key if not isinstance(value, int) or key not in shapes else shapes[key]) in message


def drop(name: str) -> Callable[[Tensors], object]:
    """Leave a tensor out."""
    return lambda tensors: tensors.pop(name)


def put(name: str, *shape: int, value: float = 1.0) -> Callable[[Tensors], object]:
    """Put a tensor in."""
    return lambda tensors: tensors.update({name: np.full(shape, value, np.float32)})


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        ("llama", "blk.1.attn_q.weight", drop("blk.1.attn_q.weight")),
        ("llama", "blk.0.ffn_norm.weight", drop("blk.0.ffn_norm.weight")),
        ("llama", "token_embd.weight", drop("token_embd.weight")),
        ("llama", "blk.0.attn_k.bias", put("blk.0.attn_q.bias", 32)),
        ("llama", "blk.0.attn_sub_norm.weight", put("blk.0.attn_sub_norm.weight", 32)),
        ("llama", "rope_factors_long.weight", put("rope_factors_long.weight", 8)),
        ("llama", "rope_freqs.weight", put("rope_freqs.weight", 4)),
        ("llama", "rope_freqs.weight", put("rope_freqs.weight", 8, value=0.0)),
        ("llama", "blk.1.ffn_down.weight", put("blk.1.ffn_down.weight", 32, 47)),
        ("llama", "output_norm.weight", put("output_norm.weight", 32, value=np.nan)),
        ("qwen2", "rope_freqs.weight", put("rope_freqs.weight", 8)),
        ("qwen2", "output.bias", put("output.bias", 260)),
        ("qwen2", "blk.0.attn_k.bias", drop("blk.0.attn_k.bias")),
    ],
)
def test_tensor(
    kind: str, name: str, change: Callable[[Tensors], object], refused: Refusal, tmp_path: Path
) -> None:
    """A tensor that is missing, too many, of another shape or no number is named."""
    keys, tensors = parts(kind)
    change(tensors)
    found, message = refused(gguf_files.save(tmp_path / "tiny.gguf", keys, tensors))
    assert "ExportError" == found
    assert message.startswith("tiny.gguf: tensor ")
    assert name in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "t5"),
        ("model", None),
        ("pre", "kimi-k2"),
        ("pre", None),
        ("tokens", None),
        ("tokens", 3),
        ("token_type", None),
        ("token_type", [1] * 5),
        ("token_type", [9] * 260),
        ("merges", None),
        ("merges", ["a c"]),
        ("merges", ["ab"]),
        ("eos_token_id", 260),
        ("eos_token_id", 5),
        ("bos_token_id", None),
        ("add_space_prefix", True),
        ("remove_extra_whitespaces", True),
        ("precompiled_charsmap", [1, 2]),
        ("a_value_of_the_future", 1),
    ],
)
def test_value_of_the_tokenizer(key: str, value: Any, refused: Refusal, tmp_path: Path) -> None:
    """A value of the tokenizer that is wrong or unknown is named, and the message says what to give instead."""
    keys, tensors = parts()
    keys |= {"tokenizer.ggml.pre": "llama-bpe"} | {f"tokenizer.ggml.{key}": value}
    found, message = refused(gguf_files.save(tmp_path / "tiny.gguf", keys, tensors))
    assert "ExportError" == found
    assert message.startswith("tiny.gguf: ")
    assert f"tokenizer.ggml.{key}" in message
    assert "--tokenizer FOLDER" in message or value in (None, 3, "t5")


def test_same_token_twice(refused: Refusal, tmp_path: Path) -> None:
    """Two tokens of one text are named with their ids: only one of them could be read."""
    keys, tensors = parts()
    tokens = keys["tokenizer.ggml.tokens"]
    tokens[5] = tokens[32]
    found, message = refused(gguf_files.save(tmp_path / "tiny.gguf", keys, tensors))
    assert "ExportError" == found
    assert f"tokenizer.ggml.tokens has {tokens[5]!r} twice, as 5 and 32" in message


def characters(scores: dict[str, float]) -> Vocabulary:
    """A small vocabulary by score."""
    made = Vocabulary({"model": "llama", "bos_token_id": 1, "eos_token_id": 2}, [], [])
    for token, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3), ("a", 1), ("b", 1), ("c", 1), ("▁", 1)):
        made.add(token, kind, -50.0 - len(made.tokens))
    for token, score in scores.items():
        made.add(token, score=score)
    return made


@pytest.mark.parametrize(
    ("scores", "sound"),
    [
        ({"ab": -1.0, "bc": -2.0}, True),
        ({"ab": -1.0, "ac": -1.0}, True),
        ({"aa": -1.0, "aaa": -1.0}, True),
        ({"ab": -1.0, "bc": -1.0}, False),
    ],
)
def test_scores_that_give_no_order(
    scores: dict[str, float], sound: bool, refused: Refusal, tmp_path: Path
) -> None:
    """Tokens of one score of which either could be merged first are named; others are of no matter."""
    from hivellm_export.pipeline import export

    keys, tensors = parts()
    keys = {key: value for key, value in keys.items() if not key.startswith("tokenizer.ggml.")}
    path = gguf_files.save(tmp_path / "tiny.gguf", keys | characters(scores).keys(), tensors)
    if sound:
        export(path, [], tmp_path / "out", precision="fp32")
        return
    _, message = refused(path)
    assert "tokenizer.ggml.scores: tokens 7 ('ab') and 8 ('bc')" in message


def test_type_that_cannot_be_dequantised(refused: Refusal, tmp_path: Path) -> None:
    """A tensor of a type that the gguf library has no numbers for is named with its type."""
    keys, tensors = parts()
    tensors["blk.1.ffn_up.weight"] = tensors["blk.1.ffn_up.weight"].astype(np.float64)
    path = gguf_files.save(tmp_path / "tiny.gguf", keys, tensors)
    found, message = refused(path)
    assert "ExportError" == found
    assert message.startswith("tiny.gguf: tensor blk.1.ffn_up.weight has the type F64, which gguf ")


def test_type_of_the_future(refused: Refusal, tmp_path: Path) -> None:
    """A tensor whose type has a number that the library does not know is named with the number."""
    keys, tensors = parts()
    path = gguf_files.save(tmp_path / "tiny.gguf", keys, tensors)
    data = bytearray(path.read_bytes())
    name = b"blk.1.ffn_up.weight"
    place = data.index(name) + len(name) + 4 + 2 * 8
    assert 0 == int.from_bytes(data[place : place + 4], "little")
    data[place : place + 4] = (999).to_bytes(4, "little")
    path.write_bytes(data)
    found, message = refused(path)
    assert "ExportError" == found
    assert "tensor blk.1.ffn_up.weight has quantisation type 999" in message


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.001, 0.01, 0.05, 0.2, 0.5, 0.99])
def test_file_that_ends_too_early(share: float, refused: Refusal, tmp_path: Path) -> None:
    """A file that was cut off anywhere, header, vocabulary or weights, is refused in one line."""
    path = gguf_files.save(tmp_path / "tiny.gguf", *parts())
    truncate(path, to=int(path.stat().st_size * share))
    found, message = refused(path)
    assert "ExportError" == found
    assert message.startswith("tiny.gguf: cannot be read as a base model: ")
    assert "\n" not in message


def test_flipped_bytes(refused: Refusal, tmp_path: Path) -> None:
    """A length in the header that became enormous is refused at once, whatever it is the length of."""
    path = gguf_files.save(tmp_path / "tiny.gguf", *parts())
    data = path.read_bytes()
    for place in (8, 16, 24, data.index(b"tokenizer.ggml.token_type") + 25 + 4 + 4):
        path.write_bytes(data[: place + 5] + b"\x7f" + data[place + 6 :])
        found, message = refused(path)
        assert "ExportError" == found
        assert message.startswith("tiny.gguf: cannot be read as a base model: ")


def test_parts(refused: Refusal, tmp_path: Path) -> None:
    """Another part than the first, a missing part, and a file that lost the name of a part are named."""
    keys, tensors = parts()
    keys |= {"split.no": 0, "split.count": 3}
    first = gguf_files.save(tmp_path / "tiny-00001-of-00003.gguf", keys, tensors)
    _, message = refused(first)
    assert "tiny-00002-of-00003.gguf is missing" in message
    second = gguf_files.save(tmp_path / "tiny-00002-of-00003.gguf", keys, tensors)
    _, message = refused(second)
    assert "give the first, tiny-00001-of-00003.gguf" in message
    _, message = refused(Path(first.rename(tmp_path / "tiny.gguf")))
    assert "tiny.gguf: split.count is 3" in message


def test_bytes_in_the_other_order(refused: Refusal, tmp_path: Path) -> None:
    """A file for a big-endian machine is refused: its numbers would be read wrong."""
    path = gguf_files.save(tmp_path / "tiny.gguf", *parts(), order=gguf.GGUFEndian.BIG)
    found, message = refused(path)
    assert "ExportError" == found
    assert message.startswith("tiny.gguf: it has another byte order than this machine")


def test_more_tokens_than_rows(refused: Refusal, tmp_path: Path) -> None:
    """A vocabulary that is larger than the embedding is refused with both numbers."""
    keys, tensors = parts()
    for name, value in (("tokens", "one more"), ("token_type", gguf_files.NORMAL)):
        keys[f"tokenizer.ggml.{name}"].append(value)
    found, message = refused(gguf_files.save(tmp_path / "tiny.gguf", keys, tensors))
    assert "ExportError" == found
    assert "tokenizer.ggml.tokens has 261 tokens, but token_embd.weight only 260 rows" in message


def test_more_rows_than_tokens(tmp_path: Path) -> None:
    """Rows without a token, as padded embeddings have them, are part of the model."""
    from hivellm_export.base_model import load_base

    keys, tensors = parts()
    for name in ("token_embd.weight", "output.weight"):
        tensors[name] = np.concatenate([tensors[name], np.zeros((4, 32), np.float32)])
    base = load_base(gguf_files.save(tmp_path / "tiny.gguf", keys, tensors))
    assert 264 == base.architecture.vocab_size
    assert 260 == len(base.tokenizer)
