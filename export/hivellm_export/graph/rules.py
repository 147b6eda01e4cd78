"""Check the graphs of a bundle against the rules of their target, without a device that runs them.

Every error names the graph, the node, input or tensor, and the rule. The lists of operators are those of the
contract, in `hivellm_ort.operators`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from hivellm_export.graph.shapes import (
    CACHE_TYPES,
    cache_shape,
    dimension,
    present_shape,
    site_shapes,
)
from hivellm_export.weights.writer import FLOAT_TYPES
from hivellm_ort.contract import (
    ADAPTER_GRAPH,
    BASE_GRAPH,
    DECODER_JSON,
    GREEDY_OUTPUT,
    LOGITS,
    DecoderConfig,
    past_names,
    present_names,
)
from hivellm_ort.errors import ExportError, LoadError
from hivellm_ort.loading.bundles import Bundle
from hivellm_ort.loading.graph_check import check_graphs
from hivellm_ort.operators import DOMAIN_MS, operators_of
from hivellm_ort.paths import StrPath

__all__ = ["check_bundle", "check_graph"]

_FLOATS = {*FLOAT_TYPES.values(), ir.DataType.DOUBLE}
_SUBGRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_INT32 = ("seqlens_k", "total_sequence_length")


@dataclass(frozen=True)
class _Rules:
    """The rules of one target.

    Attributes:
        opsets: Newest allowed version by operator domain.
        scalars: Whether inputs without dimensions are allowed.
        mixed: Whether a graph of another float type may hold float32 values, except matrices.
        attention: Attributes of GroupQueryAttention with only one allowed value. If there are any, q, k and v must be
            split.
    """

    opsets: Mapping[str, int]
    scalars: bool = True
    mixed: bool = False
    attention: Mapping[str, int] = field(default_factory=dict)


_RULES = {
    "cpu": _Rules({"": 18, DOMAIN_MS: 1}),
    "cuda": _Rules({"": 18, DOMAIN_MS: 1}),
    "dml": _Rules({"": 21, DOMAIN_MS: 1}, scalars=False, attention={"do_rotary": 0, "local_window_size": -1}),
    "portable": _Rules({"": 18}, scalars=False, mixed=True),
}


def check_bundle(folder: StrPath) -> DecoderConfig:
    """Check every graph of a bundle.

    Args:
        folder: The bundle's folder.

    Returns:
        Its `decoder.json`.

    Raises:
        ExportError: A graph breaks a rule of the target, or the runtime would refuse it.
        ManifestError: `decoder.json` is wrong.
    """
    folder = Path(folder)
    config = DecoderConfig.from_file(folder / DECODER_JSON)
    names = (BASE_GRAPH, *([] if config.merged else [ADAPTER_GRAPH]))
    for name in names:
        check_graph(ir.load(folder / name), config, adapters=name == ADAPTER_GRAPH)
    try:
        check_graphs(Bundle(folder, config), names)
    except LoadError as error:
        raise ExportError(f"the runtime would refuse this bundle: {error}") from error
    return config


def check_graph(model: ir.Model, config: DecoderConfig, *, adapters: bool) -> None:
    """Check one graph.

    Args:
        model: The graph.
        config: `decoder.json` of its bundle.
        adapters: Whether it must have adapter inputs at every site.

    Raises:
        ExportError: The target is unknown, or the graph breaks one of its rules.
    """
    if config.target not in _RULES:
        raise ExportError(f"{DECODER_JSON}: target {config.target!r} is not known")
    fault = next(_Checker(model, config, _RULES[config.target], adapters).faults(), None)
    if fault is not None:
        name = ADAPTER_GRAPH if adapters else BASE_GRAPH
        raise ExportError(f"{name} for target {config.target}: {fault}")


@dataclass(frozen=True)
class _Checker:
    model: ir.Model
    config: DecoderConfig
    rules: _Rules
    adapters: bool

    def faults(self) -> Iterator[str]:
        """Every fault with its place and rule."""
        yield from self._opsets()
        yield from self._operators()
        yield from self._inputs()
        yield from self._outputs()
        yield from self._types()
        yield from self._attention()

    def _expected_inputs(self) -> dict[str, tuple[ir.DataType, tuple[int | str, ...]]]:
        """Type and shape of each input, by name."""
        form, config = self.config.graph, self.config
        cache, adapter = CACHE_TYPES[form.cache_dtype], FLOAT_TYPES[form.adapter_dtype]
        inputs = {
            name: (ir.DataType.INT32 if name in _INT32 else ir.DataType.INT64, tuple(shape))
            for name, shape in form.inputs.items()
        }
        for layer in range(config.architecture.num_hidden_layers):
            inputs |= dict.fromkeys(past_names(layer), (cache, cache_shape(config)))
        for site in config.sites if self.adapters else ():
            inputs |= {name: (adapter, shape) for name, shape in site_shapes(config, site).items()}
        return inputs

    def _opsets(self) -> Iterator[str]:
        found = dict(self.model.opset_imports)
        for domain, version in found.items():
            newest = self.rules.opsets.get(domain)
            if newest is None:
                yield f"domain {domain!r}: rule opset: the target has no operators of this domain"
            elif version > newest:
                yield f"domain {domain!r}: rule opset: version {version} is newer than the target's {newest}"
        if found != dict(self.config.graph.opsets):
            yield f"rule opset: the graph has {found}, {DECODER_JSON} says {dict(self.config.graph.opsets)}"

    def _operators(self) -> Iterator[str]:
        operators = operators_of(self.config.target, self.config.graph.cache_dtype)
        branches = "If" in operators.get("", ())
        for node in self.model.graph.all_nodes() if branches else self.model.graph:
            if node.op_type not in operators.get(node.domain, ()):
                operator = f"{node.domain or 'ai.onnx'}::{node.op_type}"
                yield f"node {_name(node)}: rule operator: the target has no {operator}"
            if not branches and any(attribute.type in _SUBGRAPHS for attribute in node.attributes.values()):
                yield f"node {_name(node)}: rule operator: the target has no subgraphs"

    def _inputs(self) -> Iterator[str]:
        expected = self._expected_inputs()
        found = {str(value.name): value for value in self.model.graph.inputs}
        for name in sorted(expected.keys() - found.keys()):
            rule = "site" if any(name in site.inputs for site in self.config.sites) else "input"
            yield f"input {name}: rule {rule}: is missing"
        for name, value in found.items():
            if name not in expected:
                yield f"input {name}: rule input: neither {DECODER_JSON} nor the contract has it"
                continue
            if not value.uses():
                yield f"input {name}: rule input: no node uses it"
            dtype, shape = expected[name]
            if value.dtype != dtype:
                yield f"input {name}: rule dtype: is {value.dtype}, not {dtype}"
            yield from _shape_faults(f"input {name}", value, shape, scalars=self.rules.scalars)

    def _outputs(self) -> Iterator[str]:
        config, form = self.config, self.config.graph
        names = [
            name for layer in range(config.architecture.num_hidden_layers) for name in present_names(layer)
        ]
        expected = dict.fromkeys(names, (CACHE_TYPES[form.cache_dtype], present_shape(config)))
        rows = dimension(config, "rows")
        expected[LOGITS] = (ir.DataType.FLOAT, (rows, config.architecture.vocab_size))
        if form.greedy_output:
            expected[GREEDY_OUTPUT] = (ir.DataType.INT64, (rows,))
        found = {str(value.name): value for value in self.model.graph.outputs}
        for name in sorted(expected.keys() ^ found.keys()):
            yield f"output {name}: rule output: {'is missing' if name in expected else 'is not in the contract'}"
        for name, (dtype, shape) in expected.items():
            if found[name].dtype != dtype:
                yield f"output {name}: rule dtype: is {found[name].dtype}, not {dtype}"
            if form.shapes or name == GREEDY_OUTPUT:
                yield from _shape_faults(f"output {name}", found[name], shape, scalars=True)

    def _types(self) -> Iterator[str]:
        graph, wanted = self.model.graph, FLOAT_TYPES[self.config.graph.activation_dtype]
        for name, value in graph.initializers.items():
            free = self.rules.mixed and len(value.shape or ()) < 2 and value.dtype == ir.DataType.FLOAT
            if value.dtype in _FLOATS and value.dtype != wanted and not free:
                yield f"tensor {name}: rule dtype: is {value.dtype}, not {wanted}"
            if 0 in tuple(value.shape or ()):
                yield f"tensor {name}: rule dimension: is empty"
        for node in graph:
            half = wanted != ir.DataType.FLOAT and not self.rules.mixed
            if node.op_type == "Cast" and half and node.outputs[0].name != LOGITS:
                yield f"node {_name(node)}: rule dtype: only logits are cast"
            for value in node.outputs:
                wrong = value.dtype in _FLOATS and value.dtype != wanted and value.name != LOGITS
                if wrong and not (self.rules.mixed and value.dtype == ir.DataType.FLOAT):
                    yield f"node {_name(node)}: rule dtype: gives {value.dtype}, not {wanted}"

    def _attention(self) -> Iterator[str]:
        for node in self.model.graph:
            if node.op_type != "GroupQueryAttention":
                continue
            size = self.config.architecture.head_dim
            if size % 16 and node.attributes.get_int("do_rotary", 0):
                yield (
                    f"node {_name(node)}: rule attention: ONNX Runtime rotates heads with a multiple of 16 "
                    f"channels, and head_dim of this model is {size}: use --target portable"
                )
            inputs = [value is not None for value in node.inputs] + [False] * 16
            normed = inputs[14] or inputs[15]
            if normed and self.config.target != "cuda":
                yield f"node {_name(node)}: rule attention: the target's attention has no norms of query and key"
            if self.config.target == "cuda" and self.config.graph.activation_dtype == "float32":
                yield f"node {_name(node)}: rule attention: the target has no attention in float32"
            if self.rules.attention and not (inputs[1] and inputs[2]):
                yield f"node {_name(node)}: rule attention: the target needs query, key and value split"
            for attribute, only in self.rules.attention.items():
                found = node.attributes.get_int(attribute, only)
                if found != only:
                    yield f"node {_name(node)}: rule attention: {attribute} is {found}, the target allows only {only}"


def _shape_faults(
    what: str, value: ir.Value, expected: tuple[int | str, ...], *, scalars: bool
) -> Iterator[str]:
    if value.shape is None:
        yield f"{what}: rule shape: has no shape"
        return
    shape = tuple(size if isinstance(size, int) else size.value for size in value.shape)
    if not shape and not scalars:
        yield f"{what}: rule rank: has no dimensions"
    if 0 in shape:
        yield f"{what}: rule dimension: a size of zero in {list(shape)}"
    if shape != expected:
        yield f"{what}: rule shape: is {list(shape)}, not {list(expected)}"


def _name(node: ir.Node) -> str:
    return f"{node.name} ({node.domain}::{node.op_type})" if node.domain else f"{node.name} ({node.op_type})"
