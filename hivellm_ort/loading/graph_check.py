"""Refuses graphs that the exporter never writes, before ONNX Runtime reads them.

A graph is a program. It may contain endless loops, and names of files outside its bundle. Allowed are only the
operators of the contract (`hivellm_ort.operators`), and tensors in the graph itself and in `weights.bin`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from hivellm_ort.contract import ADAPTER_GRAPH, BASE_GRAPH, WEIGHTS_FILE
from hivellm_ort.errors import LoadError, argument
from hivellm_ort.loading.bundles import Bundle
from hivellm_ort.operators import operators_of
from hivellm_ort.printable import printable
from hivellm_ort.text.tokenizer_file import Recall

__all__ = ["LARGEST_GRAPH", "check_graphs"]

LARGEST_GRAPH = 8 << 20
"""Most bytes of a graph without its weights. A graph of a model with 28 layers has at most 0.7 MB."""

_SHOWN = 80  # characters of a name in a message
# The used fields of `onnx.proto3`, with their numbers and types; a list has a "*". Names are read as bytes, because
# they may not be UTF-8.
_FIELDS = {
    "Model": {
        "graph": (7, "Graph"),
        "metadata_props": (14, "*Entry"),
        "training_info": (20, "*Any"),
        "functions": (25, "*Function"),
    },
    "Graph": {
        "node": (1, "*Node"),
        "initializer": (5, "*Tensor"),
        "sparse_initializer": (15, "*Any"),
    },
    "Node": {"name": (3, "bytes"), "op_type": (4, "bytes"), "attribute": (5, "*Attribute"), "domain": (7, "bytes")},
    "Attribute": {
        "t": (5, "Tensor"),
        "g": (6, "Graph"),
        "tensors": (10, "*Tensor"),
        "graphs": (11, "*Graph"),
        "sparse_tensor": (22, "Any"),
        "sparse_tensors": (23, "*Any"),
    },
    "Tensor": {"name": (8, "bytes"), "external_data": (13, "*Entry"), "data_location": (14, "int32")},
    "Entry": {"key": (1, "bytes"), "value": (2, "bytes")},
    "Function": {"name": (1, "bytes")},
    "Any": {},
}  # fmt: skip
_Operators = Mapping[bytes, Set[bytes]]
_SETTINGS = b"ort_config"  # metadata from which ONNX Runtime may read session options


def check_graphs(bundle: Bundle, names: Sequence[str] | None = None, *, recall: Recall | None = None) -> None:
    """Refuse a bundle if a graph contains anything that the exporter never writes for its target.

    Args:
        bundle: The bundle.
        names: Files of the graphs. Default: the graph that runs; the other one is never opened.
        recall: Records which graphs passed, so that each is parsed only once. None checks each time.

    Raises:
        LoadError: A graph is refused. The message names graph, node and operator.
    """
    config = bundle.config
    target, cache = config.target, config.graph.cache_dtype
    for name in names or (ADAPTER_GRAPH if config.merged is None else BASE_GRAPH,):
        path = bundle.folder / name
        if not path.is_file():
            continue
        where = f"{name} of base bundle {printable(str(config.name))!r}"
        content = _read(path, where)

        def check(content: bytes = content, where: str = where) -> Mapping[str, float]:
            _check(content, where, target, cache)
            return {}

        if recall is None:
            check()
        else:
            recall(f"graph for {target} with {cache}", content, check)


def _check(content: bytes, where: str, target: str, cache: str) -> None:
    operators = {
        domain.encode(): {kind.encode() for kind in kinds}
        for domain, kinds in operators_of(target, cache).items()
    }
    fault = next(_faults(_parsed(content, where), operators), None)
    if fault is not None:
        raise LoadError(
            f"{where}: {fault}, which no export for target {target!r} writes: it may run for ever, or "
            "read files of yours. Export the base again. A package with such a graph loads only if a key that you "
            f"trust has signed it, or with {argument('trust', 'off')}"
        )


def _read(path: Path, where: str) -> bytes:
    try:
        size = path.stat().st_size
        if size > LARGEST_GRAPH:
            raise LoadError(
                f"{where} has {size} bytes, at most {LARGEST_GRAPH} are allowed, because weights belong into "
                f"{WEIGHTS_FILE}: export it again"
            )
        return path.read_bytes()
    except OSError as error:
        raise LoadError(f"{where} cannot be read: {error.strerror}") from error


def _parsed(content: bytes, where: str) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return _model_class().FromString(content)
    except DecodeError as error:
        raise LoadError(f"{where} is not an ONNX graph, or is damaged ({error}): export it again") from error


def _faults(model: Any, operators: _Operators) -> Iterator[str]:
    """Yield what is not allowed, each as the middle of a sentence."""
    for function in model.functions:
        yield f"it has the function {_name(function.name)}"
    if model.training_info:
        yield "it has graphs for training"
    if any(entry.key == _SETTINGS for entry in model.metadata_props):
        yield f"it has session options ({_SETTINGS.decode()})"
    yield from _graph_faults(model.graph, operators, branch=False)


def _graph_faults(graph: Any, operators: _Operators, *, branch: bool) -> Iterator[str]:
    if graph.sparse_initializer:
        yield "it has sparse tensors"
    for tensor in graph.initializer:
        yield from _tensor_faults(tensor)
    for node in graph.node:
        if node.op_type not in operators.get(node.domain, ()):
            operator = f"{_name(node.op_type)} of {_name(node.domain or b'ai.onnx')}"
            yield f"node {_name(node.name)} has the operator {operator}"
        for attribute in node.attribute:
            if attribute.ListFields():  # attributes with a number or a text have no used field
                yield from _attribute_faults(node, attribute, operators, branch=branch)


def _attribute_faults(node: Any, attribute: Any, operators: _Operators, *, branch: bool) -> Iterator[str]:
    where = f"node {_name(node.name)} ({_name(node.op_type)})"
    graphs = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
    if graphs and (branch or node.op_type != b"If"):
        yield f"{where} has a graph inside"
    elif graphs:
        for graph in graphs:
            yield from _graph_faults(graph, operators, branch=True)
    if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
        yield f"{where} has a sparse tensor"
    for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
        yield from _tensor_faults(tensor)


def _tensor_faults(tensor: Any) -> Iterator[str]:
    if not tensor.data_location and not tensor.external_data:
        return
    places = [entry.value for entry in tensor.external_data if entry.key == b"location"]
    if places != [WEIGHTS_FILE.encode()]:
        found = ", ".join(map(_name, places)) or "nowhere"
        yield f"tensor {_name(tensor.name)} is in {found} and not in {WEIGHTS_FILE}"


def _name(name: bytes) -> str:
    """Return a name of the graph for messages."""
    text = printable(name.decode(errors="replace"))
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


@functools.cache
def _model_class() -> Any:
    """Return the message class `Model` of `_FIELDS`. protobuf skips the other fields of a file."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field_type = descriptor_pb2.FieldDescriptorProto
    scalars = {"bytes": field_type.TYPE_BYTES, "int32": field_type.TYPE_INT32}
    file = descriptor_pb2.FileDescriptorProto(
        name="graph_check.proto", package="graph_check", syntax="proto2"
    )
    for message, fields in _FIELDS.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            field = described.field.add(name=name, number=number)
            field.label = field_type.LABEL_REPEATED if kind.startswith("*") else field_type.LABEL_OPTIONAL
            kind = kind.removeprefix("*")
            field.type = scalars.get(kind, field_type.TYPE_MESSAGE)
            if kind not in scalars:
                field.type_name = f".{file.package}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.Model"))
