"""Archives: a package loads whole, or is refused and leaves nothing; a tar is read as `tarfile` reads it."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import tempfile
import zlib
from pathlib import Path

from attempts import refusing
from hostile_archives import BAD_FILES, BAD_NAMES, BAD_TARS
from mutations import bytes_changed, json_changed, mutated
from package_samples import BASE, COMPLETE, GOOD, NOISE, apple_double, entry, expert, files_under, tar
from store_samples import assert_whole

from hivellm_ort.errors import IntegrityError, LoadError, ManifestError
from hivellm_ort.integrity import verify
from hivellm_ort.loading.inspection import inspect
from hivellm_ort.package.archive import extract
from hivellm_ort.package.manifest import MANIFEST, ExpertManifest
from hivellm_ort.package.store import Store

_LARGEST = 1 << 16  # bytes of a start; larger ones are tested by themselves
_NAMES = [
    *BAD_NAMES.values(),
    "onnx/decoder.json",
    "manifest.json",
    "a.bin",
    "onnx/cuda/decoder.json",
    "._a",
    "a/b",
]
_KINDS = [
    tarfile.REGTYPE,
    tarfile.AREGTYPE,
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.FIFOTYPE,
]


def samples() -> list[bytes]:
    """Whole packages, one as macOS packs it, tars in the forms there are, and everything hostile that is small."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        whole = expert(folder / "p", manifest=COMPLETE, base=BASE, adapter=NOISE[:700])
        bare = expert(folder / "bare", adapter=None)
        packages = [path.read_bytes() for path in (whole, bare, apple_double(whole, folder / "mac"))]
    tars = [
        tar(GOOD, entry("\u00e9/" + "n" * 110, b"12"), entry("./d/", type=b"5"), entry("b", NOISE[:600])),
        tar(GOOD, entry("l" * 150, b"12"), entry("b", NOISE[:600]), GOOD, form=tarfile.GNU_FORMAT),
        *(tar(GOOD, entry(name, b"1")) for name in BAD_NAMES.values()),
        *BAD_TARS.values(),
    ]
    small = [data for data in BAD_FILES.values() if len(data) <= _LARGEST]
    return [*packages, *(gzip.compress(one, 1, mtime=0) for one in tars), *small]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Damage to the file, to the tar within it, or other members in it."""
    kind = rng.randrange(4)
    inner = _inflated(data) if kind and len(data) <= _LARGEST else b""
    if not inner or len(inner) > 1 << 20:
        return mutated(data, rng, [bytes_changed])
    if kind == 3:
        return gzip.compress(_repacked(inner, rng), 1, mtime=0)
    changed = bytearray(mutated(inner, rng, [bytes_changed]))
    if kind == 2:
        _repair_checksums(changed)
    return gzip.compress(bytes(changed), 1, mtime=0)


def _inflated(data: bytes) -> bytes:
    """The tar within a gzip; nothing where it is damaged."""
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, ValueError, zlib.error):
        return b""


def _repacked(data: bytes, rng: random.Random) -> bytes:
    """The same members with some changed, as `tarfile` writes them."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            files = [(info, archive.extractfile(info)) for info in archive]
            members = [(info, file.read() if file else b"") for info, file in files]
    except (tarfile.TarError, OSError, EOFError, ValueError, KeyError, OverflowError):
        return mutated(data, rng, [bytes_changed])
    if not members:
        return data
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(members))
        info, content = members[at]
        match rng.randrange(6):
            case 0:
                members[at] = entry(rng.choice(_NAMES), content)
            case 1:
                members[at] = entry(info.name, content, type=rng.choice(_KINDS), linkname=rng.choice(_NAMES))
            case 2:
                members.insert(rng.randint(0, len(members)), (info, content))
            case 3 if len(members) > 1:
                del members[at]
            case _:
                change = (
                    json_changed(["size", "sha256", "files"])
                    if info.name.endswith(".json")
                    else bytes_changed
                )
                members[at] = entry(info.name, change(content, rng))
    try:
        return tar(*members, form=rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)))
    except (ValueError, OverflowError, OSError, tarfile.TarError):
        return data


def _repair_checksums(data: bytearray) -> None:
    """Make every block with a header's magic a valid header again."""
    for start in range(0, len(data) - 511, 512):
        if data[start + 257 : start + 262] == b"ustar":
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])


def target(data: bytes) -> None:
    """Unpack to a folder and into a store, and describe what came."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        package, out, store = folder / "p", folder / "out", Store(folder / "store")
        package.write_bytes(data)
        found = None
        with refusing(IntegrityError):
            found = extract(package, out)
        if found is None:
            assert {} == files_under(out)
        else:
            files = files_under(out)
            assert sorted(member.name for member in found.members) == sorted(files)
            assert _inflated(data)
            assert _by_tarfile(package, {member.name for member in found.skipped}) in (None, files)
        unpacked = None
        with refusing(LoadError):
            unpacked = store.unpack(package)
        if unpacked is None:
            assert {".lock"} == {path.name for path in store.root.rglob("*") if path.is_file()}
        else:
            assert found is not None
            with refusing(LoadError, ManifestError):
                manifest = ExpertManifest.from_file(unpacked.root / MANIFEST)
                inspect(unpacked, manifest, verify(unpacked, {}))
        assert_whole(store.root)
        assert ["out", "p", "store"] == sorted(path.name for path in folder.iterdir())


def _by_tarfile(package: Path, skipped: set[str]) -> dict[str, bytes] | None:
    """The files of an archive as the standard library reads them, None where it does not."""
    files = {}
    try:
        with tarfile.open(package) as archive:
            for info in archive:
                file = archive.extractfile(info) if info.isreg() else None
                name = info.name.removeprefix("./")
                if file is not None and name not in skipped:
                    files[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError):
        return None
    return files
