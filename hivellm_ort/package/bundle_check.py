"""A base bundle: a folder with the base's files, listed with their digests in `decoder.json`."""

from __future__ import annotations

from pathlib import Path

from hivellm_ort.contract import DECODER_JSON, DecoderConfig
from hivellm_ort.errors import LoadError
from hivellm_ort.filenames import shown
from hivellm_ort.package.archive import sha256_file
from hivellm_ort.package.filecheck import FileChecks

__all__ = ["stored_fault"]


def stored_fault(folder: Path, checks: FileChecks) -> str | None:
    """What is wrong with a stored bundle, a folder named by the digest of its `decoder.json`; None if nothing is."""
    try:
        if sha256_file(folder / DECODER_JSON) != folder.name:
            return f"{DECODER_JSON} differs from its SHA-256"
        listed = DecoderConfig.from_file(folder / DECODER_JSON).files
    except OSError:
        return f"{DECODER_JSON} is missing"
    except LoadError as error:
        return str(error)
    for name, record in listed.items():
        fault = checks.fault(folder / name, record.size, record.sha256)
        if fault is not None:
            return f"{shown(name)} {fault}"
    return None
