"""Graphs of a bundle, changed so that a run of them takes long, or that nobody should run them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from hivellm_ort.contract import ADAPTER_GRAPH, BASE_GRAPH, DECODER_JSON
from hivellm_ort.package.archive import extract, write

ENDLESS = 1 << 62
"""Turns of a loop that no test sees the end of."""


def change_graphs(bundle: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    """Change both graphs of a bundle, and what its list says of them."""
    path = bundle / DECODER_JSON
    document = json.loads(path.read_bytes())
    for name in (BASE_GRAPH, ADAPTER_GRAPH):
        model = onnx.load(bundle / name, load_external_data=False)
        change(model)
        content = model.SerializeToString()
        (bundle / name).unlink()  # it may be shared with other bundles
        (bundle / name).write_bytes(content)
        document["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.unlink()
    path.write_text(json.dumps(document))
    return bundle


def looping(token: int, turns: int = ENDLESS) -> Callable[[onnx.ModelProto], None]:
    """A change: a run that reads `token` goes round a loop so many times; the logits of all runs stay the same."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        plain = next(node for node in graph.node if "logits" in node.output)
        plain.output[list(plain.output).index("logits")] = "logits.plain"
        scalar = helper.make_tensor_value_info
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["loop.go"], ["loop.on"]),
                helper.make_node("Add", ["loop.sum", "loop.zero"], ["loop.more"]),
            ],
            "loop.body",
            [
                scalar("loop.turn", TensorProto.INT64, []),
                scalar("loop.go", TensorProto.BOOL, []),
                scalar("loop.sum", TensorProto.FLOAT, []),
            ],
            [scalar("loop.on", TensorProto.BOOL, []), scalar("loop.more", TensorProto.FLOAT, [])],
        )
        graph.initializer.extend(
            [
                helper.make_tensor("loop.token", TensorProto.INT64, [], [token]),
                helper.make_tensor("loop.turns", TensorProto.INT64, [], [turns]),
                helper.make_tensor("loop.true", TensorProto.BOOL, [], [True]),
                helper.make_tensor("loop.zero", TensorProto.FLOAT, [], [0.0]),
            ]
        )
        graph.node.extend(
            [
                helper.make_node("Equal", ["input_ids", "loop.token"], ["loop.found"]),
                helper.make_node("Cast", ["loop.found"], ["loop.ones"], to=TensorProto.INT64),
                helper.make_node("ReduceMax", ["loop.ones"], ["loop.one"], keepdims=0),
                helper.make_node("Mul", ["loop.one", "loop.turns"], ["loop.count"]),
                helper.make_node("Loop", ["loop.count", "loop.true", "loop.zero"], ["loop.end"], body=body),
                helper.make_node("Add", ["logits.plain", "loop.end"], ["logits"]),
            ]
        )

    return change


def repacked(package: Path, change: Callable[[onnx.ModelProto], object], output: Path) -> Path:
    """A package again, with changed graphs."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "files"
        contents = extract(package, files)
        change_graphs(files / "onnx", change)
        write(output, [(member.name, files / member.name) for member in contents.members])
    return output
