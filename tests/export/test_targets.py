"""Graphs for other targets: the numbers they give on the CPU provider, against transformers and PEFT in float32."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator
from parity import PROMPT, base_logits, peft_logits
from support import tiny
from support.graphs import GraphRun

from hivellm_export.pipeline import export
from hivellm_ort.adapters.prepared_adapter import PreparedAdapter
from hivellm_ort.contract import ADAPTER_FILE, ADAPTER_GRAPH, BASE_GRAPH, DECODER_JSON, DecoderConfig

ModelFolder = Callable[[str], Path]
ExpertFolder = Callable[..., Path]
TargetBundle = Callable[[str, str, str], Path]

# Largest difference of a logit; logits are -5 to 5, and half floats have 11 and 8 bits.
TOLERANCES = {"fp32": 1e-4, "fp16": 0.03, "bf16": 0.15}
FORMS = [("portable", "fp32"), ("portable", "fp16"), ("cuda", "fp16"), ("cuda", "bf16"), ("dml", "fp16")]


def logits_of(run: GraphRun) -> dict[int, np.ndarray]:
    """Logits by position: a prompt of 5 tokens, 4 tokens more, then one by one."""
    positions = {5: run.forward(PROMPT[:5]), 9: run.forward(PROMPT[5:9])}
    for end in range(10, len(PROMPT) + 1):
        positions[end] = run.forward(PROMPT[end - 1 : end])
    return {end - 1: logits for end, logits in positions.items()}


def difference(expected: np.ndarray, logits: dict[int, np.ndarray]) -> float:
    """The largest of all positions."""
    return max(float(np.abs(expected[at] - row).max()) for at, row in logits.items())


@pytest.mark.parametrize(("target", "precision"), FORMS)
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "qwen2"])
def test_base_matches_transformers(
    architecture: str,
    target: str,
    precision: str,
    model_folder: ModelFolder,
    target_bundle: TargetBundle,
    tmp_path: Path,
) -> None:
    """Prompt, append and single steps agree; qwen2 has biases, and an LM head of its own."""
    run = GraphRun(target_bundle(architecture, target, precision), tmp_path)
    assert difference(base_logits(model_folder(architecture)), logits_of(run)) < TOLERANCES[precision]


@pytest.mark.parametrize(("target", "precision"), FORMS)
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "qwen2"])
def test_dora_expert_matches_peft(
    architecture: str,
    target: str,
    precision: str,
    model_folder: ModelFolder,
    expert_folder: ExpertFolder,
    target_bundle: TargetBundle,
    tmp_path: Path,
) -> None:
    """The same with a DoRA adapter on every projection, as inputs of the graph's float type."""
    folder, base = target_bundle(architecture, target, precision), model_folder(architecture)
    expected = peft_logits(base, expert_folder("dora", architecture))
    logits = logits_of(GraphRun(folder, tmp_path, PreparedAdapter.from_file(folder / ADAPTER_FILE)))
    assert difference(expected, logits) < TOLERANCES[precision]
    assert difference(base_logits(base), logits) > 10 * TOLERANCES[precision], "the adapter changes nothing"


@pytest.mark.parametrize(("target", "precision"), [*FORMS[:3]])
def test_sliding_window(
    target: str, precision: str, model_folder: ModelFolder, target_bundle: TargetBundle, tmp_path: Path
) -> None:
    """A window of 8 tokens hides the beginning of 16, in a prompt and behind one."""
    run = GraphRun(target_bundle("mistral", target, precision), tmp_path)
    expected = base_logits(model_folder("mistral"))
    assert difference(expected, logits_of(run)) < TOLERANCES[precision]
    run = GraphRun(target_bundle("mistral", target, precision), tmp_path)
    assert np.abs(expected[-1] - run.forward(PROMPT)).max() < TOLERANCES[precision]


def test_cuda_int4_multiplies_what_cpu_int4_does(target_bundle: TargetBundle, tmp_path: Path) -> None:
    """The projections' int4 values are the same; head and embedding are float16 here, and 8 bits there."""
    cpu, cuda = (target_bundle("llama", target, "int4") for target in ("cpu", "cuda"))
    expected, actual = (GraphRun(folder, tmp_path).forward(PROMPT) for folder in (cpu, cuda))
    cosine = expected @ actual / np.linalg.norm(expected) / np.linalg.norm(actual)
    assert cosine > 0.995
    nodes = list(ir.load(cuda / BASE_GRAPH).graph)
    quantised = [node for node in nodes if node.op_type == "MatMulNBits"]
    sites = DecoderConfig.from_file(cuda / DECODER_JSON).sites
    assert [(4, 0)] * len(sites) == [
        (node.attributes["bits"].as_int(), node.attributes["accuracy_level"].as_int()) for node in quantised
    ]


