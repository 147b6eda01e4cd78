"""Write a base bundle: graphs, weights, tokenizer and `decoder.json` in one folder."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hivellm_export.base_model import BaseModel
from hivellm_export.graph.lower import lower
from hivellm_export.graph.rules import check_bundle
from hivellm_export.targets import Precision, Target
from hivellm_export.weights.calibration import activation_ranges, cache_scales
from hivellm_export.weights.writer import WeightWriter
from hivellm_ort.adapters.tensors import EMBEDDINGS, table_digest
from hivellm_ort.contract import (
    ADAPTER_GRAPH,
    BASE_GRAPH,
    DECODER_JSON,
    DecoderConfig,
    FileRecord,
    GraphConfig,
    Site,
)
from hivellm_ort.package.archive import sha256_file
from hivellm_ort.progress import progress_bar
from hivellm_ort.text.template import ChatTemplate, end_of_turn_ids
from hivellm_ort.text.tokenizer import TextTokenizer

__all__ = ["write_bundle"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def write_bundle(
    base: BaseModel,
    folder: Path,
    *,
    trace: ir.Model,
    sites: Sequence[Site],
    precision: Precision,
    target: Target,
    form: GraphConfig,
    merged: str | None = None,
) -> DecoderConfig:
    """Write the bundle of `base` into the empty `folder`.

    Args:
        base: The model.
        folder: An empty folder.
        trace: From `trace_decoder(base.model)`, and `split_qkv` for targets that need it.
        sites: From `sites_of(trace, …)`.
        precision: Precision of the weights.
        target: Target of the graphs.
        form: From `graph_form`.
        merged: Digest of the adapter that was merged; None for a base that takes adapters.

    Returns:
        The bundle's `decoder.json`.

    Raises:
        ExportError: The target cannot express the model, or a graph breaks a rule of the target.
    """
    graphs = {BASE_GRAPH: False} if merged else {BASE_GRAPH: False, ADAPTER_GRAPH: True}
    config = DecoderConfig(
        name=base.name,
        architecture=base.architecture,
        precision=precision.name,
        target=target.name,
        sites=tuple(sites),
        source_sha256=base.source_sha256,
        merged=merged,
        graph=form,
    )
    scales = cache_scales(base) if form.cache_dtype == "int8" else {}
    count = sum(parameter.numel() for parameter in base.model.parameters())
    with progress_bar(f"weights {precision.name}", count, unit="w") as progress:
        weights = WeightWriter(
            folder,
            _counted(base.tensor, progress),
            precision=precision,
            tied=base.tied,
            ranges=activation_ranges(base) if precision.activation_bits else None,
        )
        try:
            models = {
                name: lower(
                    trace,
                    weights,
                    config,
                    adapters=adapters,
                    rotary=base.rotary(),
                    cache_scales=scales,
                    name=name,
                )
                for name, adapters in graphs.items()
            }
            stored = {} if merged else {site.name: weights.stored(site) for site in sites}
        finally:
            weights.close()
    for name, model in models.items():
        ir.save(model, folder / name)
    _write_tokenizer(base, folder)
    # Before contract 1.3 `weights` was always float32. An older runtime must not find other types there.
    float32 = precision.dtype == "float32"
    files = {
        path.name: FileRecord(path.stat().st_size, sha256_file(path)) for path in sorted(folder.iterdir())
    }
    config = dataclasses.replace(
        config,
        sites=() if merged else config.sites,
        files=files,
        embeddings={} if merged else {name: table_digest(base.tensor(name)) for name in EMBEDDINGS},
        weights=stored if float32 else config.weights,
        half_weights=config.half_weights if float32 else stored,
    )
    (folder / DECODER_JSON).write_bytes(config.to_bytes())
    return check_bundle(folder)


def _counted(
    tensor: Callable[[str], NDArray[np.float32]], progress: Callable[[int], object]
) -> Callable[[str], NDArray[np.float32]]:
    def counted(name: str) -> NDArray[np.float32]:
        array = tensor(name)
        progress(array.size)
        return array

    return counted


def _write_tokenizer(base: BaseModel, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        # Several templates stay in tokenizer_config.json, where a runtime may choose one by name.
        several = isinstance(base.tokenizer.chat_template, dict)
        base.tokenizer.save_pretrained(temporary, save_jinja_files=not several)
        for name in _TOKENIZER_FILES:
            source = Path(temporary) / name
            if source.is_file():
                (folder / name).write_bytes(source.read_bytes())
    turn_ends = end_of_turn_ids(ChatTemplate.from_folder(folder), TextTokenizer.from_folder(folder))
    configs = (base.model.generation_config, base.model.config)
    eos = {id_ for config in configs for id_ in _ids(config.eos_token_id)} | set(turn_ends)
    document = {"eos_token_id": sorted(eos)}
    (folder / "generation_config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)
