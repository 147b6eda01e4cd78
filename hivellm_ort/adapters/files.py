"""The files in the folder of a PEFT adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hivellm_ort.errors import AdapterError, ManifestError
from hivellm_ort.jsonfiles.reading import read_json

__all__ = ["ADAPTER_CONFIG", "ADAPTER_WEIGHTS", "check_adapter_files", "read_config_document"]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"


def check_adapter_files(folder: Path) -> None:
    """Check that a folder has both files of an adapter.

    Raises:
        AdapterError: One is missing. If the weights are a pickle, the message says how to convert them.
    """
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if (folder / name).is_file():
            continue
        if name == ADAPTER_WEIGHTS and (folder / _PICKLE).is_file():
            raise AdapterError(
                f"{_PICKLE} in {folder} is a pickle, which is never read: load the adapter with PEFT, and save it "
                f"again with save_pretrained(…, safe_serialization=True), which writes {ADAPTER_WEIGHTS}"
            )
        raise AdapterError(f"{name} is missing in {folder}: PEFT's save_pretrained writes it")


def read_config_document(path: Path) -> dict[str, Any]:
    """Read `adapter_config.json` without interpreting its fields.

    Raises:
        AdapterError: The file is missing, or `read_json` refuses it.
    """
    if not path.is_file():
        raise AdapterError(f"{path.name} is missing: PEFT writes it beside the adapter's weights")
    try:
        return read_json(path)
    except ManifestError as error:
        raise AdapterError(str(error)) from error
