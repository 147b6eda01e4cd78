"""Whatever an adapter's files hold, preparing it ends in an adapter or in an AdapterError."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from support.exporting import CONFIG, WEIGHTS, copied

from hivellm_export.pipeline import export
from hivellm_ort.adapters.prepare import Embeddings, prepare
from hivellm_ort.adapters.prepared import PreparedAdapter, PreparedModule
from hivellm_ort.adapters.tensors import read_tensors, same_values
from hivellm_ort.contract import DecoderConfig
from hivellm_ort.errors import AdapterError

Prepare = Callable[[Path], PreparedAdapter]

FIELDS = [
    "peft_type", "r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "bias", "modules_to_save", "use_rslora", "use_dora", "init_lora_weights",
    "feedforward_modules", "init_r",
]  # fmt: skip
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["q_proj", "LORA", "ADALORA", "IA3", "all", "(", ".*", "all-linear", ""])
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["q_proj", "(", ".*", "x"]), inner)
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def preparing(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    """`prepare` for the tiny llama."""
    bundle = tmp_path_factory.mktemp("fuzz") / "bundle"
    export(model_folder("llama"), [], bundle, precision="fp32")
    sites = DecoderConfig.from_file(bundle / "decoder.json").sites
    weights = load_file(model_folder("llama") / "model.safetensors")
    return lambda folder: prepare(
        folder / "adapter_config.json",
        folder / "adapter_model.safetensors",
        sites=sites,
        tensor=weights.__getitem__,
        source_sha256="0" * 64,
        embeddings=Embeddings(288, lambda name, rows: same_values(rows, weights[name])),
    )


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(["lora", "ia3", "adalora"]), fields=st.dictionaries(st.sampled_from(FIELDS), VALUES)
)
@example(kind="lora", fields={"r": float("inf")})
@example(kind="lora", fields={"rank_pattern": {"q_proj": "four"}})
@example(kind="lora", fields={"rank_pattern": {"q_proj": [1]}})
@example(kind="lora", fields={"alpha_pattern": {"q_proj": None}})
@example(kind="lora", fields={"modules_to_save": [1]})
@example(kind="lora", fields={"layers_to_transform": 0, "layers_pattern": [1]})
@example(kind="lora", fields={"init_lora_weights": [True]})
@example(kind="adalora", fields={"rank_pattern": {"model.layers.0.self_attn.q_proj.lora_E": 4}})
@example(kind="adalora", fields={"init_r": "x"})
def test_fields_of_any_type(
    kind: str,
    fields: dict[str, Any],
    preparing: Prepare,
    expert_folder: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A field of a wrong type or value is refused, and the message names the file."""
    place = tmp_path_factory.getbasetemp() / f"fuzz-{kind}"
    folder = place if place.exists() else copied(expert_folder(kind), place)
    original = json.loads((expert_folder(kind) / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**original, **fields}))
    modules: Mapping[str, PreparedModule] = {}
    message = CONFIG
    try:
        modules = preparing(folder).modules
    except AdapterError as error:
        message = str(error)
    assert message.startswith((CONFIG, WEIGHTS))
    for module in modules.values():
        for array in (module.lora_A, module.lora_B, module.scale, module.bias):
            assert array is None or np.isfinite(array).all()


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=200))
@example(content=b"[" * 100_000)
@example(content=b'{"r": 1e999}')
@example(content=b'{"peft_type": "LORA", "r": ' + b"9" * 5000 + b"}")
@example(content=b"\xef\xbb\xbf{}")
def test_configuration_of_any_bytes(
    content: bytes, preparing: Prepare, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bytes that are no configuration are refused by the file's name."""
    folder = tmp_path_factory.getbasetemp()
    (folder / CONFIG).write_bytes(content)
    with pytest.raises(AdapterError, match=CONFIG):
        preparing(folder)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_weights_of_any_bytes(
    data: st.DataObject, expert_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A weights file with bytes cut off, changed or made up is read as finite float32, or refused by name."""
    content = bytearray((expert_folder("lora") / WEIGHTS).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for place in data.draw(st.lists(st.integers(0, header + 64), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.none() | st.integers(0, len(content)))
    path = tmp_path_factory.getbasetemp() / WEIGHTS
    path.write_bytes(data.draw(st.just(bytes(content[:end])) | st.binary(max_size=64)))
    tensors = {}
    with contextlib.suppress(AdapterError):
        tensors = read_tensors(path)
    for array in tensors.values():
        assert np.float32 == array.dtype
        assert np.isfinite(array).all()
