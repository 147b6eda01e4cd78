"""Caches in the host's memory and in a device's, rows together or apart, and what is let go of."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from forms import DEVICE, Bundles, tokens

from hivellm_ort import OutOfMemoryError
from hivellm_ort.contract import Architecture
from hivellm_ort.engine.devices import Placement
from hivellm_ort.engine.kv_cache import KVCache, KVCacheSpec
from hivellm_ort.engine.ort_values import FLOAT_TYPES, DeviceMemory
from hivellm_ort.engine.providers import CPU

NUMBERS = Architecture("llama", 8, 16, 3, 2, 2, 4, 32, 64)
SPECS = [
    KVCacheSpec(element_type, memory, contiguous)
    for element_type in FLOAT_TYPES.values()
    for memory, contiguous in ((None, True), (DeviceMemory("cpu"), True), (DeviceMemory("cpu"), False))
]


def name_of(spec: KVCacheSpec) -> str:
    """For the report."""
    memory, rows = "device" if spec.memory else "host", "contiguous" if spec.contiguous_rows else "apart"
    return f"{spec.element_type.name}-{memory}-{rows}"


def filled(spec: KVCacheSpec, rows: int, capacity: int) -> tuple[KVCache, list[np.ndarray]]:
    """A cache with random values, and what was put into each row."""
    cache = KVCache(NUMBERS, spec, rows=rows, capacity=capacity)
    values = []
    for row in range(rows):
        shape = (6, 2, capacity, 4)
        block = np.random.default_rng(row).integers(0, 1000, shape).astype(spec.element_type.storage)
        cache.load(row, block, capacity)
        values.append(block)
    return cache, values


@pytest.mark.parametrize("spec", SPECS, ids=name_of)
def test_rows_are_saved_loaded_and_moved(spec: KVCacheSpec) -> None:
    """Every operation changes the positions that it is to, of the row that it is to, and no others."""
    cache, values = filled(spec, 3, 10)
    cache.move(2, 0, 4)
    values[0][:, :, :4] = values[2][:, :, :4]
    cache.load(1, values[0], 7)
    values[1][:, :, :7] = values[0][:, :, :7]
    for row in range(3):
        saved = cache.save(row, 9)
        assert np.dtype(spec.element_type.storage) == saved.dtype
        assert np.array_equal(values[row][:, :, :9], saved)


@pytest.mark.parametrize("spec", SPECS, ids=name_of)
def test_a_cache_that_grows(spec: KVCacheSpec) -> None:
    """More rows and more positions begin with what was there, the rest with zeros."""
    old, values = filled(spec, 2, 10)
    new = KVCache(NUMBERS, spec, rows=4, capacity=16)
    new.copy_from(old, [10, 6])
    assert np.array_equal(values[0], new.save(0, 16)[:, :, :10])
    assert np.array_equal(values[1][:, :, :6], new.save(1, 16)[:, :, :6])
    assert not new.save(0, 16)[:, :, 10:].any()
    assert not new.save(1, 16)[:, :, 6:].any()
    assert not any(new.save(row, 16).any() for row in (2, 3))
    assert 2 * 3 * 4 * 2 * 16 * 4 * np.dtype(spec.element_type.storage).itemsize == new.nbytes


@pytest.mark.parametrize("memory", [None, DeviceMemory("cpu")], ids=["host", "device"])
def test_no_memory(memory: DeviceMemory | None) -> None:
    """The message gives the size, wherever the memory is missing."""
    spec = KVCacheSpec(FLOAT_TYPES["float16"], memory)
    with pytest.raises(OutOfMemoryError, match=r"a cache for 8 x 1099511627776 tokens needs \d+ MiB"):
        KVCache(NUMBERS, spec, rows=8, capacity=1 << 40)


@pytest.mark.parametrize("placement", [Placement(CPU), DEVICE], ids=["host", "device"])
@pytest.mark.parametrize("form", [("cpu", "fp32"), ("portable", "fp32"), ("cuda", "bf16")], ids="-".join)
def test_forgotten_adapters_and_rests(form: tuple[str, str], placement: Placement, bundles: Bundles) -> None:
    """An adapter that is forgotten is freed, with its copies on the device; so are rows that are not used."""
    engine = bundles.engine(*form, placement)
    decoder, adapters = engine.decoder(adapters=True), bundles.adapters(*form, engine)
    logits = []
    for _ in range(2):
        for row, name in enumerate(("lora", "dora")):
            decoder.start(row, adapters[name], 100)
            decoder.append(row, tokens(20, row))
        logits.append(decoder.step([7, 8]).copy())
        assert 2 == decoder.rows
        decoder.free_rows()
        assert (0, 0) == (decoder.rows, decoder.nbytes)
    assert np.array_equal(*logits)
    held: list[Any] = [weakref.ref(tensor) for tensor in adapters["lora"].own_inputs.values()]  # type: ignore[union-attr]
    decoder.release(adapters.pop("lora"))  # type: ignore[arg-type]
    gc.collect()
    assert [] == [one for one in held if one() is not None]


def test_no_memory_for_an_adapter(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without room for another adapter goes on with the one that is bound."""
    engine = bundles.engine("cpu", "fp32", DEVICE)
    decoder, adapters = engine.decoder(adapters=True), bundles.adapters("cpu", "fp32", engine)
    decoder.start(0, adapters["lora"], 100)
    expected = decoder.append(0, tokens(20, 1)).copy()
    with monkeypatch.context() as patch:
        put, count = DeviceMemory.put, iter(range(5))

        def scarce(self: DeviceMemory, *arguments: Any) -> Any:
            if next(count, None) is None:
                raise RuntimeError("no more")
            return put(self, *arguments)

        patch.setattr(DeviceMemory, "put", scarce)
        with pytest.raises(OutOfMemoryError, match=r"memory of cpu:0: no more"):
            decoder.start(1, adapters["dora"], 100)
    decoder.start(0, adapters["lora"], 100)
    assert np.array_equal(expected, decoder.append(0, tokens(20, 1)))
