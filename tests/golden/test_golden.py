"""The golden packages are what the script makes, and hold what they are meant to cover."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from support.extras import requires_export
from support.golden import BASE, GOLDEN, PEFT, golden, members, with_base

from golden.sources import BASES
from hivellm_ort import Expert

PACKAGES = sorted(path.stem for path in GOLDEN.glob("*.expert"))


def configs() -> list[dict[str, Any]]:
    """Every base bundle of the packages, and the one beside them."""
    documents = [
        data
        for name in PACKAGES
        for member, data in members(golden(name)).items()
        if member.endswith("/decoder.json")
    ]
    return [json.loads(data) for data in (*documents, (BASE / "decoder.json").read_bytes())]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages, made once more."""
    requires_export()
    from golden.make import make

    folder = tmp_path_factory.mktemp("golden")
    make(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Every file that the script writes."""
    paths = [
        *folder.glob("*.expert"),
        *(folder / "base").iterdir(),
        *(folder / "peft").iterdir(),
        *(folder / "bad").iterdir(),
    ]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(paths)}


def unpacked(name: str, data: bytes) -> bytes:
    """The bytes of a file, of a package those of its tar."""
    return gzip.decompress(data) if name.endswith(".expert") and "truncated" not in name else data


def test_made_again_byte_for_byte(made: Path) -> None:
    """With the same versions every file has the same bytes, and with another zlib every package the same members.

    What is measured is the same on the same kind of CPU.
    """
    from golden.make import HERE, MADE, MEASURED

    before, now = (json.loads((folder / MADE).read_text(encoding="utf-8")) for folder in (HERE, made))
    other = {name for name in before | now if before.get(name) != now.get(name)}
    if other - {"cpu", "zlib"}:
        pytest.skip(f"other versions than the packages were made with: {', '.join(sorted(other))}")
    expected, actual = files(GOLDEN), files(made)
    assert expected.keys() == actual.keys()
    # Half of a packed file is nothing that can be unpacked.
    passed = {"bad/truncated.expert"} if "zlib" in other else set()
    passed |= {f"{name}.expert" for name in MEASURED} if "cpu" in other else set()
    if "zlib" in other:
        expected, actual = ({n: unpacked(n, data) for n, data in one.items()} for one in (expected, actual))
    assert [] == [name for name in expected if expected[name] != actual[name] and name not in passed]


def test_put_together_as_exported(tmp_path: Path) -> None:
    """A thin package with its base put in is, byte for byte, what an export without `--thin` writes."""
    requires_export()
    from support.golden import adapter_folder

    from golden.sources import save_base
    from hivellm_export.pipeline import export

    model = save_base(tmp_path / "tiny", BASES["tiny"])
    report = export(model, [adapter_folder("dora", tmp_path / "dora")], tmp_path / "out", precision="fp32")
    whole = with_base("dora", tmp_path / "dora.expert")
    expected = members(tmp_path / "out" / report.packages[0].file)
    actual = members(whole)
    assert list(expected) == list(actual)
    assert [] == [name for name in expected if expected[name] != actual[name] and name != "manifest.json"]


def test_what_they_cover() -> None:
    """Every architecture, target and precision of the exporter, and every kind of adapter, is in one of them."""
    found = configs()
    assert {"llama", "mistral", "qwen2", "qwen3"} == {one["architecture"]["model_type"] for one in found}
    assert {"cpu", "cuda", "dml", "portable"} == {one["target"] for one in found}
    assert {"fp32", "fp16", "bf16", "int8", "w8a8", "int4"} == {one["precision"] for one in found}
    assert {"float32", "float16", "bfloat16", "int8"} == {one["graph"]["cache_dtype"] for one in found}
    assert 2 == sum(one["merged"] is not None for one in found)
    kinds = {
        json.loads(members(golden(name))["manifest.json"])["base_models"][0]["adapters"][0]["type"]
        for name in PACKAGES
    }
    assert {"lora", "rslora", "dora", "adalora", "ia3", "lokr"} == kinds


def test_they_are_small() -> None:
    """All of them together are about a megabyte, so that a clone stays small."""
    assert 1_100_000 > sum(map(len, files(GOLDEN).values()))


@pytest.mark.parametrize("name", PACKAGES)
def test_it_loads_and_answers(name: str, tmp_path: Path) -> None:
    """The CPU runs it; a thin one finds the base beside it."""
    path = golden(name)
    with Expert.load(path, cache_dir=tmp_path, device="cpu", fallback=True, threads=1, trust="off") as expert:
        result = expert.generate("select the users", max_tokens=8, grammar=False)
    assert 1 <= result.completion_tokens <= 8


def test_a_folder_of_peft_answers_as_its_package(tmp_path: Path) -> None:
    """The adapter as PEFT saved it, prepared when it is loaded, gives the answer of the exported one."""
    answers = []
    for path in (golden("dora"), PEFT, golden("reference")):
        with Expert.load(path, base=BASE, cache_dir=tmp_path, threads=1, trust="off") as expert:
            answers.append(expert.generate("select the users", max_tokens=24).tokens)
    assert [answers[0]] * 3 == answers
