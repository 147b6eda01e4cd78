"""What an export writes: the same bytes each time, files that share weights, graphs of known operators."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from parity import PROMPT, base_logits, engine_of
from support import tiny
from support.exporting import contents, copied
from support.rows import begun

from hivellm_export.pipeline import export
from hivellm_ort import BaseMismatchError, Expert, LoadError
from hivellm_ort.contract import (
    ADAPTER_GRAPH,
    BASE_GRAPH,
    DECODER_JSON,
    WEIGHTS_FILE,
    DecoderConfig,
    FileRecord,
)
from hivellm_ort.engine.session import Engine

ModelFolder = Callable[[str], Path]
ExpertFolder = Callable[..., Path]
BundleFolder = Callable[..., Path]

PRECISIONS = ("fp32", "int8", "w8a8", "int4")
BUNDLE_FILES = (
    "chat_template.jinja",
    "decoder.adapters.onnx",
    "decoder.json",
    "decoder.onnx",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "weights.bin",
)
# Operators of the graphs; another one means that tracing or lowering changed.
COMMON = {
    "Add", "Concat", "Constant", "Gather", "GatherBlockQuantized", "Gemm", "GroupQueryAttention", "MatMul",
    "MatMulNBits", "Mul", "Reshape", "Shape", "Sigmoid", "SimplifiedLayerNormalization",
    "SkipSimplifiedLayerNormalization", "Split",
}  # fmt: skip
DYNAMIC = {"Abs", "Div", "MatMulIntegerToFloat", "QuantizeLinear", "ReduceMax"}


@pytest.mark.parametrize(
    ("precision", "options"),
    [("int8", ()), ("int4", ("--thin",)), ("fp32", ("--merge",))],
    ids=["full", "thin", "merged"],
)
def test_same_bytes_in_another_process(
    precision: str,
    options: tuple[str, ...],
    model_folder: ModelFolder,
    expert_folder: ExpertFolder,
    tmp_path: Path,
) -> None:
    """An export repeated in a process with another hash seed writes the same files."""
    expert = expert_folder("dora")
    merged, thin = "--merge" in options, "--thin" in options
    export(model_folder("llama"), [expert], tmp_path / "one", precision=precision, merged=merged, thin=thin)
    command = [sys.executable, "-c", "from hivellm_ort.cli.main import main; main()", "export"]
    command += ["--base", str(model_folder("llama")), "--expert", str(expert), "--precision", precision]
    command += ["--output", str(tmp_path / "two"), *options]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert sorted(one) == sorted(two)
    assert [] == [name for name in one if one[name] != two[name]]


@pytest.mark.parametrize("thin", [False, True])
def test_members_of_a_package(
    thin: bool, model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path
) -> None:
    """Manifest first, then the expert's own files, then onnx/ with decoder.json before what it lists."""
    expert = copied(expert_folder(), tmp_path / "expert")
    for name in ("README.md", "LICENSE", "grammar.gbnf", "training_args.bin", "trainer_state.json"):
        (expert / name).write_text(name)
    report = export(model_folder("llama"), [expert], tmp_path / "out", precision="fp32", thin=thin)
    with tarfile.open(tmp_path / "out" / report.packages[0].file) as package:
        names = package.getnames()
    own = ["manifest.json", "adapter_config.json", "adapter_model.safetensors", "grammar.gbnf", "README.md"]
    own += ["LICENSE", "onnx/adapter.safetensors"]
    base = [f"onnx/{name}" for name in sorted(BUNDLE_FILES, key=lambda name: (name != DECODER_JSON, name))]
    assert own + ([] if thin else base) == names
    assert (
        ["base", report.packages[0].file]
        if thin
        else [report.packages[0].file] == sorted(path.name for path in (tmp_path / "out").iterdir())
    )
    if thin:
        assert list(BUNDLE_FILES) == sorted(path.name for path in (tmp_path / "out" / "base").iterdir())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_decoder_json_lists_every_other_file(precision: str, bundle: BundleFolder) -> None:
    """Sizes and digests are those of the files, and no file is left out."""
    folder = bundle("qwen2", precision)
    expected = {
        path.name: FileRecord(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.iterdir()
        if path.name != DECODER_JSON
    }
    config = DecoderConfig.from_file(folder / DECODER_JSON)
    assert expected == config.files
    assert sorted(BUNDLE_FILES) == sorted([*config.files, DECODER_JSON])


def externals(path: Path) -> dict[str, ir.ExternalTensor]:
    """The initializers of a graph that lie in a file beside it."""
    values = ir.load(path).graph.initializers.values()
    return {
        str(value.name): value.const_value
        for value in values
        if isinstance(value.const_value, ir.ExternalTensor)
    }


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("qwen2", False)])
def test_embedding_and_head_share_bytes_where_tied(
    architecture: str, tied: bool, precision: str, bundle: BundleFolder
) -> None:
    """A tied table is in weights.bin once; an untied head has a place of its own."""
    graph = ir.load(bundle(architecture, precision) / BASE_GRAPH).graph
    gather = next(node for node in graph if node.op_type in ("Gather", "GatherBlockQuantized"))
    head = next(node for node in graph if node.outputs[0].name == "logits")
    places = [value.const_value.offset for value in (gather.inputs[0], head.inputs[1])]
    lengths = [value.const_value.length for value in (gather.inputs[0], head.inputs[1])]
    assert lengths[0] == lengths[1]
    assert tied == (places[0] == places[1])
    if precision != "fp32":
        scales = [value.const_value.offset for value in (gather.inputs[2], head.inputs[2])]
        assert tied == (scales[0] == scales[1])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_both_graphs_take_the_same_weights(architecture: str, precision: str, bundle: BundleFolder) -> None:
    """All weights lie in weights.bin, page-aligned, apart from each other, and the same for both graphs."""
    folder = bundle(architecture, precision)
    base, adapted = externals(folder / BASE_GRAPH), externals(folder / ADAPTER_GRAPH)
    places = [
        {name: (tensor.location, tensor.offset, tensor.length) for name, tensor in graph.items()}
        for graph in (base, adapted)
    ]
    assert places[0] == places[1]
    assert {WEIGHTS_FILE} == {location for location, _, _ in places[0].values()}
    spans = sorted({(offset, offset + length) for _, offset, length in places[0].values()})
    assert all(offset % 4096 == 0 for offset, _ in spans)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert (folder / WEIGHTS_FILE).stat().st_size == spans[-1][1]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_operators_and_inputs(architecture: str, precision: str, bundle: BundleFolder) -> None:
    """Only known operators; adapter inputs in one graph only, and exactly those that decoder.json promises."""
    folder = bundle(architecture, precision)
    config = DecoderConfig.from_file(folder / DECODER_JSON)
    base, adapted = (ir.load(folder / name).graph for name in (BASE_GRAPH, ADAPTER_GRAPH))
    for graph in (base, adapted):
        assert (DYNAMIC if precision == "w8a8" else set()) == {node.op_type for node in graph} - COMMON
        assert {"", "com.microsoft"} == {node.domain for node in graph}
        assert config.architecture.num_hidden_layers == sum(
            node.op_type == "GroupQueryAttention" for node in graph
        )
    inputs = [str(value.name) for value in base.inputs]
    extra = [str(value.name) for value in adapted.inputs if value.name not in inputs]
    assert [] == [name for name in inputs if "lora" in name or name.endswith((".scale", ".bias"))]
    promised = set()
    for site in config.sites:
        promised |= {site.lora_A, site.lora_B, site.gate, site.scale}
        promised |= {site.bias_input} if site.bias else set()
    assert promised == set(extra)
    assert len(promised) == len(extra)
    assert [value.name for value in base.outputs] == [value.name for value in adapted.outputs]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_shapes_of_what_broadcasts(precision: str, bundle: BundleFolder) -> None:
    """Every product with a vector per adapter has its shape in the graph: inferring hundreds takes seconds."""
    graph = ir.load(bundle("qwen2", precision) / ADAPTER_GRAPH).graph
    products = [
        node
        for node in graph
        if node.op_type == "Mul" and any(value.is_graph_input() for value in node.inputs)
    ]
    assert len(products) > 10
    for node in products:
        shape = node.outputs[0].shape
        assert shape is not None, node.name
        assert "tokens" == shape[0].value


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_quantised_operators(architecture: str, precision: str, bits: int, bundle: BundleFolder) -> None:
    """Every projection has the precision's bits, the head and the embedding 8, all of them int8 activations."""
    folder = bundle(architecture, precision)
    sites = DecoderConfig.from_file(folder / DECODER_JSON).sites
    for name in (BASE_GRAPH, ADAPTER_GRAPH):
        nodes = list(ir.load(folder / name).graph)
        quantised = [node for node in nodes if node.op_type == "MatMulNBits"]
        assert len(sites) + 1 == len(quantised)
        for node in quantised:
            head = node.outputs[0].name == "logits"
            assert (8 if head else bits) == node.attributes["bits"].as_int()
            assert 4 == node.attributes["accuracy_level"].as_int()
            # 4 bits want small blocks; 8 bits the largest that K is a multiple of.
            largest = math.gcd(128, node.attributes["K"].as_int()) if head or bits == 8 else 32
            assert largest == node.attributes["block_size"].as_int()
        (table,) = [node for node in nodes if node.op_type == "GatherBlockQuantized"]
        assert 8 == table.attributes["bits"].as_int()
        plain = [node for node in nodes if node.op_type in ("MatMul", "Gemm")]
        assert [] == [node.name for node in plain if any(value.is_initializer() for value in node.inputs)]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_products_of_eight_bits(architecture: str, bundle: BundleFolder) -> None:
    """With w8a8 every projection multiplies integers; head and embedding are blocks of 8 bits as in int8."""
    folder = bundle(architecture, "w8a8")
    config = DecoderConfig.from_file(folder / DECODER_JSON)
    for name in (BASE_GRAPH, ADAPTER_GRAPH):
        nodes = list(ir.load(folder / name).graph)
        products = [node for node in nodes if node.op_type == "MatMulIntegerToFloat"]
        assert len(config.sites) == len(products)
        # Attention's and the feed-forward's two inputs: gate and up share theirs.
        inputs = [node for node in nodes if node.op_type == "QuantizeLinear"]
        assert 4 * config.architecture.num_hidden_layers == len(inputs)
        (head,) = [node for node in nodes if node.op_type == "MatMulNBits"]
        assert "logits" == head.outputs[0].name
        for node in products:
            _, weight, _, _, zero_point = node.inputs
            assert [ir.DataType.INT8, ir.DataType.UINT8] == [weight.dtype, zero_point.dtype]
    assert {0} == {place.block for place in config.weights.values()}
    assert all(place.smoothing is not None for place in config.weights.values())


