"""Split the joined projection of query, key and value, for targets whose attention needs them apart."""

from __future__ import annotations

import onnx_ir as ir

from hivellm_export.graph.placeholders import DOMAIN, linear_nodes, modules_of, sizes_of

__all__ = ["split_qkv"]


def split_qkv(trace: ir.Model) -> ir.Model:
    """Copy `trace` so that every `Linear` has one module, which is also its site.

    The three new outputs replace the joined one. If a `Split` used it, the `Split` is removed; else the attention
    takes the three outputs.
    """
    model = trace.clone()
    for node in tuple(linear_nodes(model.graph)):
        if len(modules_of(node)) > 1:
            _split(model.graph, node)
    return model


def _split(graph: ir.Graph, node: ir.Node) -> None:
    modules, sizes = modules_of(node), sizes_of(node)
    parts = [
        ir.node(
            "Linear",
            node.inputs,
            domain=DOMAIN,
            attributes={
                "site": module,
                "modules": module,
                "sizes": [size],
                "in_features": node.attributes["in_features"].as_int(),
            },
        )
        for module, size in zip(modules, sizes, strict=True)
    ]
    values = []
    for part, size in zip(parts, sizes, strict=True):
        value = part.outputs[0]
        value.name = f"{part.attributes['site'].as_string()}.output"
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([None, size])
        values.append(value)
    graph.insert_before(node, parts)
    (user,) = {use.node for use in node.outputs[0].uses()}
    if user.op_type == "Split":
        for old, new in zip(user.outputs, values, strict=True):
            ir.convenience.replace_all_uses_with(old, new)
    else:
        attention = ir.node(
            user.op_type,
            [*values, *user.inputs[1:]],
            domain=user.domain,
            attributes=dict(user.attributes),
            num_outputs=len(user.outputs),
        )
        graph.insert_before(user, attention)
        for old, new in zip(user.outputs, attention.outputs, strict=True):
            new.name, new.shape, new.dtype = old.name, old.shape, old.dtype
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove([user, node], safe=True)
