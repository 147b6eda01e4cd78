"""Paths as people have them: strings or path objects, with spaces, accents, other scripts, a leading - or @."""

# The expected value comes first.

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner
from support.extras import HAS_EXPORT, requires_export
from support.running import PROMPT, Packages

import hivellm_ort
import hivellm_ort.integrity
from hivellm_ort import Expert, ExpertManager, ExpertManifest
from hivellm_ort.adapters.prepared_adapter import PreparedAdapter
from hivellm_ort.cli.main import main
from hivellm_ort.contract import DecoderConfig
from hivellm_ort.integrity import TrustStore, check, generate_key, read_public_key, sign, verify
from hivellm_ort.integrity.keyfiles import read_private_key
from hivellm_ort.integrity.trust import Trust
from hivellm_ort.loading.folder_packing import pack
from hivellm_ort.package.archive import extract, sha256_file, write
from hivellm_ort.package.manifest_schema import schema_problems
from hivellm_ort.package.store import Store, open_package
from hivellm_ort.text.template import ChatTemplate
from hivellm_ort.text.tokenizer import TextTokenizer

ODD = "mit Leerzeichen, é и 模型 🐝"
PACKAGES: list[ModuleType] = [hivellm_ort]
FUNCTIONS: list[Callable[..., Any]] = [
    extract, open_package, pack, read_private_key, schema_problems, sha256_file,
    write,
]  # fmt: skip
if HAS_EXPORT:
    import hivellm_export
    from hivellm_export.graph.rules import check_bundle
    from hivellm_export.packaging.package import ExpertSource
    from hivellm_export.pipeline import export

    PACKAGES.append(hivellm_export)
    FUNCTIONS += [check_bundle, export]


