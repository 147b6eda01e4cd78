"""Small archives and packages for the tests of this folder, good and hostile."""

from __future__ import annotations

import copy
import gzip
import hashlib
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

from hivellm_ort.contract import Architecture, DecoderConfig
from hivellm_ort.package.archive import write
from hivellm_ort.package.store import Store

HIVELLM = Path(__file__).parents[2].parent / "shared" / "hivellm"
"""Published packages and manifests; not part of the repository."""

MANIFEST = {
    "name": "expert-demo",
    "version": "0.1.0",
    "schema_version": "2.0",
    "base_models": [{"name": "Qwen3-0.6B", "adapters": [{"type": "dora", "r": 16, "alpha": 32}]}],
}


def entry(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """One tar member; `fields` set attributes of its TarInfo."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """The bytes of a tar with these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8") as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def raw_header(name: bytes, size: int = 0, kind: bytes = b"0") -> bytes:
    """A 512-byte header block with any bytes as name, any type, and even a negative size."""
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    block[0:100] = name.ljust(100, b"\0")
    block[124:136] = b"%011o\0" % size if size >= 0 else b"\xff" + size.to_bytes(11, "big", signed=True)
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    """Data filled up to whole blocks."""
    return data + b"\0" * (-len(data) % 512)


def pax(*records: tuple[str, bytes], kind: bytes = b"x") -> bytes:
    """A pax header of these records."""
    data = b""
    for key, value in records:
        body = b" " + key.encode() + b"=" + value + b"\n"
        length = len(body)
        while len(str(length)) + len(body) != length:
            length = len(str(length)) + len(body)
        data += str(length).encode() + body
    return raw_header(b"pax", len(data), kind) + padded(data)


END = b"\0" * 1024


def save(path: Path, tar_bytes: bytes) -> Path:
    """Compress tar bytes into a file."""
    path.write_bytes(gzip.compress(tar_bytes, mtime=0))
    return path


def bundle(weights: bytes = b"weights") -> dict[str, bytes]:
    """The files of a tiny base bundle, with the decoder.json that lists them."""
    files = {"decoder.onnx": b"graph", "weights.bin": weights, "tokenizer.json": b"{}"}
    listed = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    }
    return {"decoder.json": decoder_json(listed), **files}


def decoder_json(listed: object, **fields: Any) -> bytes:
    """The decoder.json of a tiny base with an adapter merged in that lists these files, with other fields changed."""
    numbers = Architecture("llama", 8, 16, 1, 2, 1, 4, 32, 64)
    config = DecoderConfig("tiny", numbers, "fp32", "cpu", (), source_sha256="0" * 64, merged="1" * 64)
    return json.dumps({**json.loads(config.to_bytes()), "files": listed, **fields}).encode()


def expert(
    path: Path,
    *,
    manifest: dict[str, Any] | None = None,
    adapter: bytes | None = b"adapter",
    base: dict[str, bytes] | None = None,
) -> Path:
    """Write a whole package."""
    members: list[tuple[str, Path | bytes]] = [("manifest.json", json.dumps(manifest or MANIFEST).encode())]
    if adapter is not None:
        members.append(("onnx/adapter.safetensors", adapter))
    members += [(f"onnx/{name}", data) for name, data in (base or {}).items()]
    write(path, members)
    return path


APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(100)


