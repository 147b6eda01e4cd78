"""`decoder.json`: the base that it describes runs, or it is refused when the base is loaded."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

from attempts import refusing
from mutations import bytes_changed, json_changed, mutated, words_changed
from support import tiny

from hivellm_export.pipeline import export
from hivellm_ort.contract import DECODER_JSON, DecoderConfig
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.engine.session import Engine
from hivellm_ort.errors import InferenceError, LoadError

_FOLDER = Path(tempfile.mkdtemp(prefix="hivellm-fuzz-"))
_SHAPE = {
    "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "rope_scaling": None,
}  # fmt: skip
_PIECES = [
    "null",
    "[",
    "{",
    "}",
    '"',
    ",",
    "NaN",
    "1e999",
    "-",
    "\\ud800",
    "true",
    "1000000000",
    '"name": 1,',
]


def _bundle() -> Path:
    model = tiny.save_model(_FOLDER / "model", "llama", **_SHAPE)
    export(model, [], _FOLDER / "bundle", precision="fp32", verify=False)
    return _FOLDER / "bundle"


_BUNDLE = _bundle()
_DOCUMENT = (_BUNDLE / DECODER_JSON).read_bytes()
WORDS = [
    *json.loads(_DOCUMENT), *json.loads(_DOCUMENT)["architecture"], *json.loads(_DOCUMENT)["graph"], "1.7", "2.0",
    "float32", "float16", "int8", "in_place", "new_tokens", "cpu", "cuda", "dml", "portable", "fp32", "int4", "w8a8",
    "input_ids", "max_length", "batch_size", "sequence_length", "../x", "decoder.onnx",
    "weights.bin", "com.microsoft",
]  # fmt: skip
_WAYS = (json_changed(WORDS), json_changed(WORDS), json_changed(WORDS), words_changed(_PIECES), bytes_changed)


def samples() -> list[bytes]:
    """That of a tiny base."""
    return [_DOCUMENT]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Another description."""
    return mutated(data, rng, _WAYS)


def target(data: bytes) -> None:
    """Load the base with and without an adapter, and run it once."""
    (_BUNDLE / DECODER_JSON).write_bytes(data)
    with refusing(LoadError):
        config = DecoderConfig.from_file(_BUNDLE / DECODER_JSON)
        assert config.context is not None
        config.to_bytes()
        engine = Engine(_BUNDLE, config, threads=1)
        adapter = BoundAdapter.none(config) if config.merged is None else None
        decoder = engine.decoder(adapters=adapter is not None)
        with refusing(InferenceError):
            decoder.start(0, adapter, 8)
            decoder.forward([1, 2, 3])
            decoder.forward([4])
        engine.close()
