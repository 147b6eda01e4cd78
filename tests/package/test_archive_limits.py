"""What a package may unpack to: limits by kind of member, and ratios of the whole and of each member."""

# The expected value comes first.

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
from package_samples import GOOD, NOISE, entry, raw_header, save, tar

from hivellm_ort.errors import IntegrityError
from hivellm_ort.package.archive import Limits, extract


def _refused(package: Path, destination: Path, *, limits: Limits | None = None) -> IntegrityError:
    with pytest.raises(IntegrityError) as caught:
        extract(package, destination, limits=limits or Limits())
    assert [] == list(destination.iterdir())
    return caught.value


def _packed(path: Path, *members: tuple[str, int, bytes], level: int = 1) -> Path:
    """A package of members that begin with so many zeros and go on with other bytes."""
    entries = [entry(name, bytes(zeros) + data) for name, zeros, data in members]
    path.write_bytes(gzip.compress(tar(GOOD, *entries), compresslevel=level, mtime=0))
    return path


_MIB = 1 << 20
_NOISE = random.Random(3).randbytes(_MIB)


@pytest.mark.parametrize(
    "name", ["README.md", "LICENSE", "a.json", "a.jinja", "a.gbnf", "tokenizer.json", "noending"]
)
def test_texts_are_small(tmp_path: Path, name: str) -> None:
    """A text of more than 64 MiB is refused before it is read."""
    data = raw_header(name.encode(), 64 * _MIB + 1)
    message = str(_refused(save(tmp_path / "p", tar(GOOD)[:1024] + data), tmp_path / "out"))
    assert f"member '{name}' has more than 67108864 bytes (max_text_bytes)" in message


@pytest.mark.parametrize(
    "name", ["onnx/weights.bin", "adapter_model.safetensors", "a.onnx", "a.onnx.data", "optimizer.pt"]
)
def test_weights_are_large(tmp_path: Path, name: str) -> None:
    """Weights have the larger limit, also those of a checkpoint that are left out."""
    data = raw_header(name.encode(), 64 * _MIB + 1)
    package = save(tmp_path / "p", tar(GOOD, entry("noise", _NOISE))[: 1536 + _MIB] + data)
    assert "ends too early" in str(_refused(package, tmp_path / "out"))
    limits = Limits(max_member_bytes=64 * _MIB)
    assert "max_member_bytes" in str(_refused(package, tmp_path / "out", limits=limits))


def test_smaller_of_two_limits(tmp_path: Path) -> None:
    """A limit for all files holds for texts too."""
    package = save(tmp_path / "p", tar(GOOD, entry("a.md", NOISE)))
    assert "max_member_bytes" in str(
        _refused(package, tmp_path / "out", limits=Limits(max_member_bytes=2999))
    )


def test_zeros_in_a_sound_package(tmp_path: Path) -> None:
    """A member of zeros is refused by its own ratio, early, even if the ratio of the package is fine."""
    package = _packed(tmp_path / "p", ("noise.safetensors", 0, _NOISE), ("a.safetensors", 160 * _MIB, b""))
    largest = 0

    def watch(_count: int) -> None:
        nonlocal largest
        largest = max([largest, *(path.stat().st_size for path in (tmp_path / "out").rglob("*"))])

    with pytest.raises(
        IntegrityError, match=r"member 'a.safetensors' unpacks to more than 50 times its size"
    ):
        extract(package, tmp_path / "out", progress=watch)
    assert [] == list((tmp_path / "out").iterdir())
    assert 64 * _MIB < largest < 96 * _MIB
    contents = extract(package, tmp_path / "out", limits=Limits(max_member_ratio=250))
    assert 160 * _MIB == contents.members[2].size


@pytest.mark.parametrize("name", ["README.md", "a.sh", "._a"], ids=["kept", "skipped", "system file"])
def test_zeros_as_a_text(tmp_path: Path, name: str) -> None:
    """A text that is mostly one byte is refused after a few MiB, one that is left out too."""
    package = _packed(tmp_path / "p", ("noise.safetensors", 0, _NOISE), (name, 20 * _MIB, b""))
    assert f"member '{name}' unpacks to more than 50 times" in str(_refused(package, tmp_path / "out"))
    small = _packed(tmp_path / "q", (name, _MIB, b""))
    assert 2 == len([*(found := extract(small, tmp_path / "out")).members, *found.skipped])


@pytest.mark.parametrize(
    ("zeros", "data"), [(40 * _MIB, _NOISE), (12 * _MIB, b"")], ids=["half trained", "nothing but zeros"]
)
def test_weights_of_zeros(tmp_path: Path, zeros: int, data: bytes) -> None:
    """Weights may begin with zeros, as an adapter's whose B is untrained; small ones may hold nothing else."""
    package = _packed(tmp_path / "p", ("a.safetensors", zeros, data))
    assert zeros + len(data) == extract(package, tmp_path / "out").members[1].size


def test_a_real_text_compresses_less(tmp_path: Path) -> None:
    """A vocabulary of 7 MB loads, with a fifth of its bytes in the archive."""
    text = json.dumps({f"token{number:06}": number for number in range(300_000)}, indent=2).encode()
    package = save(tmp_path / "p", tar(GOOD, entry("vocab.json", text)))
    assert 4 < len(text) / package.stat().st_size
    assert len(text) == extract(package, tmp_path / "out").members[1].size