def apple_double(package: Path, output: Path) -> Path:
    """Pack a package again as macOS does, with a file `._NAME` before each member NAME."""
    with tarfile.open(package) as archive:
        members = [(info.name, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
    entries = [
        pair
        for name, data in members
        for folder, _, last in [name.rpartition("/")]
        for pair in (entry(f"{folder}/._{last}" if folder else f"._{last}", APPLE_DOUBLE), entry(name, data))
    ]
    return save(output, tar(*entries))


GOOD = entry("manifest.json", b"{}")


NOISE = random.Random(7).randbytes(3000)


def files_under(folder: Path) -> dict[str, bytes]:
    """The files of a folder by relative name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


SECOND_SCHEMA: dict[str, Any] = {
    "name": "expert-demo",
    "version": "0.3.0",
    "schema_version": "2.0",
    "base_models": [
        {
            "name": "F:/models\\Qwen3-0.6B",
            "prompt_template": "qwen3",
            "adapters": [{"type": "DoRA", "r": 12, "alpha": 24, "target_modules": ["q_proj"]}],
        }
    ],
    "capabilities": ["database:sql"],
    "training": {"decoding": {"temperature": 0.7, "top_k": 20, "stop_sequences": [";"]}},
}


FIRST_SCHEMA: dict[str, Any] = {
    "name": "demo",
    "version": "1.0.0",
    "schema_version": "1.0",
    "base_model": {"name": "Qwen3-0.6B"},
    "adapters": [{"type": "lora"}],
}


COMPLETE: dict[str, Any] = {
    "name": "expert-demo",
    "version": "0.3.0",
    "schema_version": "2.0",
    "description": "Answers questions about demos.",
    "author": "A Publisher",
    "homepage": "https://example.org/expert-demo",
    "repository": {"type": "git", "url": "https://example.org/expert-demo.git"},
    "license": "Apache-2.0",
    "tags": ["demo"],
    "capabilities": ["database:sql", "language:en"],
    "limitations": ["slow", {"pattern": "joins", "description": "Joins are weak."}],
    "base_models": [
        {
            "name": "Qwen/Qwen3-0.6B",
            "sha256": "",
            "quantization": "int4",
            "rope_scaling": {"type": "yarn", "factor": 8.0},
            "prompt_template": "qwen3",
            "adapters": [
                {
                    "type": "dora",
                    "target_modules": ["q_proj", "v_proj"],
                    "r": 12,
                    "alpha": 24,
                    "dropout": 0.1,
                    "size_bytes": 4096,
                    "sha256": "0123456789abcdef" * 4,
                    "_comment": ["any", {"type": None}],
                }
            ],
        }
    ],
    "routing": {
        "keywords": ["sql", "group by"],
        "exclude_keywords": ["explain"],
        "router_hint": "database=sql OR task=text2sql",
        "priority": 0.85,
        "_comment": 1,
    },
    "constraints": {
        "requires": ["expert-base@0.1.0"],
        "incompatible_with": ["expert-other"],
        "load_order": 6,
        "max_chain": 10,
    },
    "perf": {"latency_ms_overhead": 2.5, "vram_mb_overhead": 18, "supported_batch_sizes": [1, 2]},
    "training": {
        "dataset": {"path": "train.jsonl"},
        "config": {"method": "sft"},
        "decoding": {
            "temperature": 0.7,
            "top_p": 0.8,
            "top_k": 20,
            "min_p": 0,
            "max_new_tokens": 256,
            "repetition_penalty": 1.1,
            "stop_sequences": [";", "\n\n"],
            "use_grammar": True,
            "grammar_type": "sql-postgres",
            "grammar_file": "grammar.gbnf",
            "validation": "parser-strict",
        },
    },
    "integrity": {
        "scheme": "hivellm-ort/1",
        "created_at": "2026-01-31T12:00:00Z",
        "publisher": "A Publisher",
        "pubkey": "ed25519:" + "ab" * 32,
        "signature_algorithm": "ed25519",
        "files": {"adapter_model.safetensors": "cd" * 32},
        "signature": "ef" * 64,
    },
}
"""A manifest with every section, good in strict mode."""


def changed(pointer: str, value: object, start: dict[str, Any] = SECOND_SCHEMA) -> dict[str, Any]:
    """A copy of a manifest with one value set."""
    whole = copy.deepcopy(start)
    at: Any = whole
    *parents, last = pointer.strip("/").split("/")
    for part in parents:
        at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
    at[int(last) if isinstance(at, list) else last] = value
    return whole


BASE = bundle()


BASE_DIGEST = hashlib.sha256(BASE["decoder.json"]).hexdigest()


def no_work_left(store: Store) -> bool:
    """Whether the store has no work in progress."""
    return not list((store.root / "tmp").iterdir())