def last_logits(folder: Path, token_ids: list[int] = PROMPT) -> np.ndarray:
    """Logits after the last token from the graph without adapters."""
    return begun(Engine(folder, threads=1), None, 64).forward(token_ids).copy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of the angle between two vectors."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize(
    ("precision", "least"), [("fp32", 1 - 1e-6), ("int8", 0.995), ("w8a8", 0.99), ("int4", 0.9)]
)
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_precision(
    architecture: str, precision: str, least: float, model_folder: ModelFolder, bundle: BundleFolder
) -> None:
    """Quantised logits point where those of float32 do: a wrong layout would not."""
    expected = base_logits(model_folder(architecture))[-1]
    assert least < cosine(expected, last_logits(bundle(architecture, precision)))


@pytest.mark.parametrize(
    ("precision", "least"), [("fp32", 1 - 1e-6), ("int8", 0.995), ("w8a8", 0.99), ("int4", 0.9)]
)
def test_width_that_is_no_multiple_of_the_block(precision: str, least: float, tmp_path: Path) -> None:
    """The last block of a row is padded, and the padding adds nothing."""
    base = tiny.save_model(tmp_path / "model", "llama", intermediate_size=80)
    export(base, [], tmp_path / "bundle", precision=precision)
    assert least < cosine(base_logits(base)[-1], last_logits(tmp_path / "bundle"))


