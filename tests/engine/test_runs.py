"""What each provider is given, run by run, and the rules it must keep."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from forms import DEVICE, FORMS, Bundles, course, difference, tokens
from recording import RULES, Buffer, Recording, Run

from hivellm_ort import InferenceError
from hivellm_ort.contract import DECODER_JSON, LOGITS, DecoderConfig
from hivellm_ort.engine import decoder as decoding
from hivellm_ort.engine.devices import Placement
from hivellm_ort.engine.providers import CPU

Record = Callable[[str, str], Recording]


@pytest.fixture
def record(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> Record:
    """Have the sessions of a form's engines recorded from now on, under the rules of its target."""

    def start(target: str, precision: str) -> Recording:
        config = DecoderConfig.from_file(bundles.folder(target, precision) / DECODER_JSON)
        return Recording(monkeypatch, RULES[target], config)

    return start


@pytest.fixture(scope="module")
def plain(bundles: Bundles) -> Callable[..., list[np.ndarray]]:
    """The logits of the course of requests by form, of sessions that nobody looks at."""
    made: dict[tuple[str, str], list[np.ndarray]] = {}

    def make(form: tuple[str, str]) -> list[np.ndarray]:
        if form not in made:
            engine = bundles.engine(*form)
            made[form] = course(engine.decoder(adapters=True), bundles.adapters(*form, engine))
        return made[form]

    return make


