"""A prepared adapter: the arrays that the graph binds, and their file `adapter.safetensors`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.adapters.tensors import shaped
from hivellm_ort.contract import CONTRACT_VERSION
from hivellm_ort.contract.architecture import MAX_FEATURES
from hivellm_ort.contract.fields import digest, text, whole
from hivellm_ort.errors import AdapterError, ManifestError
from hivellm_ort.jsonfiles.node import Node
from hivellm_ort.jsonfiles.reading import parse_json
from hivellm_ort.paths import StrPath

__all__ = ["PreparedAdapter", "PreparedModule"]

Array = NDArray[np.float32]
_METADATA_KEY = "hivellm_ort"
_FIELDS = ("lora_A", "lora_B", "scale", "bias")


@dataclass(frozen=True)
class PreparedModule:
    """`y = scale * (W x) + (x lora_A) lora_B + b + bias` for one linear module [K -> N] with its own bias b.

    `lora_A` float32 [K, r] and `lora_B` float32 [r, N], or neither; `scale` [N], None for ones; `bias` [N], None
    for zeros.
    """

    lora_A: Array | None = None
    lora_B: Array | None = None
    scale: Array | None = None
    bias: Array | None = None

    def __post_init__(self) -> None:
        A, B = self.lora_A, self.lora_B
        if (A is None) != (B is None) or (A is not None and (A.ndim != 2 or A.shape[1] < 1)):
            raise ValueError("lora_A and lora_B must both be there, of two dimensions and a positive rank")


@dataclass(frozen=True)
class PreparedAdapter:
    """An immutable adapter, ready to be bound, identified by its digest.

    Attributes:
        kind: `lora`, `rslora`, `dora`, `adalora` or `ia3`.
        rank: The largest rank of any module, at least 1.
        source_sha256: Digest of the base weights it was prepared against.
        modules: The adapted linear modules by their path in the base model.
        base_sha256: Digest of the bundle it was exported with; any bundle of the same source fits.
        digest: SHA-256 of the file's bytes; empty before it is written. Only adapters read from a file are bound.
    """

    kind: str
    rank: int
    source_sha256: str
    modules: Mapping[str, PreparedModule]
    base_sha256: str = ""
    digest: str = ""

    def to_bytes(self) -> bytes:
        """Return the safetensors file. Equal adapters give equal bytes."""
        from safetensors.numpy import save

        tensors = {
            f"{name}.{field}": np.ascontiguousarray(array)
            for name, module in sorted(self.modules.items())
            for field in _FIELDS
            if (array := getattr(module, field)) is not None
        }
        info = {
            "base_sha256": self.base_sha256,
            "contract_version": CONTRACT_VERSION,
            "kind": self.kind,
            "rank": self.rank,
            "source_sha256": self.source_sha256,
        }
        # One key: safetensors does not keep the order of metadata.
        return save(tensors, metadata={_METADATA_KEY: json.dumps(info, sort_keys=True)})

    @classmethod
    def from_file(cls, path: StrPath, *, sha256: str | None = None) -> PreparedAdapter:
        """Read `adapter.safetensors`.

        Args:
            path: The file.
            sha256: Its digest, if known; the file is then read only once.

        Raises:
            AdapterError: The file is truncated, or is not a prepared adapter of this contract.
        """
        path = Path(path)
        tensors, metadata = _read(path)
        info = _info(metadata, path.name)
        version = info["contract_version"]
        if version.split(".")[0] != CONTRACT_VERSION.split(".")[0]:
            raise AdapterError(
                f"{path.name}: contract_version {version!r}, this runtime reads {CONTRACT_VERSION}"
            )
        modules: dict[str, dict[str, Array]] = {}
        for key, array in tensors.items():
            name, _, field = key.rpartition(".")
            if field not in _FIELDS:
                raise AdapterError(f"{path.name}: tensor {key} is not part of a prepared adapter")
            modules.setdefault(name, {})[field] = array
        try:
            prepared = {name: PreparedModule(**fields) for name, fields in modules.items()}
        except ValueError as error:
            raise AdapterError(f"{path.name}: {error}") from error
        return cls(
            kind=info["kind"],
            rank=info["rank"],
            source_sha256=info["source_sha256"],
            base_sha256=info["base_sha256"],
            modules=prepared,
            digest=sha256 or hashlib.sha256(path.read_bytes()).hexdigest(),
        )


def _read(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the float32 tensors of a safetensors file, as views of the mapped file, and its metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:  # checks the header, its offsets included
            metadata = file.metadata() or {}
        mapped = np.memmap(path, np.uint8, mode="r")
    except OSError as error:
        raise AdapterError(f"{path.name} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError) as error:
        raise AdapterError(f"{path.name} is truncated or not a safetensors file: {error}") from error
    begin = 8 + int.from_bytes(mapped[:8].tobytes(), "little")
    header = json.loads(mapped[8:begin].tobytes())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] != "F32":
            raise AdapterError(f"{path.name}: tensor {name} has dtype {entry['dtype']}; expected F32")
        first, last = entry["data_offsets"]
        values = mapped[begin + first : begin + last].view(np.float32)
        tensor = shaped(values, entry["shape"], f"{path.name}: tensor {name}")
        if not np.isfinite(tensor).all():
            raise AdapterError(f"{path.name}: tensor {name} holds NaN or infinity")
        tensors[name] = tensor.view(np.ndarray)
    return tensors, metadata


def _info(metadata: Mapping[str, str], where: str) -> dict[str, Any]:
    """Return the typed metadata that `to_bytes` wrote."""
    if _METADATA_KEY not in metadata:
        raise AdapterError(
            f"{where}: not a prepared adapter (no {_METADATA_KEY} metadata): export the expert again"
        )
    try:
        node = Node(parse_json(metadata[_METADATA_KEY].encode(), _METADATA_KEY), _METADATA_KEY)
        return {
            "contract_version": text(node, "contract_version"),
            "kind": text(node, "kind"),
            "rank": whole(node, "rank", 0, MAX_FEATURES),
            "source_sha256": digest(node, "source_sha256"),
            "base_sha256": digest(node, "base_sha256") if node.text("base_sha256") else "",
        }
    except ManifestError as error:
        raise AdapterError(f"{where}: metadata {error}") from error
