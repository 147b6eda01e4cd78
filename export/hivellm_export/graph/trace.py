"""Trace a Hugging Face decoder through Optimum into a small graph of placeholder operators.

The model's own decoder layers drive the trace. Only their leaves (projections, norms, attention, embedding) are
replaced, by `torch.autograd.Function`s whose symbolic emits one placeholder (`hivellm_export.graph.placeholders`). A
placeholder names its weights and never reads them. So a trace costs no memory, and one trace is lowered for every
precision and target (`hivellm_export.graph.lower`).
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from optimum.exporters.onnx.base import OnnxConfig
from optimum.exporters.onnx.convert import export_pytorch
from optimum.utils import NormalizedTextConfig
from torch import nn

from hivellm_export.graph.placeholders import DOMAIN
from hivellm_export.libraries import only_errors
from hivellm_ort.contract import past_names, present_names

__all__ = ["trace_decoder"]

_OPSET = 18


def _placeholder(
    op_type: str,
    attributes: dict[str, Any],
    *inputs: torch.Tensor,
    outputs: tuple[tuple[int, int, tuple[int, ...]], ...],
) -> Any:
    """Record one placeholder.

    Args:
        op_type: The placeholder.
        attributes: Its attributes, with the suffixes of PyTorch's exporter (`_s`, `_i`, `_f`).
        inputs: Its inputs.
        outputs: For each output (i, n, sizes): a float32 tensor, with the first n dimensions of input i, then
            `sizes`.
    """

    class Placeholder(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: torch.Tensor) -> Any:
            results = tuple(torch.zeros(*tensors[i].shape[:n], *sizes) for i, n, sizes in outputs)
            return results if len(results) > 1 else results[0]

        @staticmethod
        def symbolic(g: Any, *values: Any) -> Any:
            results = g.op(f"{DOMAIN}::{op_type}", *values, outputs=len(outputs), **attributes)
            nodes = results if len(outputs) > 1 else (results,)
            for node, (i, n, sizes) in zip(nodes, outputs, strict=True):
                shape = [*values[i].type().varyingSizes()[:n], *sizes]
                node.setType(torch._C.TensorType.get().with_dtype(torch.float32).with_sizes(shape))
            return results

    return Placeholder.apply(*inputs)


def _linear(x: torch.Tensor, site: str, modules: dict[str, nn.Linear]) -> torch.Tensor:
    sizes = [m.out_features for m in modules.values()]
    attributes = {
        "site_s": site,
        "modules_s": ",".join(modules),
        "sizes_i": sizes,
        "in_features_i": next(iter(modules.values())).in_features,
    }
    return _placeholder("Linear", attributes, x, outputs=((0, 1, (sum(sizes),)),))


def _rms_norm(x: torch.Tensor, name: str, norm: nn.Module, head_dim: int | None = None) -> torch.Tensor:
    attributes: dict[str, Any] = {"weight_s": f"{name}.weight", "epsilon_f": float(norm.variance_epsilon)}
    if head_dim is not None:
        attributes |= {"head_dim_i": head_dim, "width_i": int(x.shape[-1])}
    op_type = "RMSNorm" if head_dim is None else "HeadRMSNorm"
    return _placeholder(op_type, attributes, x, outputs=((0, 2, ()),))


@dataclass
class _Inputs:
    """Inputs of attention besides hidden states; passed through the layers as `past_key_values`."""

    input_ids: torch.Tensor
    past: list[tuple[torch.Tensor, torch.Tensor]]
    seqlens: torch.Tensor
    total: torch.Tensor
    present: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)


def _attention_forward(index: int, attention: nn.Module) -> Callable[..., Any]:
    prefix = f"model.layers.{index}.self_attn"
    config = attention.config
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, attention.head_dim
    sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    # Qwen has a window per layer, Mistral one for all layers, Llama none.
    window = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
    attributes = {
        "width_i": heads * head_dim,
        "num_heads_i": heads,
        "kv_num_heads_i": kv_heads,
        "scale_f": float(attention.scaling),
        "sliding_window_i": int(window or 0),
    }
    projections = {f"{prefix}.{n}": getattr(attention, n) for n in ("q_proj", "k_proj", "v_proj")}

    def forward(hidden_states: torch.Tensor, past_key_values: _Inputs, **_: Any) -> tuple[torch.Tensor, None]:
        packed = _linear(hidden_states, f"{prefix}.qkv_proj", projections)
        inputs = past_key_values
        tail = (inputs.input_ids, *inputs.past[index], inputs.seqlens, inputs.total)
        if hasattr(attention, "q_norm"):
            query, key, value = torch.split(packed, sizes, dim=-1)
            query = _rms_norm(query, f"{prefix}.q_norm", attention.q_norm, head_dim)
            key = _rms_norm(key, f"{prefix}.k_norm", attention.k_norm, head_dim)
            operands: tuple[Any, ...] = (query, key, value, *tail)
        else:
            operands = (packed, *tail)
        past = len(operands) - 4
        shapes = ((0, 1, (sizes[0],)), (past, 4, ()), (past + 1, 4, ()))
        outputs = _placeholder("Attention", attributes, *operands, outputs=shapes)
        inputs.present.append(outputs[1:])
        return _linear(outputs[0], f"{prefix}.o_proj", {f"{prefix}.o_proj": attention.o_proj}), None

    return forward


def _mlp_forward(index: int, mlp: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    prefix = f"model.layers.{index}.mlp"

    def project(x: torch.Tensor, name: str) -> torch.Tensor:
        path = f"{prefix}.{name}"
        return _linear(x, path, {path: getattr(mlp, name)})

    def forward(x: torch.Tensor) -> torch.Tensor:
        return project(mlp.act_fn(project(x, "gate_proj")) * project(x, "up_proj"), "down_proj")

    return forward


@contextlib.contextmanager
def _patched(model: nn.Module) -> Iterator[None]:
    """Replace the leaves of `model` while it is traced."""
    patches: list[tuple[nn.Module, Callable[..., Any]]] = []
    for i, layer in enumerate(model.model.layers):
        patches.append((layer.self_attn, _attention_forward(i, layer.self_attn)))
        patches.append((layer.mlp, _mlp_forward(i, layer.mlp)))
        for name in ("input_layernorm", "post_attention_layernorm"):
            norm = getattr(layer, name)
            full = f"model.layers.{i}.{name}"
            patches.append((norm, lambda x, full=full, norm=norm: _rms_norm(x, full, norm)))
    norm = model.model.norm
    patches.append((norm, lambda x: _rms_norm(x, "model.norm", norm)))
    try:
        for module, forward in patches:
            module.forward = forward
        yield
    finally:
        for module, _ in patches:
            module.__dict__.pop("forward", None)


class _Decoder(nn.Module):
    """A Hugging Face decoder with the inputs and outputs of the contract.

    The model is kept in a tuple. So its parameters do not belong to this module, and none is exported.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.config = model.config
        self._model = (model,)

    def forward(
        self,
        input_ids: torch.Tensor,
        seqlens_k: torch.Tensor,
        total_sequence_length: torch.Tensor,
        logits_rows: torch.Tensor,
        past_key_values: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, ...]:
        model = self._model[0]
        size = self.config.hidden_size
        inputs = _Inputs(input_ids, past_key_values, seqlens_k, total_sequence_length)
        embedding = {"weight_s": "model.embed_tokens.weight"}
        hidden = _placeholder("Embedding", embedding, input_ids, outputs=((0, 2, (size,)),)).reshape(-1, size)
        for layer in model.model.layers:
            hidden = layer(
                hidden,
                attention_mask=None,
                position_ids=None,
                past_key_values=inputs,
                cache_position=None,
                position_embeddings=None,
            )
        hidden = model.model.norm(hidden)
        rows = torch.index_select(hidden, 0, logits_rows)
        logits = _linear(rows, "lm_head", {"lm_head": model.lm_head})
        return (logits, *(tensor for pair in inputs.present for tensor in pair))


