"""Safetensors: an adapter's tensors are read as finite float32, or refused by the name of the file."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np
from attempts import refusing
from mutations import bytes_changed, json_changed, mutated
from peft_samples import KINDS, config_bytes, prepared, tensors, weights_bytes

from hivellm_ort.adapters.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from hivellm_ort.adapters.prepared_adapter import PreparedAdapter
from hivellm_ort.adapters.tensors import AdapterTensors, read_tensors
from hivellm_ort.errors import AdapterError

WORDS = [
    "dtype", "shape", "data_offsets", "__metadata__", "F32", "F16", "BF16", "F64", "I8", "BOOL", "F8_E4M3", "U64",
    "hivellm_ort", "format", "lora_A", "lora_B", "scale", "bias", *sorted(tensors("lora"))[:3], "kind", "rank",
]  # fmt: skip
_FOLDERS = {kind: Path(tempfile.mkdtemp(prefix=f"hivellm-fuzz-{kind}-")) for kind in KINDS}
for _kind, _folder in _FOLDERS.items():
    (_folder / ADAPTER_CONFIG).write_bytes(config_bytes(_kind))
_HEADER = json_changed(WORDS)


def samples() -> list[bytes]:
    """The weights of each kind, in three types, and prepared adapters."""
    made = [weights_bytes(kind) for kind in KINDS]
    made.append(weights_bytes("lora", lambda array: array.astype(np.float16)))
    made.append(weights_bytes("lora", lambda array: array.astype(np.float64)))
    for kind in KINDS:
        (_FOLDERS[kind] / ADAPTER_WEIGHTS).write_bytes(weights_bytes(kind))
        made.append(prepared(_FOLDERS[kind]).to_bytes())
    return made


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Other bytes, or another header with a length that is right."""
    return mutated(data, rng, (_header_changed, _header_changed, bytes_changed))


def _header_changed(data: bytes, rng: random.Random) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    if not 8 < end <= len(data):
        return bytes_changed(data, rng)
    header = _HEADER(data[8:end], rng)
    return len(header).to_bytes(8, "little") + header + data[end:]


def target(data: bytes) -> None:
    """Read the file as an adapter of PEFT's, and as one that was prepared."""
    kind = "ia3" if b"ia3_l" in data else "adalora" if b"lora_E" in data else "lora"
    folder = _FOLDERS["dora" if b"magnitude" in data else kind]
    path = folder / ADAPTER_WEIGHTS
    path.write_bytes(data)
    for array in _read(path).values():
        assert np.float32 == array.dtype
        assert np.isfinite(array).all()
    with refusing(AdapterError):
        AdapterTensors.from_file(path)
    with refusing(AdapterError):
        prepared(folder)
    with refusing(AdapterError):
        adapter = PreparedAdapter.from_file(path)
        assert adapter.rank >= 1


def _read(path: Path) -> dict[str, np.ndarray]:
    with refusing(AdapterError):
        return read_tensors(path)
    return {}
