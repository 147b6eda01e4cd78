"""Keys and values in 8 bits: what the graphs compute, against transformers and PEFT on a cache that rounds alike."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import peft
import pytest
import torch
from click.testing import CliRunner
from support import tiny
from support.exporting import WEIGHTS, Refusal, edit_tensors
from support.rows import begun
from transformers import DynamicCache

from hivellm_export.graph.rules import check_graph
from hivellm_export.pipeline import export
from hivellm_ort import Expert, ExportError
from hivellm_ort.cli.main import main
from hivellm_ort.contract import ADAPTER_GRAPH, BASE_GRAPH, DECODER_JSON, DecoderConfig, past_names
from hivellm_ort.engine.session import Engine

PROMPT, FORCED, STEPS = 150, 5, 8


class RoundingCache(DynamicCache):
    """Keys and values as the graph keeps them, by the scales that it has."""

    def __init__(self, graph: ir.Graph, heads: int):
        super().__init__()
        self.cut = 0
        self._scales: list[list[torch.Tensor]] = []
        layer = 0
        while f"{past_names(layer)[0]}.scale" in graph.initializers:
            values = [graph.initializers[f"{name}.scale"].const_value for name in past_names(layer)]
            self._scales.append(
                [
                    torch.tensor(value.numpy()).reshape(1, heads, 1, -1)
                    for value in values
                    if value is not None
                ]
            )
            layer += 1

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *rest: Any) -> Any:
        """Round, cut off, and count what was."""
        rounded = []
        for states, scale in zip((key_states, value_states), self._scales[layer_idx], strict=True):
            values = torch.round(states / scale)
            self.cut += int((values.abs() > 128).sum())
            rounded.append(values.clamp(-128, 127) * scale)
        return super().update(*rounded, layer_idx, *rest)


def token_ids() -> list[int]:
    """A prompt, a few forced tokens, and single ones."""
    return [int(token) for token in np.random.default_rng(5).integers(3, 280, PROMPT + FORCED + STEPS)]


def reference(model: torch.nn.Module, cache: DynamicCache | None) -> np.ndarray:
    """Logits of every position from one pass."""
    options = {} if cache is None else {"past_key_values": cache, "use_cache": True}
    with torch.no_grad():
        return model(torch.tensor([token_ids()]), **options).logits[0].numpy()


def computed(engine: Engine, adapter: Any) -> tuple[list[int], np.ndarray]:
    """Positions and logits of the runtime: products for the prompt, then the operator for several and for one."""
    ids = token_ids()
    row = begun(engine, adapter, len(ids))
    cuts = [0, PROMPT, PROMPT + FORCED, *range(PROMPT + FORCED + 1, len(ids) + 1)]
    logits = [row.forward(ids[a:b]).copy() for a, b in itertools.pairwise(cuts)]
    return [end - 1 for end in cuts[1:]], np.stack(logits)


def assert_same(expected: np.ndarray, actual: np.ndarray, exact: np.ndarray) -> None:
    """Logits agree, but for values between two of 8 bits that fall the other way; rounding itself is far more."""
    assert 4 * np.abs(expected - actual).mean() < np.abs(exact - actual).mean()


def graph_of(folder: Path, name: str) -> ir.Graph:
    """A graph of a bundle."""
    return ir.load(folder / name).graph


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_base(architecture: str, tmp_path: Path) -> None:
    """Packed and separate projections, norms of queries and keys, a window: as transformers on a rounding cache."""
    folder = tiny.save_model(tmp_path / "model", architecture, max_position_embeddings=256)
    export(folder, [], tmp_path / "out", precision="fp32", cache="int8")
    model = tiny.load_model(folder)
    cache = RoundingCache(graph_of(tmp_path / "out", BASE_GRAPH), 2)
    rounded, exact = reference(model, cache), reference(model, None)
    positions, actual = computed(Engine(tmp_path / "out", threads=1), None)
    assert_same(rounded[positions], actual, exact[positions])
    assert np.abs(exact[positions] - actual).max() < 0.5
    assert cache.cut <= 2  # of 20,000 and more


def test_adapter_beyond_the_scales(tmp_path: Path) -> None:
    """Keys of an adapter as large as the model are cut off, at the same numbers in a prompt and in steps."""
    model = tiny.save_model(tmp_path / "model", "llama", max_position_embeddings=256)
    adapter = tiny.with_manifest(tiny.save_adapter(tmp_path / "expert", model, tiny.adapter_config("dora")))
    edit_tensors(adapter / WEIGHTS, lambda tensors: [tensor.__imul__(2) for tensor in tensors.values()])
    report = export(model, [adapter], tmp_path / "out", precision="fp32", cache="int8", thin=True)
    cache = RoundingCache(graph_of(tmp_path / "out" / "base", ADAPTER_GRAPH), 2)
    tuned = peft.PeftModel.from_pretrained(tiny.load_model(model), adapter).eval()
    expected, exact = reference(tuned, cache), reference(tuned, None)
    package = tmp_path / "out" / report.packages[0].file
    with Expert.load(package, base=tmp_path / "out" / "base", cache_dir=tmp_path / "cache") as expert:
        positions, actual = computed(expert._base.engine, expert.adapter)
    assert_same(expected[positions], actual, exact[positions])
    assert cache.cut > 100


def test_only_the_cpu(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Of several targets only `cpu` keeps keys and values in 8 bits; weights and adapters stay as they are."""
    model = model_folder("llama")
    forms: dict[str, Mapping[str, Any]] = {}
    for name, cache in (("plain", None), ("cached", "int8")):
        export(model, [], tmp_path / name, target=["cpu", "portable"], precision=["cpu=int8"], cache=cache)
        configs = {
            target: DecoderConfig.from_file(tmp_path / name / target / DECODER_JSON)
            for target in ("cpu", "portable")
        }
        forms[name] = {target: config.graph.cache_dtype for target, config in configs.items()}
    assert {"cpu": "float32", "portable": "float32"} == forms["plain"]
    assert {"cpu": "int8", "portable": "float32"} == forms["cached"]
    weights = [(tmp_path / name / "cpu" / "weights.bin").read_bytes() for name in forms]
    assert weights[0] == weights[1]