def test_thin_package(model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path) -> None:
    """A thin package runs with base=, or with any bundle of the same weights in the cache, but no other."""
    model, expert = model_folder("llama"), expert_folder()
    cache = tmp_path / "cache"
    thin = (
        tmp_path
        / "thin"
        / export(model, [expert], tmp_path / "thin", precision="fp32", thin=True).packages[0].file
    )
    thin = thin.rename(tmp_path / thin.name)  # away from its base
    with pytest.raises(LoadError, match="base="):
        Expert.load(thin, cache_dir=cache)
    with Expert.load(thin, base=tmp_path / "thin" / "base", cache_dir=cache, threads=1) as loaded:
        expected = loaded.generate("select", max_tokens=20).tokens
    other = tiny.save_model(tmp_path / "other", "llama", seed=5)
    export(other, [], tmp_path / "other-bundle", precision="fp32")
    with pytest.raises(BaseMismatchError, match="other"):
        Expert.load(thin, base=tmp_path / "other-bundle", cache_dir=cache)
    with pytest.raises(LoadError, match="base="):
        Expert.load(thin, cache_dir=cache)
    for precision in ("int8", "fp32"):
        full = export(model, [expert], tmp_path / precision, precision=precision).packages[0].file
        Expert.load(tmp_path / precision / full, cache_dir=cache, threads=1).close()
        with Expert.load(thin, cache_dir=cache, threads=1) as loaded:
            assert precision == loaded.base.precision
            tokens = loaded.generate("select", max_tokens=20).tokens
    assert expected == tokens