def _methods(owner: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    generated = hasattr(owner, "__dataclass_fields__")
    for name, value in vars(owner).items():
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        public = not name.startswith("_") or (name == "__init__" and not generated)
        if public and inspect.isfunction(function):
            yield f"{owner.__name__}.{name}", function


def _readers() -> Iterator[tuple[str, Callable[..., Any]]]:
    """`from_file` and `from_folder` of every class of both packages."""
    for package in PACKAGES:
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.endswith("__main__") or found.name.startswith(
                "hivellm_ort.ray"
            ):  # needs the extra ray
                continue
            module = importlib.import_module(found.name)
            for owner in (getattr(module, name) for name in getattr(module, "__all__", ())):
                if inspect.isclass(owner) and owner.__module__ == found.name:
                    yield from ((n, f) for n, f in _methods(owner) if re.search(r"\.from_f(ile|older)\Z", n))


def _public() -> dict[str, Callable[..., Any]]:
    """The functions that users of the library call."""
    found = {function.__name__: function for function in FUNCTIONS} | dict(_readers())
    for home in (hivellm_ort, hivellm_ort.integrity):
        for value in (getattr(home, name) for name in home.__all__):
            found.update(_methods(value) if inspect.isclass(value) else ())
            found.update({value.__name__: value} if inspect.isfunction(value) else {})
    return found | dict(_methods(Store))


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Names and types of its parameters, those of a typed dict of options one by one."""
    for name, annotation in function.__annotations__.items():
        options = re.fullmatch(r"Unpack\[(\w+)\]", str(annotation))
        inner = getattr(hivellm_ort, options[1]).__annotations__ if options else {name: annotation}
        yield from ((parameter, str(found)) for parameter, found in inner.items())


PARAMETERS = {
    (function, parameter): annotation
    for function, made in _public().items()
    for parameter, annotation in _parameters(made)
    if parameter != "return" and "Path" in annotation
}


def test_the_search_finds_them() -> None:
    """The parameters that are paths are found, in functions, methods and classes."""
    assert {
        ("Expert.load", "base"),
        ("ExpertManager.__init__", "cache_dir"),
        ("ExpertManager.load_experts", "packages"),
        ("ExpertManifest.from_file", "path"),
        ("DecoderConfig.from_file", "path"),
        ("Store.__init__", "root"),
        ("sign", "output"),
        *([("ExpertSource.from_folder", "folder"), ("export", "experts")] if HAS_EXPORT else []),
    } <= PARAMETERS.keys()


@pytest.mark.parametrize(("function", "parameter"), PARAMETERS, ids=".".join)
def test_strings_are_taken(function: str, parameter: str) -> None:
    """Whatever is a path takes strings and any object that stands for a path."""
    assert "Path" not in PARAMETERS[function, parameter].replace("StrPath", "")


class Named:
    """A path-like object that is not a `Path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


@pytest.fixture(params=[str, Named], ids=["str", "os.PathLike"])
def given(request: pytest.FixtureRequest) -> Any:
    """How a path is given."""
    return request.param


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of an odd name that everything is in, the store and the keys too."""
    place = tmp_path / ODD
    place.mkdir()
    monkeypatch.setenv("HIVELLM_HOME", str(place / "дом home"))
    return place


def test_from_export_to_answer(
    packages: Packages, lora: Expert, folder: Path, given: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything works on odd paths, given as strings or as objects that stand for paths."""
    requires_export()
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
    expected = lora.generate(PROMPT, **options).tokens
    model = Path(shutil.copytree(packages.model, folder / "base модель"))
    source = Path(shutil.copytree(packages.lora_folder, folder / "lora é"))
    out = folder / "выход out"
    report = export(given(model), [given(source)], given(out), precision="fp32", thin=True)
    package, base = out / report.packages[0].file, out / "base"
    store = folder / "store 店"
    with Expert.load(given(package), base=given(base), cache_dir=given(store), threads=1) as expert:
        assert expected == expert.generate(PROMPT, **options).tokens
    with ExpertManager(threads=1, cache_dir=given(store)) as manager:
        manager.load_experts({"a": given(package)}, base=given(base))
        manager.load_expert("b", given(source), base=given(base))
        assert expected == manager.generate("a", PROMPT, **options).tokens
        assert expected == manager.generate("b", PROMPT, **options).tokens
    assert {True} == {message.startswith(str(folder)) for message in caplog.messages}
    assert report.source_sha256 == check_bundle(given(base)).source_sha256
    assert ExpertSource.from_folder(given(source)).folder == source
    assert "expert-lora" == ExpertManifest.from_file(given(source / "manifest.json")).name
    assert "/capabilities" in schema_problems(given(source / "manifest.json"))[0]
    assert "cpu" == DecoderConfig.from_file(given(base / "decoder.json")).target
    assert (
        lora.generate(PROMPT).prompt_tokens > len(TextTokenizer.from_folder(given(base)).encode(PROMPT)) > 0
    )
    assert not ChatTemplate.from_folder(given(base)).built_in


def test_signing_and_storing(packages: Packages, folder: Path, given: Any) -> None:
    """Keys, signatures, archives and stores work on odd paths."""
    source = Path(shutil.copytree(packages.lora_folder, folder / "lora é"))
    opened = open_package(given(source), Store(given(folder / "store 店")))
    manifest = ExpertManifest.from_file(source / "manifest.json")
    pack(opened, given(folder / "a b.expert"), manifest)
    key = generate_key(given(folder / "мой.key"))
    assert key == read_public_key(given(folder / "мой.pub"))
    assert 32 == len(read_private_key(given(folder / "мой.key")))
    signed = folder / "подпись signed.expert"
    sign(given(folder / "a b.expert"), given(folder / "мой.key"), publisher="Я", output=given(signed))
    pins = TrustStore(given(folder / "keys ключи.json"))
    pins.add("я", key)
    package = Store(given(folder / "store 店")).unpack(given(signed))
    assert "verified by я" == str(verify(package, pins.mapping()))
    assert "verified" == check(package, Trust("require", pins.mapping()), where=given(signed)).status
    contents = extract(given(signed), given(folder / "unpacked распаковка"))
    assert contents.sha256 == sha256_file(given(signed))
    write(given(folder / "again снова"), [("manifest.json", given(source / "manifest.json"))])
    assert (folder / "again снова").is_file()
    extract(packages.lora, given(folder / "lora распаковка"))
    adapter = folder / "lora распаковка" / "onnx" / "adapter.safetensors"
    assert "lora" == PreparedAdapter.from_file(given(adapter)).kind


@pytest.mark.parametrize("name", ["-x.expert", "@x.expert", "--json", "x y.expert"])
def test_names_at_the_command_line(
    packages: Packages, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A package name with - is given after --, and one with @ is not a file of arguments."""
    shutil.copy(packages.lora, folder / name)
    monkeypatch.chdir(folder)
    for arguments in (["inspect", "--json", "--", name], ["verify", "--json", "--", f"./{name}"]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code in (0, 1), result.output
    result = CliRunner().invoke(
        main, ["run", "--threads", "1", "--max-tokens", "4", "--json", "--", name, "-v"]
    )
    assert 4 == json.loads(result.stdout)["completion_tokens"]