def test_refused_without_cpu(model_folder: Callable[[str], Path], refused: Refusal) -> None:
    """Other targets have no such attention; the message names the option, the targets and the way out."""
    options = ("--target", "portable", "--cache", "int8")
    kind, message = refused(model_folder("llama"), options=options)
    assert "ExportError" == kind
    assert message.startswith("--cache int8 is for target cpu, and this export is for portable: leave it out")


def test_branches_are_checked(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """An operator within a branch that the target has not is found, and so is a branch where the cache is float."""
    export(model_folder("llama"), [], tmp_path, precision="fp32", cache="int8", force=True)
    config = DecoderConfig.from_file(tmp_path / DECODER_JSON)
    model = ir.load(tmp_path / BASE_GRAPH)
    check_graph(model, config, adapters=False)
    plain = dataclasses.replace(config, graph=dataclasses.replace(config.graph, cache_dtype="float32"))
    with pytest.raises(ExportError, match="rule operator: the target has no "):
        check_graph(model, plain, adapters=False)
    inner = next(node for node in model.graph.all_nodes() if node.op_type == "Softmax")
    inner.op_type = "Hardmax"
    with pytest.raises(
        ExportError, match=r"prompt\.Softmax.*rule operator: the target has no ai.onnx::Hardmax"
    ):
        check_graph(model, config, adapters=False)


def test_it_is_told(tmp_path: Path) -> None:
    """The export's report and `inspect` name what a base keeps keys and values in."""
    model = tiny.save_model(tmp_path / "model", "llama")
    adapter = tiny.with_manifest(tiny.save_adapter(tmp_path / "expert", model, tiny.adapter_config("lora")))
    command = ["export", "--base", str(model), "--expert", str(adapter), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*command, "--precision", "w8a8", "--cache", "int8"])
    assert 0 == result.exit_code, result.output
    assert f"base      {model.name} w8a8 cpu with keys and values in int8  " in result.stdout
    (package,) = (tmp_path / "out").glob("*.expert")
    inspected = CliRunner().invoke(main, ["inspect", str(package)])
    assert "model w8a8 for cpu, context 128, keys and values in int8\n" in inspected.stdout
