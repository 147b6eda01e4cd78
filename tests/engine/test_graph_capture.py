"""Steps that a device captures and replays: where everything stays, and that the answers are the same."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from forms import CAPTURED, DEVICE, Bundles, course, difference, tokens
from recording import CaptureRules, Recording

from hivellm_ort.engine import graph_capture
from hivellm_ort.engine.decoder import Decoder
from hivellm_ort.engine.devices import Device, Placement
from hivellm_ort.engine.providers import CPU, PROVIDERS
from hivellm_ort.engine.session import Engine

FORMS = [("cuda", "fp16"), ("cuda", "bf16"), ("cpu", "fp32")]


def recorded(
    form: tuple[str, str], bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> tuple[Engine, Recording, CaptureRules]:
    """An engine whose runs are looked at."""
    rules = CaptureRules()
    config = bundles.engine(*form).config
    recording = Recording(monkeypatch, rules, config)
    return bundles.engine(*form, CAPTURED), recording, rules


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_course(form: tuple[str, str], bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole course of requests gives the logits of a device that captures nothing, and breaks no rule."""
    engine = bundles.engine(*form, DEVICE)
    expected = course(engine.decoder(adapters=True), bundles.adapters(*form, engine))
    engine, recording, rules = recorded(form, bundles, monkeypatch)
    actual = course(engine.decoder(adapters=True), bundles.adapters(*form, engine))
    assert [] == recording.faults
    assert 0 == difference(expected, actual)
    assert len(rules.first_runs) > 3
    assert all(run.captured == (run.width == 1) for run in recording.runs)


def greedy_answers(decoder: Decoder, adapters: dict[str, Any], *, chosen: bool) -> list[list[int]]:
    """Tokens of requests that change adapters and grow the cache, alone and together."""
    found: list[list[int]] = []

    def answer(count: int, *rows: str | None) -> None:
        said: list[list[int]] = [[] for _ in rows]
        for place, name in enumerate(rows):
            decoder.start(place, adapters.get(name), 20)
            scores = decoder.append(place, tokens(10 + place, place), greedy=chosen)
            said[place].append(int(scores[0] if scores.ndim == 1 else scores[0].argmax()))
        for _ in range(count):
            last = [one[-1] for one in said]
            scores = (
                decoder.append(0, last, greedy=chosen)
                if len(rows) == 1
                else decoder.step(last, greedy=chosen)
            )
            for one, score in zip(said, scores, strict=True):
                one.append(int(score if scores.ndim == 1 else score.argmax()))
        decoder.free_rows()
        found.extend(said)

    for name in ("lora", "dora", "lora", "none"):
        answer(12, name)
    answer(30, "lora", "dora", "lora")
    answer(30, "dora", "lora", "lora")
    answer(280, "dora")  # beyond the first 256
    answer(5, "lora", "lora")
    answer(5, "none", "dora")
    return found