def test_cuda_norms_inside_the_attention(target_bundle: TargetBundle) -> None:
    """Qwen3's norms of query and key are inputs 14 and 15 of GroupQueryAttention, with the model's epsilon."""
    graph = ir.load(target_bundle("qwen3", "cuda", "fp16") / BASE_GRAPH).graph
    nodes = [node for node in graph if node.op_type == "GroupQueryAttention"]
    for layer, node in enumerate(nodes):
        prefix = f"model.layers.{layer}.self_attn"
        names = [value and value.name for value in node.inputs[9:]]
        assert [None] * 5 + [f"{prefix}.q_norm.weight", f"{prefix}.k_norm.weight"] == names
        assert 1e-6 == pytest.approx(node.attributes["qk_norm_epsilon"].as_float())
    assert 1 == sum(node.op_type == "SimplifiedLayerNormalization" for node in graph)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("architecture", ["qwen3", "mistral"])
def test_portable_graph_is_standard_onnx(
    architecture: str, precision: str, model_folder: ModelFolder, target_bundle: TargetBundle
) -> None:
    """ONNX's own checker accepts both graphs, and ONNX's own evaluator computes what transformers computes."""
    folder = target_bundle(architecture, "portable", precision)
    for name in (BASE_GRAPH, ADAPTER_GRAPH):
        onnx.checker.check_model(str(folder / name), full_check=True)
    model = onnx.load(str(folder / BASE_GRAPH))
    count = len(PROMPT)
    feeds = {"input_ids": np.array([PROMPT]), "position_ids": np.arange(count)[None]}
    feeds["logits_rows"] = np.arange(count)
    dtype = np.float32 if precision == "fp32" else np.float16
    for value in model.graph.input:
        if value.name.startswith("past_key_values"):
            feeds[value.name] = np.zeros([dim.dim_value for dim in value.type.tensor_type.shape.dim], dtype)
    (logits,) = ReferenceEvaluator(model).run(["logits"], feeds)
    assert np.float32 == logits.dtype
    assert np.abs(base_logits(model_folder(architecture)) - logits).max() < TOLERANCES[precision]


@pytest.mark.parametrize(("target", "precision"), [("portable", "fp32"), ("dml", "fp16")])
def test_every_bucket_makes_static_shapes(
    target: str, precision: str, target_bundle: TargetBundle, tmp_path: Path
) -> None:
    """With the free dimensions fixed, every bucket's session has static inputs and gives the same logits."""
    folder = target_bundle("llama", target, precision)
    form = DecoderConfig.from_file(folder / DECODER_JSON).graph
    plain = GraphRun(folder, tmp_path).forward(PROMPT[:1])
    for size in form.shapes["sequence_length"]:
        options = ort.SessionOptions()
        options.add_free_dimension_override_by_name("sequence_length", size)
        options.add_free_dimension_override_by_name("rows", 1)
        run = GraphRun(folder, tmp_path)
        path = str(folder / BASE_GRAPH)
        run.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        assert all(isinstance(dim, int) for value in run.session.get_inputs() for dim in value.shape)
        run.buckets = (size,)
        assert np.abs(plain - run.forward(PROMPT[:1])).max() < TOLERANCES[precision]


@pytest.mark.parametrize(("target", "precision"), [("cuda", "fp16"), ("dml", "fp16"), ("portable", "fp32")])
def test_merged(
    target: str, precision: str, model_folder: ModelFolder, expert_folder: ExpertFolder, tmp_path: Path
) -> None:
    """A merged expert keeps the base's biases, and has no graph for adapters."""
    base, expert = model_folder("qwen2"), expert_folder("dora", "qwen2")
    report = export(
        base, [expert], tmp_path / "out", target=target, precision=precision, merged=True
    ).packages[0]
    with tarfile.open(tmp_path / "out" / report.file) as package:
        package.extractall(tmp_path / "package", filter="data")
    folder = tmp_path / "package" / "onnx"
    assert not (folder / ADAPTER_GRAPH).exists()
    logits = logits_of(GraphRun(folder, tmp_path))
    assert difference(peft_logits(base, expert), logits) < TOLERANCES[precision]


@pytest.mark.parametrize(("target", "precision"), FORMS)
def test_other_activation(target: str, precision: str, tmp_path: Path) -> None:
    """Constants of a traced activation take the graph's float type."""
    base = tiny.save_model(tmp_path / "model", "llama", hidden_act="gelu_pytorch_tanh")
    export(base, [], tmp_path / "bundle", target=target, precision=precision)
    logits = GraphRun(tmp_path / "bundle", tmp_path / "copies").forward(PROMPT)
    assert np.abs(base_logits(base)[-1] - logits).max() < TOLERANCES[precision]