class _DecoderOnnxConfig(OnnxConfig):
    """Inputs and outputs of the contract, for `export_pytorch` of Optimum."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig

    @property
    def _layers(self) -> range:
        return range(self._config.num_hidden_layers)

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        cache = {0: "batch_size", 2: "max_length"}
        head: dict[str, dict[int, str]] = {
            "input_ids": {0: "batch_size", 1: "sequence_length"},
            "seqlens_k": {0: "batch_size"},
            "total_sequence_length": {},
            "logits_rows": {0: "rows"},
        }
        return OrderedDict(head, **{name: cache for i in self._layers for name in past_names(i)})

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        cache = {0: "batch_size", 2: "max_length"}
        head = {"logits": {0: "rows"}}
        return OrderedDict(head, **{name: cache for i in self._layers for name in present_names(i)})

    def generate_dummy_inputs(self, framework: str = "pt", **_: Any) -> dict[str, Any]:
        batch, sequence, length = 2, 3, 8
        config = self._config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        cache = torch.zeros(batch, config.num_key_value_heads, length, head_dim)
        return {
            "input_ids": torch.ones(batch, sequence, dtype=torch.int64),
            "seqlens_k": torch.full((batch,), sequence - 1, dtype=torch.int32),
            "total_sequence_length": torch.tensor(sequence, dtype=torch.int32),
            "logits_rows": torch.tensor([2, 5], dtype=torch.int64),
            "past_key_values": [(cache.clone(), cache.clone()) for _ in self._layers],
        }

    def patch_model_for_export(self, model: Any, model_kwargs: Any = None) -> Any:
        return _patched(model._model[0])


def trace_decoder(model: nn.Module) -> ir.Model:
    """Trace a model into placeholder operators.

    Args:
        model: A Hugging Face causal decoder of a supported architecture.

    Returns:
        A graph without weights and adapters, with the inputs and outputs of the contract.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), only_errors("torch.onnx"):
        # The tracer warns about constant shapes and unknown operators. Both are intended here.
        warnings.simplefilter("ignore")
        path = Path(folder) / "trace.onnx"
        config = _DecoderOnnxConfig(model.config, task="text-generation")
        export_pytorch(_Decoder(model), config, _OPSET, path)
        return ir.load(path)
