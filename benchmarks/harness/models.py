"""The two models, and every form of them that a peer reads, made when they are missing.

`WORK/models/MODEL/hf` is the source of all: SmolLM2-135M-Instruct dequantised from the GGUF that the experts were
trained on, or the shape of Qwen3-0.6B with random weights. `merged-EXPERT` is SmolLM2 with an expert folded in, for
peers that have no adapters of that kind.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.environments import SetupError, run

__all__ = ["EXPERTS", "MODELS", "Model", "experts_of", "make_folder", "make_source"]

ROOT = Path(__file__).parents[2]
EXPERTS = ("sql", "elastic", "json")
_STAMP = "benchmark.json"


@dataclass(frozen=True)
class Model:
    """The numbers that say how much a token reads."""

    name: str
    title: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def layer_weights(self) -> int:
        """Weights of all projections of all layers."""
        attention = 2 * self.heads * self.head_dim + 2 * self.kv_heads * self.head_dim
        return self.layers * self.hidden * (attention + 3 * self.intermediate)

    @property
    def head_weights(self) -> int:
        """Weights of the LM head."""
        return self.hidden * self.vocab

    def cache_values(self, context: int) -> int:
        """Keys and values of so many tokens."""
        return 2 * self.layers * self.kv_heads * self.head_dim * context


MODELS = {
    model.name: model
    for model in (
        Model("smollm2", "SmolLM2-135M-Instruct", 576, 1536, 30, 9, 3, 64, 49152),
        Model("qwen3", "Qwen3-0.6B's shape, random weights", 1024, 3072, 28, 16, 8, 128, 151936),
    )
}


def experts_of(model: str) -> tuple[str, ...]:
    """The experts there are for a model."""
    return EXPERTS if model == "smollm2" else ()


def make_folder(
    work: Path, python: Path, peer: str, model: str, precision: str, *, only_ready: bool, merged: str = ""
) -> Path:
    """Make what a peer reads unless it is there, and return its folder.

    Args:
        work: the working folder.
        python: the interpreter of the peer's environment.
        peer: one of `PEERS`.
        model: one of `MODELS`.
        precision: as the peer names it.
        only_ready: make nothing but our own packages, which change with the exporter.
        merged: an expert to fold into the weights.

    Raises:
        SetupError: a step failed.
    """
    place = work / "models" / model
    if peer == "ours":
        return _made(
            place / "ours" / precision,
            _ours_key(precision),
            False,
            lambda folder: _export(work, model, precision, folder),
        )
    script = ROOT / "benchmarks" / "peers" / f"{peer.replace('-', '_')}_models.py"
    if not script.is_file():  # it reads the Hugging Face folder itself
        return make_source(work, model, merged, only_ready=only_ready)
    key = {"script": _digest(script), "precision": precision}
    name = f"{precision}-{merged}" if merged else precision
    spec = {"precision": precision, "vocab": MODELS[model].vocab}
    if peer == "onnx-genai":  # it reads what GenAI's builder wrote
        spec["genai"] = str(place / "genai" / name)

    def build(folder: Path) -> None:
        spec["hf"] = str(make_source(work, model, merged, only_ready=only_ready))
        spec["gguf"] = str(_gguf())
        run(
            f"{peer}: {model} {name}", [str(python), str(script), json.dumps({**spec, "output": str(folder)})]
        )

    return _made(place / peer / name, key, only_ready, build)


def make_source(work: Path, model: str, merged: str = "", *, only_ready: bool) -> Path:
    """Make the Hugging Face folder in float32 unless it is there, and return it.

    Raises:
        SetupError: a step failed.
    """
    place = work / "models" / model
    folder = place / (f"merged-{merged}" if merged else "hf")

    def build(target: Path) -> None:
        script = ROOT / "benchmarks" / "peers" / "source_models.py"
        spec = {"model": asdict(MODELS[model]), "gguf": str(_gguf()), "output": str(target)}
        if merged:
            spec["merged"] = str(ROOT / "models" / f"expert-{merged}")
        run(f"{model} {merged}".rstrip() + ": source", [sys.executable, str(script), json.dumps(spec)])

    return _made(folder, {"version": 1}, only_ready, build)


def _made(folder: Path, key: dict[str, Any], only_ready: bool, build: Callable[[Path], None]) -> Path:
    """`folder` as `build` made it with the same `key`."""
    stamp = folder / _STAMP
    if stamp.is_file() and json.loads(stamp.read_text()) == key:
        return folder
    if only_ready:
        raise SetupError(f"{folder.parent.name} {folder.name} is not set up: run without --quick once")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    build(partial)
    (partial / _STAMP).write_text(json.dumps(key))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _ours_key(precision: str) -> dict[str, Any]:
    files = sorted((ROOT / "export" / "hivellm_export").rglob("*.py"))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return {"exporter": code, "precision": precision}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _export(work: Path, model: str, precision: str, folder: Path) -> None:
    base = _gguf() if model == "smollm2" else make_source(work, model, only_ready=False)
    weights, _, cache = precision.partition("+")
    command = [sys.executable, "-m", "hivellm_ort", "export", "--base", str(base), "--precision", weights]
    command += ["--output", str(folder), "--force", *(["--cache", "int8"] if cache else [])]
    if experts_of(model):
        command.append("--thin")
    for expert in experts_of(model):
        command += ["--expert", str(ROOT / "models" / f"expert-{expert}")]
    run(f"ours: {model} {precision}", command)


def _gguf() -> Path:
    from hivellm_export.fetch import fetch_base
    from hivellm_ort.package.store import Store

    return fetch_base(Store().root / "downloads")
