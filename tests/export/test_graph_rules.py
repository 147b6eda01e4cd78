"""The rules of targets: a graph that breaks one is named with the place and the rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.exporting import copied, edit_json

from hivellm_export.graph.rules import check_bundle, check_graph
from hivellm_export.packaging import bundle as bundles
from hivellm_export.pipeline import export
from hivellm_ort import ExportError
from hivellm_ort.contract import ADAPTER_GRAPH, BASE_GRAPH, DECODER_JSON, DecoderConfig

TargetBundle = Callable[[str, str, str], Path]
Break = Callable[[ir.Graph], None]

PRECISIONS = {"cpu": "fp32", "cuda": "fp16", "dml": "fp16", "portable": "fp16"}


def node_of(graph: ir.Graph, op_type: str) -> ir.Node:
    """The first node of a type."""
    return next(node for node in graph if node.op_type == op_type)


def input_of(graph: ir.Graph, name: str) -> ir.Value:
    """The graph input of a name."""
    return next(value for value in graph.inputs if value.name == name)


def insert(graph: ir.Graph, op_type: str, domain: str = "", **attributes: object) -> None:
    """Put a node of one input and one output before an activation."""
    last = node_of(graph, "Sigmoid")
    node = ir.node(op_type, [last.inputs[0]], attributes, domain=domain, name="mine")
    graph.insert_before(last, node)
    last.replace_input_with(0, node.outputs[0])


def drop_input(graph: ir.Graph, name: str) -> None:
    """Make an input a value of the graph."""
    value = input_of(graph, name)
    graph.inputs.remove(value)
    value.const_value = ir.tensor(np.zeros((1, 1), np.float16), name=name)
    graph.register_initializer(value)


def unused_input(graph: ir.Graph) -> None:
    """Give what the scale multiplies to those who take its product."""
    product = node_of(graph, "Gemm").inputs[2].producer()
    assert product is not None
    ir.convenience.replace_all_uses_with(product.outputs[0], product.inputs[0])
    graph.remove(product, safe=True)


def joined(graph: ir.Graph) -> None:
    """Leave key and value out, as where they are packed with the query."""
    node = node_of(graph, "GroupQueryAttention")
    for index in (1, 2):
        node.replace_input_with(index, None)


def add_norms(graph: ir.Graph) -> None:
    """Norms of query and key as inputs 14 and 15."""
    node = node_of(graph, "GroupQueryAttention")
    weight = next(iter(graph.initializers.values()))
    node.resize_inputs(16)
    node.replace_input_with(14, weight)
    node.replace_input_with(15, weight)


def set_weight(graph: ir.Graph, array: np.ndarray) -> None:
    """Replace the first matrix by another."""
    name = next(name for name, value in graph.initializers.items() if len(value.shape or ()) == 2)
    value = graph.initializers[name]
    value.const_value = ir.tensor(array, name=name)
    value.dtype, value.shape = value.const_value.dtype, value.const_value.shape


def set_input(name: str, dtype: ir.DataType | None = None, shape: tuple[object, ...] | None = None) -> Break:
    """Change type or shape of an input."""

    def change(graph: ir.Graph) -> None:
        value = input_of(graph, name)
        value.dtype = dtype or value.dtype
        value.shape = value.shape if shape is None else ir.Shape(shape)

    return change


def set_output(name: str, dtype: ir.DataType | None = None, shape: tuple[object, ...] | None = None) -> Break:
    """Change type or shape of an output."""

    def change(graph: ir.Graph) -> None:
        value = next(value for value in graph.outputs if value.name == name)
        value.dtype = dtype or value.dtype
        value.shape = value.shape if shape is None else ir.Shape(shape)

    return change


def give_tokens(graph: ir.Graph) -> None:
    """Add an output that nobody was promised."""
    value = ir.Value(name="token_ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(("rows",)))
    graph.outputs.append(value)


def set_attention(**attributes: int) -> Break:
    """Change attributes of the first attention."""

    def change(graph: ir.Graph) -> None:
        node_of(graph, "GroupQueryAttention").attributes.update(
            {name: ir.AttrInt64(name, value) for name, value in attributes.items()}
        )

    return change


def set_value(graph: ir.Graph) -> None:
    """Say that a node gives float32."""
    node_of(graph, "Sigmoid").outputs[0].dtype = ir.DataType.FLOAT


FLOAT, HALF = np.ones((2, 2), np.float32), np.ones((2, 2), np.float16)
SITE = "model.layers.1.mlp.up_proj"
PAST = "past_key_values.0.key"
CASES: list[tuple[str, str, Break, str]] = [
    # Operators.
    (
        "portable",
        "contrib",
        lambda g: insert(g, "QuickGelu", "com.microsoft"),
        r"node mine \(com.microsoft::QuickGelu\): rule operator",
    ),
    (
        "portable",
        "norm",
        lambda g: insert(g, "SimplifiedLayerNormalization"),
        r"node mine .*: rule operator: the target has no ai.onnx::Simpl",
    ),
    ("portable", "where", lambda g: insert(g, "Where"), r"node mine \(Where\): rule operator"),
    (
        "dml",
        "table",
        lambda g: insert(g, "GatherBlockQuantized", "com.microsoft"),
        r"node mine .*: rule operator",
    ),
    ("dml", "attention", lambda g: insert(g, "Attention"), r"node mine \(Attention\): rule operator"),
    (
        "cuda",
        "domain",
        lambda g: insert(g, "Sigmoid", "mine"),
        r"rule operator: the target has no mine::Sigmoid",
    ),
    (
        "cpu",
        "rotary",
        lambda g: insert(g, "RotaryEmbedding", "com.microsoft"),
        r"node mine .*: rule operator",
    ),
    (
        "portable",
        "subgraph",
        lambda g: insert(g, "Relu", body=ir.Graph([], [], nodes=())),
        r"rule operator: the target has no subgraphs",
    ),
    # Opsets.
    (
        "dml",
        "opset",
        lambda g: g.opset_imports.update({"": 22}),
        r"domain '': rule opset: version 22 is newer than the target's 21",
    ),
    (
        "dml",
        "older",
        lambda g: g.opset_imports.update({"": 17}),
        r"rule opset: the graph has .*17.*, decoder.json says",
    ),
    (
        "portable",
        "import",
        lambda g: g.opset_imports.update({"com.microsoft": 1}),
        r"domain 'com.microsoft': rule opset",
    ),
    # Types.
    (
        "cuda",
        "cache",
        set_input(PAST, ir.DataType.FLOAT),
        rf"input {PAST}: rule dtype: is FLOAT, not FLOAT16",
    ),
    ("dml", "adapter", set_input(f"{SITE}.lora_A", ir.DataType.FLOAT), rf"input {SITE}.lora_A: rule dtype"),
    (
        "portable",
        "ids",
        set_input("input_ids", ir.DataType.FLOAT),
        r"input input_ids: rule dtype: is FLOAT, not INT64",
    ),
    (
        "cuda",
        "logits",
        set_output("logits", ir.DataType.FLOAT16),
        r"output logits: rule dtype: is FLOAT16, not FLOAT",
    ),
    ("cuda", "weight", lambda g: set_weight(g, FLOAT), r"tensor .*: rule dtype: is FLOAT, not FLOAT16"),
    ("portable", "matrix", lambda g: set_weight(g, FLOAT), r"tensor .*: rule dtype"),
    ("cpu", "half", lambda g: set_weight(g, HALF), r"tensor .*: rule dtype: is FLOAT16, not FLOAT"),
    (
        "cuda",
        "cast",
        lambda g: insert(g, "Cast", to=ir.DataType.FLOAT),
        r"node mine \(Cast\): rule dtype: only logits",
    ),
    ("dml", "value", set_value, r"node Sigmoid\.\d+ .*: rule dtype: gives FLOAT"),
    # Ranks, sizes, shapes.
    ("dml", "rank", set_input("total_sequence_length", shape=()), r"input total_sequence_length: rule rank"),
    ("portable", "scalar", set_input("logits_rows", shape=()), r"input logits_rows: rule rank"),
    ("portable", "empty past", set_input(PAST, shape=(1, 2, 0, 32)), rf"input {PAST}: rule dimension"),
    (
        "cuda",
        "empty input",
        set_input("input_ids", shape=(0, "sequence_length")),
        r"input input_ids: rule dimension",
    ),
    ("cuda", "empty", lambda g: set_weight(g, HALF[:0]), r"tensor .*: rule dimension: is empty"),
    (
        "dml",
        "batch",
        set_input("input_ids", shape=("batch_size", "sequence_length")),
        r"input input_ids: rule shape: is \['batch_size', .*\], not \[1, ",
    ),
    ("portable", "length", set_input(PAST, shape=(1, 2, "max_length", 32)), rf"input {PAST}: rule shape"),
    ("portable", "unknown", set_input("position_ids", shape=(1, None)), r"input position_ids: rule shape"),
    (
        "portable",
        "present",
        set_output("present.0.key", shape=(1, 2, 128, 32)),
        r"output present.0.key: rule shape",
    ),
    (
        "dml",
        "width",
        set_input(f"{SITE}.lora_A", shape=(65, f"{SITE}.rank")),
        r"up_proj.lora_A: rule shape: is \[65",
    ),
    # Names.
    (
        "portable",
        "site",
        lambda g: drop_input(g, f"{SITE}.lora_gate"),
        rf"input {SITE}.lora_gate: rule site: is missing",
    ),
    (
        "dml",
        "positions",
        lambda g: drop_input(g, "position_ids"),
        r"input position_ids: rule input: is missing",
    ),
    ("cuda", "extra", lambda g: setattr(input_of(g, "seqlens_k"), "name", "mask"), r"rule input"),
    ("cuda", "unused", unused_input, r"input .*\.scale: rule input: no node uses it"),
    ("cuda", "no tokens", lambda g: g.outputs.pop(), r"output token_ids: rule output: is missing"),
    (
        "cuda",
        "tokens in int32",
        set_output("token_ids", ir.DataType.INT32),
        r"output token_ids: rule dtype: is INT32, not INT64",
    ),
    (
        "cuda",
        "tokens with a dimension more",
        set_output("token_ids", shape=("rows", 1)),
        r"output token_ids: rule shape: is \['rows', 1\], not \['rows'\]",
    ),
    ("cpu", "tokens unpromised", give_tokens, r"output token_ids: rule output: is not in the contract"),
    ("cpu", "output", lambda g: g.outputs.pop(1), r"output present.0.key: rule output: is missing"),
    # Attention.
    (
        "dml",
        "rotary",
        set_attention(do_rotary=1),
        r"node GroupQ.*: rule attention: do_rotary is 1, the target allows only 0",
    ),
    ("dml", "window", set_attention(local_window_size=8), r"rule attention: local_window_size is 8"),
    ("dml", "packed", joined, r"rule attention: the target needs query, key and value split"),
    ("dml", "norms", add_norms, r"rule attention: the target's attention has no norms"),
    ("cpu", "norms", add_norms, r"rule attention: the target's attention has no norms"),
]


@pytest.mark.parametrize("target", PRECISIONS)
def test_exports_pass(target: str, target_bundle: TargetBundle) -> None:
    """What the exporter writes breaks no rule."""
    folder = target_bundle("qwen3", target, PRECISIONS[target])
    assert target == check_bundle(folder).target


@pytest.mark.parametrize(
    ("target", "change", "message"),
    [(target, change, message) for target, _, change, message in CASES],
    ids=[f"{target}-{name}" for target, name, _, _ in CASES],
)
def test_broken_graph(target: str, change: Break, message: str, target_bundle: TargetBundle) -> None:
    """The error names graph, target, place and rule."""
    folder = target_bundle("qwen3", target, PRECISIONS[target])
    model, config = ir.load(folder / ADAPTER_GRAPH), DecoderConfig.from_file(folder / DECODER_JSON)
    check_graph(model, config, adapters=True)
    change(model.graph)
    with pytest.raises(ExportError, match=rf"decoder\.adapters\.onnx for target {target}: .*{message}"):
        check_graph(model, config, adapters=True)


def test_no_float32_attention_on_cuda(target_bundle: TargetBundle) -> None:
    """CUDA has no GroupQueryAttention in float32, so a graph in it is none for cuda."""
    folder = target_bundle("llama", "cpu", "fp32")
    config = dataclasses.replace(DecoderConfig.from_file(folder / DECODER_JSON), target="cuda")
    with pytest.raises(ExportError, match="rule attention: the target has no attention in float32"):
        check_graph(ir.load(folder / BASE_GRAPH), config, adapters=False)


def test_unknown_target(target_bundle: TargetBundle, tmp_path: Path) -> None:
    """There are no rules to check then."""
    folder = copied(target_bundle("llama", "cpu", "fp32"), tmp_path / "bundle")
    edit_json(folder / DECODER_JSON, target="npu")
    with pytest.raises(ExportError, match="target 'npu' is not known"):
        check_bundle(folder)


def test_every_export_is_checked(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lowering that goes wrong writes nothing."""
    lower = bundles.lower

    def wrong(*arguments: object, **options: object) -> ir.Model:
        model = lower(*arguments, **options)  # type: ignore[arg-type]
        insert(model.graph, "HardSwish")
        return model

    monkeypatch.setattr(bundles, "lower", wrong)
    with pytest.raises(ExportError, match=r"decoder\.onnx for target portable: .*HardSwish"):
        export(model_folder("llama"), [], tmp_path / "out", target="portable")
    assert [] == list(tmp_path.iterdir())
