"""What cannot be run, and what the fixed length of a cache does not hold."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
from forms import Bundles, tokens
from hypothesis import given
from hypothesis import strategies as st

from hivellm_ort import ContextLengthError, ProviderError
from hivellm_ort.contract import DECODER_JSON, Architecture, DecoderConfig, GraphForm
from hivellm_ort.engine.capabilities import Capabilities
from hivellm_ort.engine.placement import Placement
from hivellm_ort.engine.session import Engine
from hivellm_ort.engine.targets import CPU, PROVIDERS
from hivellm_ort.engine.tensors import Memory

CONFIG = DecoderConfig(
    "tiny", Architecture("llama", 8, 16, 1, 2, 1, 4, 32, 64), "fp32", "cpu", sites=(), source_sha256="0" * 64
)


@pytest.mark.parametrize(
    ("form", "changes", "field"),
    [
        (("cpu", "fp32"), {"cache_update": "appended"}, "cache_update of decoder.json being 'appended'"),
        (("cpu", "fp32"), {"cache_dtype": "float8"}, "cache_dtype of decoder.json being 'float8'"),
        (("cpu", "fp32"), {"adapter_dtype": "int4"}, "adapter_dtype"),
        (("cpu", "fp32"), {"activation_dtype": None}, "activation_dtype"),
        (("dml", "fp16"), {"shapes": {"layers": [2]}}, "shapes.layers"),
        (
            ("dml", "fp16"),
            {"shapes": {"sequence_length": [64, 256]}},
            r"shapes.sequence_length .* \[64, 256\]",
        ),
        (("dml", "fp16"), {"shapes": {"sequence_length": "many"}}, "shapes.sequence_length"),
        (("dml", "fp16"), {"shapes": {"max_length": [0]}}, "shapes.max_length"),
        (("dml", "fp16"), {"shapes": {"max_length": [True]}}, "shapes.max_length"),
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
        ("input_ids", None),
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


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 300)
    | st.sampled_from(["rows", "sequence_length", "float32", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rows", "input_ids"]), inner)
    ),
    max_leaves=4,
)
FIELDS = [
    "cache_dtype",
    "activation_dtype",
    "adapter_dtype",
    "inputs",
    "shapes",
    "multi_token_append",
    "cache_update",
    "greedy_output",
]
INNER = ["input_ids", "position_ids", "seqlens_k", "total_sequence_length", "logits_rows"]


@given(
    st.sampled_from(FIELDS), JSON, st.sampled_from(INNER), JSON, st.sampled_from(sorted(GraphForm().inputs))
)
def test_any_form_is_read_or_refused(field: str, value: Any, inner: str, shape: Any, dimension: str) -> None:
    """Whatever JSON a form has, nothing but the error for it is raised."""
    one = dataclasses.replace(GraphForm(), **{field: value})
    other = dataclasses.replace(
        GraphForm(), inputs={**GraphForm().inputs, inner: shape}, shapes={"rows": value, dimension: shape}
    )
    for graph in (one, other):
        with contextlib.suppress(ProviderError):
            Capabilities.of(dataclasses.replace(CONFIG, graph=graph), Placement(CPU))


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
    own = {"cache_type": cuda.cache_type, "memory": Memory("cuda", 1), "greedy": True}
    assert cuda == dataclasses.replace(cpu, **own)
    assert (True, True, (), None, False, False, ()) == (
        cpu.batch, cpu.append, cpu.buckets, cpu.max_length, cpu.new_tokens, cpu.one_logit, cpu.total,
    )  # fmt: skip
    assert (False, False, (1, 64, 256, 512), 512, False, True, (1,)) == (
        dml.batch, dml.append, dml.buckets, dml.max_length, dml.new_tokens, dml.one_logit, dml.total,
    )  # fmt: skip
    assert (False, True, (1, 16, 64, 256), 512, True, False, None) == (
        coreml.batch, coreml.append, coreml.buckets, coreml.max_length, coreml.new_tokens, coreml.one_logit,
        coreml.total,
    )  # fmt: skip
    assert [None, "cuda", "dml", None, "cuda"] == [can.memory and can.memory.device for can in found.values()]
    assert [None, "cuda", "dml", None, None] == [
        can.cache.memory and can.cache.memory.device for can in (cpu, cuda, dml, coreml, other)
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


@pytest.mark.parametrize(
    "shapes", [None, [], "x", {}, {"max_length": None}, {"max_length": "12"}, {"max_length": ["12"]}]
)
def test_context_of_a_strange_form(shapes: object, bundles: Bundles) -> None:
    """Who only looks at a package learns the model's context; running it is refused by the engine."""
    config = bundles.engine("cpu", "fp32").config
    form = dataclasses.replace(config.graph, shapes=shapes)
    strange = dataclasses.replace(config, graph=form)
    assert config.architecture.max_position_embeddings == strange.context
