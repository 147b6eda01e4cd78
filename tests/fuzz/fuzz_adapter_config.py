"""`adapter_config.json`: the adapter is prepared and finite, or refused by the name of a file."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

from attempts import refusing
from mutations import bytes_changed, json_changed, mutated, words_changed
from peft_samples import KINDS, config, config_bytes, prepared, weights_bytes

from hivellm_ort.adapters.config import NEUTRAL, read_peft_config
from hivellm_ort.adapters.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from hivellm_ort.errors import AdapterError

WORDS = [
    *sorted(NEUTRAL | {key for kind in KINDS for key in config(kind)}), "exclude_modules", "layers_to_transform",
    "layers_pattern", "modules_to_save", "use_rslora", "init_lora_weights", "init_r", "lora_bias", "q_proj", "v_proj",
    "all-linear", "(", ".*", "(a+)+$", ".*q_proj", "layers", "LORA", "ADALORA", "IA3", "LOKR", "all", "lora_only",
    "pissa", "model.layers.0.self_attn.q_proj.lora_E", "lm_head", "embed_tokens",
]  # fmt: skip
_WAYS = (json_changed(WORDS), json_changed(WORDS), words_changed(WORDS), bytes_changed)
_FOLDERS = {kind: Path(tempfile.mkdtemp(prefix=f"hivellm-fuzz-{kind}-")) for kind in KINDS}
for _kind, _folder in _FOLDERS.items():
    (_folder / ADAPTER_WEIGHTS).write_bytes(weights_bytes(_kind))


def samples() -> list[bytes]:
    """A configuration of each kind, one in UTF-16, and what is no configuration."""
    utf16 = json.dumps(config("lora")).encode().decode().encode("utf-16")
    return [
        *map(config_bytes, KINDS),
        utf16,
        b"[" * 100_000,
        b'{"peft_type": "LORA", "r": ' + b"9" * 5000 + b"}",
    ]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Another configuration."""
    return mutated(data, rng, _WAYS)


def target(data: bytes) -> None:
    """Prepare the adapter that has the weights of the kind it names."""
    kind = "ia3" if b'"IA3"' in data else "adalora" if b'"ADALORA"' in data else "lora"
    folder = _FOLDERS["dora" if kind == "lora" and b"use_dora" in data else kind]
    (folder / ADAPTER_CONFIG).write_bytes(data)
    with refusing(AdapterError):
        read_peft_config(folder / ADAPTER_CONFIG)
    try:
        with refusing():
            adapter = prepared(folder)
    except AdapterError as error:
        assert str(error).startswith((ADAPTER_CONFIG, ADAPTER_WEIGHTS)), str(error)[:200]  # noqa: PT017
    else:
        check(adapter.to_bytes(), folder)


def check(content: bytes, folder: Path) -> None:
    """What was prepared is read again as it was."""
    import numpy as np

    from hivellm_ort.adapters.prepared_adapter import PreparedAdapter

    path = folder / "adapter.safetensors"
    path.write_bytes(content)
    again = PreparedAdapter.from_file(path)
    for module in again.modules.values():
        for array in (module.lora_A, module.lora_B, module.scale, module.bias):
            assert array is None or np.isfinite(array).all()
