"""Devices and provider options as they are asked for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivellm_ort import ProviderError
from hivellm_ort.engine.devices import Device


@pytest.mark.parametrize(
    ("name", "kind", "number"),
    [
        (None, "auto", 0),
        ("auto", "auto", 0),
        ("cpu", "cpu", 0),
        ("cpu:0", "cpu", 0),
        ("cuda", "cuda", 0),
        ("cuda:1", "cuda", 1),
        ("dml:0", "dml", 0),
        ("dml:12", "dml", 12),
        ("coreml", "coreml", 0),
    ],
)
def test_known_names(name: str | None, kind: str, number: int) -> None:
    """A name, with a number where there may be several."""
    assert (kind, number) == (Device.of(name).kind, Device.of(name).device_id)


@pytest.mark.parametrize(
    "name",
    ["", "CPU", "cpu ", "gpu", "tpu", "auto:0", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "CUDAExecutionProvider", 0],
)  # fmt: skip
def test_unknown_names(name: Any) -> None:
    """Anything else is refused, with itself and the names that exist in the message."""
    with pytest.raises(ProviderError, match="use 'auto', 'cpu', 'cuda', 'dml' or 'coreml'") as caught:
        Device.of(name)
    assert f"device {name!r} is unknown" in str(caught.value)


@pytest.mark.parametrize("name", ["cpu:1", "coreml:2"])
def test_number_of_what_is_there_once(name: str) -> None:
    """A number above 0 of a device that exists once is refused."""
    with pytest.raises(ProviderError, match="there is one"):
        Device.of(name)


@given(st.text(max_size=12) | st.from_regex(r"\A[a-z]{2,6}:[0-9]{1,5}\Z"))
def test_any_text_is_read_or_refused(name: str) -> None:
    """What is accepted reads the same when it is written again."""
    try:
        device = Device.of(name)
    except ProviderError:
        return
    assert device == Device.of(str(device))


def test_options_become_texts() -> None:
    """Numbers and booleans are given as ONNX Runtime's parsers take them, in the order of their names."""
    options = {"gpu_mem_limit": 1 << 31, "enable_cuda_graph": True, "arena": "kSame", "a": 0.5, "b": False}
    expected = (
        ("a", "0.5"),
        ("arena", "kSame"),
        ("b", "0"),
        ("enable_cuda_graph", "1"),
        ("gpu_mem_limit", "2147483648"),
    )
    assert expected == Device.of("cuda", options).options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a"], "is list, not a mapping"),
        ({1: "a"}, "name 1 is not a text"),
        ({"": "a"}, "name '' is not a text"),
        ({"a": None}, r"\['a'\] is NoneType"),
        ({"a": ["b"]}, r"\['a'\] is list"),
    ],
)
def test_malformed_options(options: Any, message: str) -> None:
    """What no provider could take is a TypeError that names the option."""
    with pytest.raises(TypeError, match=message):
        Device.of("cuda", options)


def test_number_among_the_options() -> None:
    """The number of a device is said in one place."""
    with pytest.raises(ValueError, match="device='cuda:1'"):
        Device.of("cuda", {"device_id": 1})