def test_merged_package_takes_no_adapter(
    model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path
) -> None:
    """A merged bundle has no adapter graph, no sites and a source of its own, so no other expert fits it."""
    model, expert = model_folder("llama"), expert_folder()
    report = export(model, [expert], tmp_path / "merged", precision="fp32", merged=True)
    plain = export(model, [expert], tmp_path / "thin", precision="fp32", thin=True)
    assert plain.source_sha256 != report.source_sha256
    with Expert.load(tmp_path / "merged" / report.packages[0].file, cache_dir=tmp_path / "cache") as loaded:
        base = engine_of(loaded).folder
    assert sorted({*BUNDLE_FILES} - {ADAPTER_GRAPH}) == sorted(path.name for path in base.iterdir())
    document = json.loads((base / DECODER_JSON).read_text())
    assert [] == document["sites"]
    weights, config = expert / "adapter_model.safetensors", expert / "adapter_config.json"
    assert hashlib.sha256(weights.read_bytes() + config.read_bytes()).hexdigest() == document["merged"]
    with pytest.raises(LoadError, match="another adapter is merged"):
        Expert.load(tmp_path / "thin" / plain.packages[0].file, base=base, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("location", ["../weights.bin", "x/../../weights.bin", "absolute"])
def test_external_data_stays_inside(location: str, bundle: BundleFolder, tmp_path: Path) -> None:
    """A graph that points outside its bundle is refused, even at the right weights, relative or absolute."""
    folder = copied(bundle("llama", "fp32"), tmp_path / "bundle")
    os.link(folder / WEIGHTS_FILE, tmp_path / WEIGHTS_FILE)
    outside = str(tmp_path / WEIGHTS_FILE) if location == "absolute" else location
    (folder / "x").mkdir()
    model = ir.load(folder / BASE_GRAPH)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.ExternalTensor(
                outside, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=str(value.name)
            )
    ir.save(model, folder / BASE_GRAPH)
    with pytest.raises(LoadError, match=r"decoder\.onnx .* cannot be loaded: .*[Ee]xternal data"):
        begun(Engine(folder, threads=1), None, 64)


def test_without_standard_error(
    model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called from a windowed application, which has none, an export shows no bars and goes on."""
    monkeypatch.setattr("sys.stderr", None)
    report = export(model_folder("llama"), [expert_folder()], tmp_path / "out", precision="fp32")
    assert (tmp_path / "out" / report.packages[0].file).is_file()
