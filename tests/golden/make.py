"""Make the golden packages again, byte for byte.

    PYTHONPATH=tests python -m golden.make [FOLDER]

Without a folder the packages here are replaced. It needs the extra `export`, with the versions of
`export/constraints.txt`. What the bytes depend on, besides this folder's code and the exporter's:

- these versions (PyTorch traces the graphs, ONNX IR writes them, tokenizers trains the vocabulary, numpy draws the
  weights), and zlib, which packs the files: with another one the members are the same, and their packed bytes differ;
- the kind of CPU, as PyTorch calls it (`AVX2`, `AVX512`, `DEFAULT`): sums may differ there in the last bit. Between
  AVX2 and AVX512 only the packages of `MEASURED` differ, whose scales come from running the model. On other CPUs
  rotary tables, what is prepared of DoRA and merged weights may differ too.

`MADE` says which kind of CPU and which versions made the packages that are here.

No time, no path and no order of a file system gets into them.
"""

from __future__ import annotations

import dataclasses
import gzip
import importlib.metadata
import io
import json
import shutil
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from support.golden import members
from support.signing import SEED, TIME, reference_signed

from golden.sources import BASES, Adapter, save_adapter, save_base
from hivellm_export.pipeline import export
from hivellm_ort.adapters.prepared_adapter import PreparedAdapter
from hivellm_ort.integrity.native import signed_manifest
from hivellm_ort.package.archive import extract, write

__all__ = ["HERE", "MADE", "MEASURED", "described", "make"]

HERE = Path(__file__).parent
MADE = "made.json"
"""The file that says what made the packages beside it."""

MEASURED = ("forms", "w8a8")
"""Packages with numbers that are measured when they are made: scales of 8-bit caches and activations."""

_GRAMMAR = 'root ::= "SELECT " column (", " column)* ";"\ncolumn ::= [a-c]+\n'
_DECODING = {
    "temperature": 0.0,
    "max_new_tokens": 24,
    "stop_sequences": ["###"],
    "use_grammar": True,
    "grammar_file": "grammar.gbnf",
}
_SQL = {"keywords": ["sql", "orders", "count all"], "router_hint": "database=sql"}
_JSON = {"keywords": ["json", "invalid json"], "priority": 0.6}
# Not everywhere: a merged base is small where most of its weights are the base's own.
_SOME = {"target_modules": ["q_proj", "v_proj", "down_proj"]}

# Thin packages on the base `tiny` in fp32, which is beside them in `base`: kind, seed, fields of adapter_config.json
# and sections of the manifest.
_THIN: dict[str, tuple[Adapter, dict[str, Any]]] = {
    "lora": (Adapter("lora", 11), {}),
    "dora": (Adapter("dora", 12, _SOME), {}),
    "ia3": (Adapter("ia3", 13), {}),
    "rslora": (Adapter("rslora", 14), {}),
    "adalora": (Adapter("adalora", 15), {}),
    "sql": (Adapter("lora", 16), {"routing": _SQL}),
    "json": (
        Adapter("dora", 17),
        {"routing": _JSON, "capabilities": ["format:json"], "description": "Mends JSON."},
    ),
    "grammar": (Adapter("lora", 18), {"training": {"decoding": _DECODING}}),
}
# Packages that bring their base: base, adapter, options of the export.
_WHOLE: dict[str, tuple[str, Adapter, dict[str, Any]]] = {
    "short": ("small", Adapter("lora", 21), {"precision": "fp32"}),
    "windowed": ("windowed", Adapter("lora", 22), {"precision": "fp32"}),
    "thinking": ("biased", Adapter("lora", 23), {"precision": "fp32"}),
    "merged": ("tiny", Adapter("dora", 12, _SOME), {"precision": "fp32", "merged": True}),
    "lokr": (
        "small",
        Adapter("lokr", 24, {"target_modules": ["down_proj"]}),
        {"precision": "fp32", "merged": True},
    ),
    "int8": ("tiny", Adapter("lora", 11), {"precision": "int8"}),
    "int4": ("tiny", Adapter("lora", 11), {"precision": "int4"}),
    "w8a8": ("small", Adapter("lora", 25, _SOME), {"precision": "w8a8"}),
    "half": ("tiny", Adapter("lora", 11), {"target": ["dml", "portable"], "precision": ["portable=fp16"]}),
    "forms": (
        "tiny",
        Adapter("lora", 11),
        {"target": ["cpu", "cuda"], "precision": ["cpu=fp32", "cuda=bf16"], "cache": "int8"},
    ),
}

_NAMES = {"merged": "dora", "short": "other"}  # of experts that are not called as their package


