"""What cannot be run, and what the fixed length of a cache does not hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from forms import Bundles, tokens

from hivellm_ort import ContextLengthError, InferenceError, LoadError, ProviderError
from hivellm_ort.contract import DECODER_JSON, DecoderConfig
from hivellm_ort.engine.capabilities import Capabilities
from hivellm_ort.engine.devices import Placement
from hivellm_ort.engine.ort_values import DeviceMemory
from hivellm_ort.engine.providers import CPU, PROVIDERS
from hivellm_ort.engine.session import Engine

Change = Callable[[DecoderConfig], DecoderConfig]


@pytest.mark.parametrize(
    ("form", "changes", "field"),
    [
        (("cpu", "fp32"), {"cache_update": "appended"}, "cache_update of decoder.json being 'appended'"),
        (("cpu", "fp32"), {"cache_dtype": "float8"}, "cache_dtype of decoder.json being 'float8'"),
        (("cpu", "fp32"), {"adapter_dtype": "int4"}, "adapter_dtype"),
        (("cpu", "fp32"), {"activation_dtype": "float64"}, "activation_dtype"),
        (("dml", "fp16"), {"shapes": {"layers": [2]}}, "shapes.layers"),
        (
            ("dml", "fp16"),
            {"shapes": {"sequence_length": [64, 256]}},
            r"shapes.sequence_length .* \[64, 256\]",
        ),
        (("dml", "fp16"), {"shapes": {"max_length": [64, 512]}}, r"shapes.max_length .* \[64, 512\]"),
    ],
)
def test_unknown_form(form: tuple[str, str], changes: dict[str, Any], field: str, bundles: Bundles) -> None:
    """A form of a later version is refused with the field and the cure, before anything is started."""
    folder = bundles.folder(*form)
    config = DecoderConfig.from_file(folder / DECODER_JSON)
    shapes = {"shapes": {**config.graph.shapes, **changes.pop("shapes", {})}}
    graph = dataclasses.replace(config.graph, **{**shapes, **changes})
    with pytest.raises(ProviderError, match=rf"{field}.*--target cpu"):
        Engine(folder, dataclasses.replace(config, graph=graph), placement=Placement(CPU))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("attention_mask", ["batch_size", "total"]),
        ("input_ids", ["sequence_length"]),
        ("position_ids", ["rows"]),
        ("seqlens_k", [2]),
        ("total_sequence_length", [2]),
        ("logits_rows", [2]),
    ],
)
def test_unknown_input(name: str, shape: Any, bundles: Bundles) -> None:
    """So is an input that is not known, or not of a shape that is."""
    folder = bundles.folder("cpu", "fp32")
    config = DecoderConfig.from_file(folder / DECODER_JSON)
    graph = dataclasses.replace(config.graph, inputs={**config.graph.inputs, name: shape})
    with pytest.raises(ProviderError, match=rf"inputs\.{name} of decoder\.json.*--target cpu"):
        Engine(folder, dataclasses.replace(config, graph=graph), placement=Placement(CPU))


def test_input_that_is_missing(bundles: Bundles) -> None:
    """Nothing can be run without tokens."""
    folder = bundles.folder("cpu", "fp32")
    config = DecoderConfig.from_file(folder / DECODER_JSON)
    graph = dataclasses.replace(config.graph, inputs={"logits_rows": ["rows"]})
    with pytest.raises(ProviderError, match=r"inputs\.input_ids"):
        Engine(folder, dataclasses.replace(config, graph=graph), placement=Placement(CPU))


def essentials(found: Capabilities) -> tuple[Any, ...]:
    """What the targets differ in."""
    return (
        found.batch,
        found.multi_token_append,
        found.buckets,
        found.max_length,
        found.past_present_share_buffer,
        found.one_logits_row,
        found.total_sequence_length,
    )


def test_capabilities_of_the_targets(bundles: Bundles) -> None:
    """What `decoder.json` says, and where the provider has its memory, is all that the decoder goes by."""
    found = {
        form: Capabilities.of(
            DecoderConfig.from_file(bundles.folder(*form) / DECODER_JSON), Placement(PROVIDERS[device], 1)
        )
        for form, device in {
            ("cpu", "fp32"): "cpu",
            ("cuda", "bf16"): "cuda",
            ("dml", "fp16"): "dml",
            ("portable", "fp32"): "coreml",
            ("portable", "fp16"): "cuda",
        }.items()
    }
    cpu, cuda, dml, coreml, other = found.values()
    own = {"cache_type": cuda.cache_type, "memory": DeviceMemory("cuda", 1), "greedy_output": True}
    assert cuda == dataclasses.replace(cpu, **own)
    assert (True, True, (), None, True, False, ()) == essentials(cpu)
    assert (False, False, (1, 64, 256, 512), 512, True, True, (1,)) == essentials(dml)
    assert (False, True, (1, 16, 64, 256), 512, False, False, None) == essentials(coreml)
    assert [None, "cuda", "dml", None, "cuda"] == [
        one.memory and one.memory.device_type for one in found.values()
    ]
    assert [None, "cuda", "dml", None, None] == [
        spec.memory and spec.memory.device_type
        for spec in (one.kv_cache_spec for one in (cpu, cuda, dml, coreml, other))
    ]


@pytest.mark.parametrize("form", [("dml", "fp16"), ("portable", "fp32")], ids="-".join)
def test_row_beyond_a_fixed_cache(form: tuple[str, str], bundles: Bundles) -> None:
    """The message has the cause and the option that changes it; nothing of the row is lost."""
    engine = bundles.engine(*form)
    limited = dataclasses.replace(
        engine.config,
        architecture=dataclasses.replace(engine.config.architecture, max_position_embeddings=4096),
    )
    engine = Engine(engine.folder, limited, placement=Placement(CPU), threads=1)
    assert 512 == engine.config.context
    decoder = engine.decoder(adapters=False)
    with pytest.raises(ContextLengthError, match=r"513 tokens exceed the 512 .* 4096: .* --context"):
        decoder.start(0, None, 513)
    decoder.start(0, None, 512)
    decoder.append(0, tokens(511, 1))
    with pytest.raises(ContextLengthError, match="--context"):
        decoder.append(0, tokens(2, 2))
    assert (1, 288) == decoder.append(0, tokens(1, 2)).shape


def _numbers(**changes: int) -> Change:
    return lambda config: dataclasses.replace(
        config, architecture=dataclasses.replace(config.architecture, **changes)
    )


def _form(**changes: Any) -> Change:
    return lambda config: dataclasses.replace(config, graph=dataclasses.replace(config.graph, **changes))


def _first_site(**changes: Any) -> Change:
    return lambda config: dataclasses.replace(
        config, sites=(dataclasses.replace(config.sites[0], **changes), *config.sites[1:])
    )


def _with_bias(config: DecoderConfig) -> DecoderConfig:
    parts = tuple(dataclasses.replace(part, bias=True) for part in config.sites[0].parts)
    return _first_site(parts=parts)(config)


@pytest.mark.parametrize(
    ("form", "change", "fault"),
    [
        (("cpu", "fp32"), _numbers(num_hidden_layers=3), r"no input past_key_values\.2\.key"),
        (("cpu", "fp32"), _numbers(num_hidden_layers=1), r"an input 'past_key_values\.1\.key'"),
        (
            ("cpu", "fp32"),
            _numbers(num_key_value_heads=1),
            r"\.key of shape .* \[any, 1, any, 16\]",
        ),
        (("cpu", "fp32"), _numbers(head_dim=32), r"\.key of shape .* \[any, 2, any, 32\]"),
        (("cpu", "fp32"), _numbers(vocab_size=289), r"output logits of shape \[any, 288\].* \[any, 289\]"),
        (
            ("cpu", "fp32"),
            _form(cache_dtype="float16"),
            r"of tensor\(float\), decoder.json says tensor\(float16\)",
        ),
        (("cpu", "fp32"), _form(adapter_dtype="bfloat16"), r"lora_A of tensor\(float\)"),
        (("cpu", "fp32"), _form(greedy_output=True), "no output token_ids"),
        (("cpu", "fp32"), _form(shapes={"rows": (1,)}), r"logits_rows of shape \[any\].* \[1\]"),
        (("cpu", "fp32"), _first_site(in_features=65), r"lora_A of shape \[32, any\].* \[65, any\]"),
        (("cpu", "fp32"), _first_site(name="elsewhere"), r"no input elsewhere\.lora_A"),
        (("cpu", "fp32"), _with_bias, r"no input .*\.bias"),
        (
            ("cpu", "fp32"),
            lambda config: dataclasses.replace(config, sites=()),
            r"an input 'model\.layers\.0",
        ),
        (("dml", "fp16"), _form(shapes={"max_length": (256,), "batch_size": (1,), "rows": (1,)}), "of shape"),
    ],
)
def test_graph_that_is_not_as_described(
    form: tuple[str, str], change: Change, fault: str, bundles: Bundles
) -> None:
    """What decoder.json says of inputs and outputs is compared with the graph before anything is run or reserved."""
    folder = bundles.folder(*form)
    config = change(DecoderConfig.from_file(folder / DECODER_JSON))
    engine = Engine(folder, config, placement=Placement(CPU), threads=1)
    with pytest.raises(
        LoadError, match=rf"decoder\.adapters\.onnx of base bundle .*{fault}.*export it again"
    ):
        engine.decoder(adapters=True)


@pytest.mark.parametrize("form", [("cpu", "fp32"), ("cpu", "int8"), ("cpu", "int8+int8")], ids="-".join)
def test_context_beyond_the_graphs_rotations(form: tuple[str, str], bundles: Bundles) -> None:
    """A context that the graph has no rotations for ends a request by name, not in an answer."""
    folder = bundles.folder(*form)
    config = _numbers(max_position_embeddings=1 << 20)(DecoderConfig.from_file(folder / DECODER_JSON))
    decoder = Engine(folder, config, placement=Placement(CPU), threads=1).decoder(adapters=False)
    decoder.start(0, None, 600)
    decoder.append(0, tokens(500, 1))
    with pytest.raises(InferenceError, match="position 513"):
        decoder.append(0, tokens(13, 2))