@pytest.mark.parametrize("chosen", [False, True], ids=["logits", "tokens"])
def test_tokens_across_swaps_and_growth(
    chosen: bool, bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens are those of the CPU without a device."""
    form = FORMS[0]
    engine = bundles.engine(*form)
    adapters = bundles.adapters(*form, engine)
    expected = greedy_answers(engine.decoder(adapters=True), adapters, chosen=chosen)
    engine, recording, rules = recorded(form, bundles, monkeypatch)
    decoder = engine.decoder(adapters=True)
    found = greedy_answers(decoder, bundles.adapters(*form, engine), chosen=chosen)
    assert expected == found
    assert [] == recording.faults
    assert {True} == {run.captured for run in recording.runs if run.width == 1}
    assert {frozenset({("token_ids" if chosen else "logits")})} == {
        frozenset(run.output) for run in recording.runs
    }
    assert len(rules.first_runs) < 20 < sum(run.captured for run in recording.runs)


def test_adapters_share_captured_graphs(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters of the same ranks and kinds take turns in one captured graph; other shapes need another."""
    engine, recording, rules = recorded(FORMS[0], bundles, monkeypatch)
    adapters = bundles.adapters(*FORMS[0], engine)
    twin = bundles.adapters(*FORMS[0], engine)["lora"]
    decoder = engine.decoder(adapters=True)
    logits = {}
    for adapter in (adapters["lora"], twin, adapters["lora"], adapters["none"], twin):
        decoder.start(0, adapter, 50)
        decoder.append(0, tokens(10, 1))
        logits[adapter] = [decoder.append(0, [7])[0].copy() for _ in range(3)]
    assert np.array_equal(logits[adapters["lora"]], logits[twin])
    assert not np.array_equal(logits[twin], logits[adapters["none"]])
    assert ([], 2) == (recording.faults, len(rules.first_runs))


def test_decoders_of_one_session_share_no_captured_graph(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session replays by the number alone, and another decoder has other buffers."""
    engine, recording, rules = recorded(FORMS[0], bundles, monkeypatch)
    for _ in range(2):
        decoder = engine.decoder(adapters=False)
        decoder.start(0, None, 50)
        decoder.append(0, tokens(10, 1))
        decoder.append(0, [7])
    assert ([], 2) == (recording.faults, len(rules.first_runs))


def test_a_token_that_begins_a_row_is_a_prompt(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not captured; nor is a token of another row than the first, alone."""
    engine, recording, _ = recorded(FORMS[0], bundles, monkeypatch)
    decoder = engine.decoder(adapters=False)
    for row in range(2):
        decoder.start(row, None, 50)
        decoder.append(row, [5])
    decoder.append(1, [6])
    assert [-1] * 3 == [run.graph_id for run in recording.runs]
    decoder.append(0, [6])
    assert recording.runs[-1].captured


def test_too_many_captured_graphs(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay in the memory of the device, so after some number steps run without."""
    monkeypatch.setattr(graph_capture, "_MAX_GRAPHS", 2)
    plain = bundles.engine(*FORMS[0]).decoder(adapters=False)
    engine, recording, rules = recorded(FORMS[0], bundles, monkeypatch)
    decoder = engine.decoder(adapters=False)
    for row in range(3):
        found = []
        for one in (plain, decoder):
            one.start(row, None, 50)
            one.append(row, tokens(10, row))
            found.append(one.step([3] * (row + 1)).copy())
        assert np.array_equal(*found)
        assert (row < 2) == recording.runs[-1].captured
    assert ([], 2) == (recording.faults, len(rules.first_runs))


def test_idle_times_capture_nothing_anew(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache stays while there is nothing to do, and with it what was captured on it."""
    engine, recording, rules = recorded(FORMS[0], bundles, monkeypatch)
    decoder = engine.decoder(adapters=False)
    for _ in range(3):
        for row in range(2):
            decoder.start(row, None, 50)
            decoder.append(row, tokens(10, row))
        decoder.step([3, 4])
        decoder.append(0, [5])
        decoder.free_rows()
    assert ([], 2) == (recording.faults, len(rules.first_runs))


def test_forgotten_adapter(bundles: Bundles) -> None:
    """Static inputs do not keep the adapter that was copied into them."""
    engine = bundles.engine(*FORMS[0], CAPTURED)
    decoder, adapters = engine.decoder(adapters=True), bundles.adapters(*FORMS[0], engine)
    for row, name in enumerate(("lora", "dora")):
        decoder.start(row, adapters[name], 100)
        decoder.append(row, tokens(20, row))
    decoder.append(0, [7])
    decoder.step([7, 8])
    decoder.free_rows()
    held: list[Any] = [weakref.ref(tensor) for tensor in adapters["lora"].own_inputs.values()]  # type: ignore[union-attr]
    decoder.release(adapters.pop("lora"))  # type: ignore[arg-type]
    gc.collect()
    assert [] == [one for one in held if one() is not None]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"enable_cuda_graph": True}, True),
        ({"enable_cuda_graph": "1"}, True),
        ({"enable_cuda_graph": "True"}, True),
        ({"enable_cuda_graph": False}, False),
        ({"gpu_mem_limit": 1}, False),
    ],
)
def test_what_asks_for_it(options: dict[str, Any], expected: bool) -> None:
    """The option that CUDA is given decides; other providers have none."""
    given = Device.of("cuda", options).options
    assert expected == Placement(PROVIDERS["cuda"], options=given).graph_capture
    assert not Placement(PROVIDERS["dml"], options=given).graph_capture
    assert not Placement(CPU).graph_capture


@pytest.mark.parametrize("form", [("portable", "fp32"), ("dml", "fp16")], ids="-".join)
def test_graphs_that_cannot_be_captured(
    form: tuple[str, str], bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where keys and values are copied on the host, or rows run one by one, no run is captured."""
    recording = Recording(monkeypatch, lambda *_: iter(()), bundles.engine(*form).config)
    engine = bundles.engine(*form, CAPTURED)
    decoder = engine.decoder(adapters=False)
    decoder.start(0, None, 50)
    decoder.append(0, tokens(10, 1))
    decoder.append(0, [7])
    assert {-1} == {run.graph_id for run in recording.runs}
