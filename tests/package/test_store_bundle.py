"""The store verifies the base inside a package and keeps equal ones once."""

# The expected value comes first.

from __future__ import annotations

from pathlib import Path

import pytest
from package_samples import BASE, BASE_DIGEST, bundle, decoder_json, expert, files_under, no_work_left

from hivellm_ort.errors import IntegrityError, ManifestError
from hivellm_ort.package.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


def test_two_packages_share_a_base(tmp_path: Path, store: Store) -> None:
    """Two packages with equal bases keep one copy; another base gets its own."""
    one = store.unpack(expert(tmp_path / "1.expert", base=BASE))
    stamp = one.bundles[0].stat().st_ino
    two = store.unpack(expert(tmp_path / "2.expert", base=BASE, adapter=b"another"))
    assert one.bundles == two.bundles
    assert stamp == two.bundles[0].stat().st_ino
    assert [store.root / "bases" / BASE_DIGEST] == store.bundles()
    other = store.unpack(expert(tmp_path / "3.expert", base=bundle(b"other")))
    assert sorted([*one.bundles, *other.bundles], key=str) == store.bundles()


@pytest.mark.parametrize("name", ["decoder.json", "weights.bin"])
def test_damaged_base_is_replaced(tmp_path: Path, store: Store, name: str) -> None:
    """A cached base with a cut file is not offered, and comes back with the next unpacking."""
    package = expert(tmp_path / "p.expert", base=BASE)
    store.unpack(package)
    (store.root / "bases" / BASE_DIGEST / name).write_bytes(b"cut")
    assert (None, []) == (store.find_bundle(BASE_DIGEST), store.bundles())
    store.unpack(package)
    assert BASE == files_under(store.root / "bases" / BASE_DIGEST)


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "..",
        "../packages",
        "0" * 64,
        BASE_DIGEST.upper(),
        BASE_DIGEST + "\n",
        BASE_DIGEST + "/../" + BASE_DIGEST,
    ],
)
def test_unknown_bundle(tmp_path: Path, store: Store, digest: str) -> None:
    """A digest that is unknown, or no digest at all, finds nothing."""
    store.unpack(expert(tmp_path / "p.expert", base=BASE))
    assert None is store.find_bundle(digest)


def _tampered(kind: str) -> dict[str, bytes]:
    files = dict(BASE)
    match kind:
        case "same size":
            files["weights.bin"] = b"WEIGHTS"
        case "other size":
            files["weights.bin"] = b"more weights"
        case "missing":
            del files["weights.bin"]
        case "added":
            files["custom_op.onnx"] = b"x"
        case "added in a folder":
            files["more/tokenizer.json"] = b"x"
        case "no list":
            del files["decoder.json"]
    return files


@pytest.mark.parametrize(
    "kind", ["same size", "other size", "missing", "added", "added in a folder", "no list"]
)
def test_tampered_base(tmp_path: Path, store: Store, kind: str) -> None:
    """A base whose files differ from its list is refused and nothing is stored."""
    with pytest.raises(IntegrityError, match=r"p\.expert: onnx/"):
        store.unpack(expert(tmp_path / "p.expert", base=_tampered(kind)))
    assert [] == store.bundles()
    assert not (store.root / "packages").exists()
    assert no_work_left(store)


def test_tampered_base_beside_a_good_one(tmp_path: Path, store: Store) -> None:
    """A changed copy of a base is refused even if the store has the right one, which stays."""
    store.unpack(expert(tmp_path / "good.expert", base=BASE))
    with pytest.raises(IntegrityError):
        store.unpack(expert(tmp_path / "bad.expert", base=_tampered("same size")))
    assert BASE == files_under(store.root / "bases" / BASE_DIGEST)


@pytest.mark.parametrize(
    "decoder",
    [
        b"",
        b"[]",
        b"{}",
        decoder_json([]),
        decoder_json({}),
        decoder_json({"a": 1}),
        decoder_json({"a": {"size": 1}}),
        decoder_json({"a": {"size": -1, "sha256": "0" * 64}}),
        decoder_json({"a": {"size": 1, "sha256": "../x"}}),
    ],
)
def test_malformed_decoder_json(tmp_path: Path, store: Store, decoder: bytes) -> None:
    """A decoder.json without a proper list is a ManifestError and nothing is stored."""
    with pytest.raises(ManifestError, match=r"decoder\.json"):
        store.unpack(expert(tmp_path / "p.expert", base={"decoder.json": decoder}))
    assert [] == store.bundles()
    assert no_work_left(store)