def make(folder: Path) -> None:
    """Write every package, the base beside the thin ones, an adapter as PEFT saves it, what is refused, and `MADE`.

    Args:
        folder: an existing folder; files of the same names are replaced.
    """
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        for name, base in BASES.items():
            save_base(work / "bases" / name, base)
        _make_thin(folder, work)
        for name, (base, adapter, options) in _WHOLE.items():
            source = _source(work / "whole" / name, base, adapter, _NAMES.get(name, name), {})
            report = export(work / "bases" / base, [source], work / "out" / name, verify=False, **options)
            _pack_again(work / "out" / name / report.packages[0].file, folder / f"{name}.expert")
    _write_bad(folder)
    (folder / MADE).write_text(json.dumps(described(), indent=2) + "\n", encoding="utf-8", newline="\n")


def described() -> dict[str, str]:
    """What the bytes of packages that are made here depend on, besides the code."""
    lines = (HERE.parents[1] / "export" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = [line.partition("==")[0] for line in lines if "==" in line]
    names.remove("ray")  # the extra of a cluster, which makes no packages
    return {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
        **{name: importlib.metadata.version(name) for name in names},
    }


def _make_thin(folder: Path, work: Path) -> None:
    sources = [
        _source(work / "thin" / name, "tiny", adapter, name, sections)
        for name, (adapter, sections) in _THIN.items()
    ]
    (work / "thin" / "grammar" / "grammar.gbnf").write_bytes(_GRAMMAR.encode())
    out = work / "out" / "thin"
    report = export(work / "bases" / "tiny", sources, out, precision="fp32", thin=True, verify=False)
    shutil.rmtree(folder / "base", ignore_errors=True)
    shutil.copytree(out / "base", folder / "base", copy_function=shutil.copyfile)
    for name, package in zip(_THIN, report.packages, strict=True):
        _pack_again(out / package.file, folder / f"{name}.expert")
    _sign(folder / "sql.expert", work / "signed")
    _write_reference(folder / "reference.expert", work / "thin" / "dora", report.source_sha256)
    _write_peft(folder / "peft", work / "thin" / "dora")


def _source(folder: Path, base: str, adapter: Adapter, name: str, sections: Mapping[str, Any]) -> Path:
    manifest = {
        "name": f"expert-{name}",
        "version": "1.0.0",
        "schema_version": "2.0",
        **sections,
        "base_models": [{"name": base, "adapters": [{"type": adapter.kind}]}],
    }
    return save_adapter(folder, BASES[base], adapter, manifest)


def _pack_again(package: Path, target: Path) -> None:
    """The same members, compressed as well as it goes."""
    write(target, [*members(package).items()], compresslevel=9)


def _sign(package: Path, scratch: Path) -> None:
    """Sign as `hivellm-ort sign` does, at a time that is always the same."""
    contents = extract(package, scratch)
    manifest = json.loads((scratch / "manifest.json").read_bytes())
    others = [member for member in contents.members if member.name != "manifest.json"]
    text = signed_manifest(manifest, others, SEED, publisher="Tests", created_at=TIME)
    write(
        package,
        [("manifest.json", text), *((member.name, scratch / member.name) for member in others)],
        compresslevel=9,
    )


def _write_reference(package: Path, source: Path, base_sha256: str) -> None:
    """An adapter as PEFT saved it, packed and signed as the reference tool does; nothing is prepared."""
    manifest = json.loads((source / "manifest.json").read_bytes())
    manifest |= {"name": "expert-reference", "integrity": None}
    manifest["base_models"][0]["sha256"] = base_sha256  # by which the base beside it is found
    names = ("adapter_config.json", "adapter_model.safetensors")
    files = reference_signed({name: (source / name).read_bytes() for name in names}, manifest)
    write(package, sorted(files.items()), compresslevel=9)


def _write_peft(folder: Path, source: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(source / name, folder / name)


def _write_bad(folder: Path) -> None:
    """Packages that are refused, in `bad`: each is a good one with one fault."""
    bad = folder / "bad"
    bad.mkdir(exist_ok=True)
    signed = members(folder / "sql.expert")
    signed["adapter_config.json"] += b"\n"
    write(bad / "tampered.expert", [*signed.items()], compresslevel=9)
    small = members(folder / "ia3.expert")
    write(
        bad / "bare.expert", [pair for pair in small.items() if pair[0] != "manifest.json"], compresslevel=9
    )
    packed = (folder / "ia3.expert").read_bytes()
    (bad / "truncated.expert").write_bytes(packed[: len(packed) // 2])
    manifest = json.loads(small["manifest.json"])
    manifest["base_models"][0]["name"] = "elsewhere"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "adapter.safetensors"
        path.write_bytes(small["onnx/adapter.safetensors"])
        adapter = PreparedAdapter.from_file(path)
        other = dataclasses.replace(adapter, source_sha256="0" * 64, base_sha256="1" * 64)
        small |= {
            "manifest.json": json.dumps(manifest).encode(),
            "onnx/adapter.safetensors": other.to_bytes(),
        }
    write(bad / "alone.expert", [*small.items()], compresslevel=9)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in {"manifest.json": small["manifest.json"], "../escaped.txt": b"x"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (bad / "escaping.expert").write_bytes(gzip.compress(buffer.getvalue(), 9, mtime=0))


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
