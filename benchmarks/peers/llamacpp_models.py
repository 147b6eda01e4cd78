"""Write a Hugging Face folder as GGUF and quantise it with llama.cpp; runs in that environment.

The projections go through float32, as llama.cpp's own converter writes them; the mixture of types is that of
`llama-quantize`. Where there is a GGUF of the same model its vocabulary is taken over, because grammars need it; else
the tokens are made up, because only ids are given.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from safetensors.numpy import load_file

TYPES = {"q8_0": 7, "q4_0": 2, "q4_1": 3}  # LLAMA_FTYPE_MOSTLY_…
_ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}


def write(spec: dict[str, Any], path: Path) -> None:
    """The model in float32."""
    config = json.loads((Path(spec["hf"]) / "config.json").read_text())
    kind = config["model_type"]
    writer = gguf.GGUFWriter(path, kind)
    if kind == "llama":
        _copy_metadata(writer, spec["gguf"])
    else:
        _write_metadata(writer, config)
    names = gguf.get_tensor_name_map(_ARCHITECTURES[kind], config["num_hidden_layers"])
    tensors = load_file(Path(spec["hf"]) / "model.safetensors")
    for name, tensor in tensors.items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        array = tensor.astype(np.float32)
        if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            array = _interleaved(array, config["head_dim"])
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(target, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleaved(array: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of q and k as llama.cpp's rotary embedding of Llama takes them: halves become pairs."""
    heads = array.shape[0] // head_dim
    return array.reshape(heads, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(array.shape)


def _copy_metadata(writer: gguf.GGUFWriter, source: str) -> None:
    for field in gguf.GGUFReader(source).fields.values():
        if field.name.startswith("GGUF.") or field.name == gguf.Keys.General.ARCHITECTURE:
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)


def _write_metadata(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    count = config["vocab_size"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<t{number}>" for number in range(count)])
    writer.add_token_scores([0.0] * count)
    writer.add_token_types([int(gguf.TokenType.NORMAL)] * count)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_unk_token_id(0)


def quantise(source: Path, target: Path, precision: str) -> None:
    """Run llama.cpp's quantisation.

    Raises:
        SystemExit: it fails.
    """
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = TYPES[precision]
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    if status:
        raise SystemExit(f"llama_model_quantize: status {status}")


if __name__ == "__main__":
    _spec = json.loads(sys.argv[1])
    _folder = Path(_spec["output"])
    _whole = _folder / "f32.gguf"
    write(_spec, _whole)
    quantise(_whole, _folder / "model.gguf", _spec["precision"])
    _whole.unlink()
