"""Makes a manifest from the files of a PEFT adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hivellm_ort.adapters.config import read_peft_config
from hivellm_ort.adapters.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    check_adapter_files,
    read_config_document,
)
from hivellm_ort.adapters.tensors import AdapterTensors
from hivellm_ort.contract import DECODER_JSON, DecoderConfig
from hivellm_ort.errors import AdapterError
from hivellm_ort.package.manifest import ExpertManifest

__all__ = [
    "build_manifest",
    "describe_base_model",
    "draft_manifest",
    "read_base_name",
    "suggest_expert_name",
]

_CHECKPOINT = re.compile(r"checkpoint-\d+|final|adapter|lora|output|out")
_SNAPSHOT = re.compile(r"models--[^/\\]+--([^/\\]+)[/\\]snapshots[/\\][0-9a-f]+")
# The ending that Unsloth adds to names if it trains on its own 4-bit copy of a model.
_QUANTISED = re.compile(r"(?:-unsloth)?-bnb-4bit$")
_TENSOR = re.compile(r"(?:^|\.)([^.]+)\.(?:lora_|ia3_|lokr_)")


def suggest_expert_name(folder: Path) -> str:
    """Return an expert's name made from the folder's name. `my_SQL/checkpoint-50` becomes `expert-my-sql`."""
    place = folder.resolve()
    if _CHECKPOINT.fullmatch(place.name.lower()) and place.parent.name:
        place = place.parent
    words = re.sub(r"[^a-z0-9]+", "-", place.name.lower()).strip("-")
    return f"expert-{words.removeprefix('expert-') or 'adapter'}"


def read_base_name(folder: Path) -> str | None:
    """Return the base model's short name from `base_model_name_or_path`, such as `Qwen3-0.6B`; None if unknown.

    Raises:
        AdapterError: `adapter_config.json` cannot be read.
    """
    value = read_config_document(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(value, str):
        return None
    snapshot = _SNAPSHOT.search(value)
    name = snapshot[1] if snapshot else re.split(r"[/\\]", value.strip().rstrip("/\\"))[-1]
    return _QUANTISED.sub("", name) if name.strip(". ") else None


def describe_base_model(text: str) -> dict[str, str]:
    """Return `name` of a base model for a manifest. If the text is the folder of a base bundle, `sha256` too.

    Raises:
        ManifestError: The folder's `decoder.json` cannot be read.
    """
    path = Path(text) / DECODER_JSON
    if not path.is_file():
        return {"name": text}
    config = DecoderConfig.from_file(path)
    return {"name": config.name, "sha256": config.source_sha256}


def build_manifest(
    folder: Path,
    *,
    name: str,
    version: str,
    base: Mapping[str, str],
    fields: Mapping[str, Any] | None = None,
    decoding: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build the manifest of the adapter in a folder.

    Args:
        folder: The folder with `adapter_config.json` and `adapter_model.safetensors`.
        name: The name of the expert.
        version: The version of the expert.
        base: The fields of its base model.
        fields: Further fields of the manifest.
        decoding: Suggested sampling options.

    Raises:
        AdapterError: The adapter's files cannot be read. The message begins with the folder's name.
    """
    check_adapter_files(folder)
    try:
        adapter = _adapter(folder)
    except AdapterError as error:
        raise type(error)(f"{folder.resolve().name}/{error}") from error
    document = {
        "name": name,
        "version": version,
        "schema_version": "2.0",
        **(fields or {}),
        "base_models": [{**base, "adapters": [adapter]}],
    }
    return {**document, "training": {"decoding": dict(decoding)}} if decoding else document


def draft_manifest(folder: Path) -> ExpertManifest:
    """Draft a manifest for a folder without one. The expert is named after the folder.

    Raises:
        AdapterError: The adapter's files cannot be read.
    """
    base = {"name": read_base_name(folder) or "unknown"}
    document = build_manifest(folder, name=suggest_expert_name(folder), version="0.0.0", base=base)
    return ExpertManifest.from_dict(document, where=folder.name)


def _adapter(folder: Path) -> dict[str, Any]:
    config = read_peft_config(folder / ADAPTER_CONFIG)
    tensors = AdapterTensors.from_file(folder / ADAPTER_WEIGHTS)
    modules = sorted({found[1] for name in tensors.arrays if (found := _TENSOR.search(name))})
    if not modules:
        raise AdapterError(f"{ADAPTER_WEIGHTS} has no tensor of an adapter (lora_A, ia3_l, …)")
    kind = "lora" if config.kind == "rslora" else config.kind
    adapter: dict[str, Any] = {"type": kind, "target_modules": modules}
    if kind == "ia3":
        return {
            **adapter,
            "feedforward_modules": [name for name in modules if config.is_feedforward(name)],
        }
    if kind == "lokr":
        document = read_config_document(folder / ADAPTER_CONFIG)
        return {**adapter, "r": document.get("r", 8), "alpha": document.get("alpha", 8)}
    return {**adapter, "r": config.rank, "alpha": config.alpha}
