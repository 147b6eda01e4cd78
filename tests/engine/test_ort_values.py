"""Float types of graphs as numpy keeps them, and adapters as graphs of them take them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from forms import Bundles
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hivellm_ort import AdapterError
from hivellm_ort.adapters.prepared_adapter import PreparedAdapter, PreparedModule
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.engine.ort_values import FLOAT_TYPES, DeviceMemory, Tensor

LARGEST = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)


@given(hnp.arrays(np.float32, 20, elements=st.floats(-LARGEST, LARGEST, width=32)))
def test_bfloat16(values: np.ndarray) -> None:
    """Rounding and widening are those of another implementation, bit for bit."""
    kind, expected = FLOAT_TYPES["bfloat16"], values.astype(ml_dtypes.bfloat16)
    found = kind.cast(values)
    assert np.array_equal(expected.view(np.uint16), found)
    assert np.array_equal(expected.astype(np.float32), kind.widen(found))


@pytest.mark.parametrize(
    ("name", "value"), [("float16", 65520.0), ("float16", -1e6), ("bfloat16", 3.4e38), ("bfloat16", np.inf)]
)
def test_values_beyond_the_largest(name: str, value: float) -> None:
    """What would become infinite is an error."""
    with pytest.raises(OverflowError, match=name):
        FLOAT_TYPES[name].cast(np.array([1, value], np.float32))


@pytest.mark.parametrize("name", FLOAT_TYPES)
@pytest.mark.parametrize("memory", [None, DeviceMemory("cpu")], ids=["host", "device"])
def test_values_to_bind(name: str, memory: DeviceMemory | None) -> None:
    """An OrtValue of the type, in each memory made once."""
    kind, values = FLOAT_TYPES[name], np.array([[1, -2.5, 0.125]], np.float32)
    tensor = Tensor(kind.cast(values), kind)
    value = tensor.ort_value(memory)
    assert f"tensor({name.replace('32', '')})" == value.data_type()
    assert [1, 3] == list(value.shape())
    assert value is tensor.ort_value(memory)
    assert np.array_equal(values, tensor.numpy())


@pytest.mark.parametrize("form", [("cpu", "fp32"), ("cuda", "fp16"), ("cuda", "bf16")], ids="-".join)
def test_adapter_has_the_type_of_the_graph(form: tuple[str, str], bundles: Bundles) -> None:
    """Every input of an adapter is of the graph's type, and half as large in half floats."""
    reference = bundles.engine("cpu", "fp32")
    expected = bundles.adapters("cpu", "fp32", reference)["dora"]
    engine = bundles.engine(*form)
    found = bundles.adapters(*form, engine)["dora"]
    assert expected is not None
    assert found is not None
    assert {engine.config.graph.adapter_dtype} == {
        tensor.element_type.name for tensor in found.inputs.values()
    }
    for name, tensor in found.inputs.items():
        difference = np.abs(expected.inputs[name].numpy() - tensor.numpy()).max()
        assert difference <= {"fp32": 0, "fp16": 2e-3, "bf16": 2e-2}[form[1]]
    if form[1] != "fp32":
        assert 0.5 == pytest.approx(found.nbytes / expected.nbytes, rel=0.1)


def test_adapter_beyond_float16(bundles: Bundles) -> None:
    """An adapter whose values a half float cannot hold is refused with the input's name and what to use."""
    config = bundles.engine("dml", "fp16").config
    site = config.sites[0]
    A, B = np.ones((site.in_features, 1), np.float32), np.full((1, site.out_features), 7e4, np.float32)
    adapter = PreparedAdapter(
        "lora", 1, config.source_sha256, {site.parts[0].module: PreparedModule(A, B)}, digest="x"
    )
    with pytest.raises(AdapterError, match=rf"{site.lora_B}: .* float16.*bf16"):
        BoundAdapter(adapter, config)