@pytest.mark.parametrize("placement", [Placement(CPU), DEVICE], ids=["host", "device"])
@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_course(
    form: tuple[str, str],
    placement: Placement,
    bundles: Bundles,
    record: Record,
    plain: Callable[..., list[np.ndarray]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No run of the whole course of requests breaks a rule, and memory of a device changes no bit."""
    monkeypatch.setattr(decoding, "_DEVICE_CHUNK", decoding._HOST_CHUNK)  # longer runs round in other ways
    expected = plain(form)
    recording = record(*form)
    engine = bundles.engine(*form, placement)
    actual = course(engine.decoder(adapters=True), bundles.adapters(*form, engine))
    assert [] == recording.faults
    assert len(recording.runs) >= 27
    assert 0 == difference(expected, actual)


def test_a_device_has_copies(bundles: Bundles, record: Record) -> None:
    """The recording copies what a device would: a decoder that does not bind anew is caught."""
    recording = record("portable", "fp32")
    engine = bundles.engine("portable", "fp32", DEVICE)
    engine._capabilities = dataclasses.replace(engine._capabilities, memory=None)
    decoder = engine.decoder(adapters=False)
    decoder.start(0, None, 100)
    with contextlib.suppress(InferenceError):  # what is read in place of tokens may be none
        decoder.append(0, tokens(10, 1))
        decoder.append(0, tokens(10, 2))
    assert any(fault.startswith("position_ids") for fault in recording.faults)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("cpu", [(1, 44, 0), (1, 256, 44), (1, 5, 300), (1, 1, 305)]),
        ("portable", [(1, 256, 0), (1, 64, 256), (1, 16, 300), (1, 1, 305)]),
        ("dml", [(1, 512, 0), *((1, 1, begin) for begin in range(300, 306))]),
    ],
)
def test_runs_of_a_prompt(
    target: str, expected: list[tuple[int, int, int]], bundles: Bundles, record: Record
) -> None:
    """A prompt of 300 tokens, five at once, and one: in as few runs as the form allows, of 256 tokens on the CPU."""
    form = next(form for form in FORMS if form[0] == target)
    recording = record(*form)
    decoder = bundles.engine(*form).decoder(adapters=False)
    decoder.start(0, None, 310)
    for count in (300, 5, 1):
        decoder.append(0, tokens(count, count))
    assert expected == recording.shapes


def test_runs_near_the_end_of_a_fixed_cache(bundles: Bundles, record: Record) -> None:
    """Padding must not leave the cache: behind 500 of 512 tokens only single ones fit."""
    recording = record("portable", "fp32")
    decoder = bundles.engine("portable", "fp32").decoder(adapters=False)
    decoder.start(0, None, 512)
    decoder.append(0, tokens(500, 1))
    decoder.append(0, tokens(12, 2))
    assert [(1, 256, 0), (1, 256, 256)] == recording.shapes[:2]
    assert [(1, 1, begin) for begin in range(500, 512)] == recording.shapes[2:]
    assert [] == recording.faults


def test_a_short_rest_behind_a_kept_prefix(bundles: Bundles, record: Record) -> None:
    """Where only an empty row takes several tokens, a prompt is read anew unless little of it is left."""
    recording = record("dml", "fp16")
    decoder = bundles.engine("dml", "fp16").decoder(adapters=False)
    prompt = tokens(60, 1)
    decoder.start(0, None, 100, prompt)
    decoder.append(0, prompt)
    decoder.save_prefix(0, prompt)
    for rest, taken in ((0, 58), (3, 60), (20, 0)):
        again = [*prompt, *tokens(rest, 2)]
        assert taken == decoder.start(0, None, 100, again)
        decoder.append(0, again[taken:])
    singles = [(1, 1, begin) for begin in (58, 59, 60, 61, 62)]
    assert [(1, 64, 0), *singles, (1, 256, 0)] == recording.shapes
    assert [] == recording.faults


def test_a_step_of_the_cpu_form_binds_nothing(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second step on writing to arrays is all that is done between two runs."""
    engine = bundles.engine("cpu", "fp32")
    decoder, adapters = engine.decoder(adapters=True), bundles.adapters("cpu", "fp32", engine)
    for row, name in enumerate(adapters):
        decoder.start(row, adapters[name], 100)
        decoder.append(row, tokens(5, row))
    decoder.step([5, 6, 7])
    decoder.append(0, [5])
    calls: list[str] = []
    for part in (decoder._row_pass(next(iter(adapters.values()))), decoder._batch_pass):
        bound = part._binding
        for name in ("bind_ortvalue_input", "bind_ortvalue_output", "bind_input", "bind_output"):
            monkeypatch.setattr(bound, name, lambda *_, name=name: calls.append(name))
    decoder.step([8, 9, 10])
    decoder.append(0, [5])
    assert [] == calls


def test_changing_back_binds_nothing(bundles: Bundles) -> None:
    """The bindings of the last adapters stay; with a larger cache, of which they would hold the smaller, they go."""
    engine = bundles.engine("cpu", "fp32")
    decoder, adapters = engine.decoder(adapters=True), bundles.adapters("cpu", "fp32", engine)
    one, other = list(adapters.values())[:2]
    first = {}
    for adapter in (one, other):
        decoder.start(0, adapter, 100)
        first[adapter] = decoder.append(0, tokens(5, 1)).copy()
        assert decoder.swap_seconds > 0
    kept = [decoder._row_passes[adapter]._binding for adapter in (one, other)]
    for adapter in (one, other, one):
        decoder.start(0, adapter, 100)
        assert np.array_equal(first[adapter], decoder.append(0, tokens(5, 1)))
    assert kept == [decoder._row_passes[adapter]._binding for adapter in (one, other)]
    decoder.start(0, one, 100)
    assert 0 == decoder.swap_seconds
    decoder.start(0, one, 500)
    assert [one] == list(decoder._row_passes)
    decoder.release(one)
    assert {} == decoder._row_passes


def run_of(config: DecoderConfig, width: int, begin: int, **changes: object) -> Run:
    """A run of one row that keeps the rules, but for the changes."""
    numbers, form = config.architecture, config.graph
    capacity = form.shapes.get("max_length", (512,))[0]
    heads, size, count = numbers.num_key_value_heads, numbers.head_dim, 2 * numbers.num_hidden_layers
    values = {
        "input_ids": np.zeros((1, width), np.int64),
        "position_ids": begin + np.arange(width)[None],
        "seqlens_k": np.array([begin + width - 1], np.int32),
        "total_sequence_length": np.full(
            form.inputs.get("total_sequence_length", ()), begin + width, np.int32
        ),
        "logits_rows": np.array([width - 1]),
    }
    past = [Buffer(i << 32, (1, heads, capacity, size)) for i in range(1, count + 1)]
    new = [Buffer(buffer.address << 8, (1, heads, width, size)) for buffer in past]
    run = Run(
        inputs={name: values[name] for name in form.inputs},
        past=past,
        present=new if form.cache_update == "new_tokens" else past,
        output={LOGITS: Buffer(1, (1, numbers.vocab_size))},
    )
    return dataclasses.replace(run, **changes)


@pytest.mark.parametrize(
    ("target", "width", "begin", "fault"),
    [
        ("dml", 64, 0, None),
        ("dml", 1, 30, None),
        ("dml", 64, 30, "behind 30"),
        ("dml", 20, 0, "no bucket"),
        ("portable", 16, 30, None),
        ("portable", 15, 30, "no bucket"),
        ("portable", 256, 300, "256 tokens at 300 of 512"),
        ("cuda", 7, 30, None),
        ("cuda", 7, 510, "7 tokens at 510 of 512"),
    ],
)
def test_rules_of_one_row(target: str, width: int, begin: int, fault: str | None, bundles: Bundles) -> None:
    """Allowed runs pass, and forbidden ones are caught."""
    form = next(form for form in FORMS if form[0] == target)
    config = DecoderConfig.from_file(bundles.folder(*form) / DECODER_JSON)
    faults = list(RULES[target](run_of(config, width, begin), config))
    if fault is None:
        assert [] == faults
    else:
        assert 1 == len([text for text in faults if fault in text]), faults


def test_rules_of_buffers(bundles: Bundles) -> None:
    """Buffers that are shared where they must not be, or apart where they must be shared, are caught."""
    dml, portable, cpu = (
        DecoderConfig.from_file(bundles.folder(*form) / DECODER_JSON)
        for form in (("dml", "fp16"), ("portable", "fp32"), ("cpu", "fp32"))
    )
    apart = [Buffer(one.address + 1, one.shape) for one in run_of(dml, 1, 5).past]
    for target, config in (("dml", dml), ("cpu", cpu)):
        faults = list(RULES[target](run_of(config, 1, 5, present=apart), config))
        assert ["past and present are not the same buffers"] == faults
    fine = run_of(portable, 16, 5)
    faults = list(RULES["portable"](run_of(portable, 16, 5, present=fine.past), portable))
    assert {f"present of shape {fine.past[0].shape}", "past and present overlap"} == set(faults)
    smaller = [Buffer(one.address, (*one.shape[:2], 256, one.shape[3])) for one in fine.past]
    assert ["a cache of 256"] == list(RULES["portable"](run_of(portable, 16, 5, past=smaller), portable))


def test_rules_of_several_rows(bundles: Bundles) -> None:
    """Several tokens on several rows, which GroupQueryAttention refuses, are caught; single ones pass."""
    config = DecoderConfig.from_file(bundles.folder("cpu", "fp32") / DECODER_JSON)
    for width, expected in ((1, []), (3, ["3 tokens on 2 rows"])):
        one = run_of(config, width, 0)
        twice = [Buffer(buffer.address, (2, *buffer.shape[1:])) for buffer in one.past]
        inputs = {
            **one.inputs,
            "input_ids": np.zeros((2, width), np.int64),
            "seqlens_k": np.full(2, width - 1, np.int32),
        }
        run = dataclasses.replace(one, inputs=inputs, past=twice, present=twice)
        assert expected == list(RULES["cpu"](run, config))


def test_a_forbidden_run_of_the_decoder_is_recorded(
    bundles: Bundles, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that takes DirectML for able to append is caught in the act."""
    recording = record("dml", "fp16")
    engine = bundles.engine("dml", "fp16")
    monkeypatch.setattr(
        engine, "_capabilities", dataclasses.replace(engine._capabilities, multi_token_append=True)
    )
    decoder = engine.decoder(adapters=False)
    decoder.start(0, None, 100)
    decoder.append(0, tokens(5, 1))
    assert [] == recording.faults
    decoder.append(0, tokens(64, 2))
    assert ["64 tokens behind 5, as if they were the first"] == recording.faults
