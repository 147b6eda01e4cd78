"""Tokens that the graph chooses: as numpy would of its logits, and nothing else is fetched where they do."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.extras import requires_export

requires_export()

import onnx_ir as ir
from forms import DEVICE, Bundles, course, tokens
from recording import RULES, Recording
from support import tiny
from support.exporting import copied, edit_json, edit_tensors

from hivellm_export.pipeline import export
from hivellm_ort import Expert, ExpertManager, LoadError
from hivellm_ort.contract import BASE_GRAPH, DECODER_JSON, GREEDY_OUTPUT, LOGITS, DecoderConfig
from hivellm_ort.engine.capabilities import Capabilities
from hivellm_ort.engine.devices import Placement
from hivellm_ort.engine.providers import CPU
from hivellm_ort.engine.session import Engine

FORM = ("cuda", "fp16")
SQL = "select name from users where age > 30 "
PLAIN: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "prompt_lookup": False}


class Choosing:
    """A decoder that is asked for tokens, always or every other time, instead of logits.

    Attributes:
        asked: for every run of it, whether for tokens.
    """

    def __init__(self, decoder: Any, *, always: bool):
        self._decoder, self._always = decoder, always
        self.asked: list[bool] = []

    def append(self, row: int, token_ids: list[int], logits_to_keep: int = 1) -> np.ndarray:
        """See `Decoder`."""
        return self._decoder.append(row, token_ids, logits_to_keep, greedy=self._ask())

    def step(self, token_ids: list[int]) -> np.ndarray:
        """See `Decoder`."""
        return self._decoder.step(token_ids, greedy=self._ask())

    def _ask(self) -> bool:
        self.asked.append(self._always or len(self.asked) % 2 == 0)
        return self.asked[-1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)


@pytest.mark.parametrize("always", [True, False], ids=["always", "alternately"])
@pytest.mark.parametrize("placement", [Placement(CPU), DEVICE], ids=["host", "device"])
@pytest.mark.parametrize("form", [FORM, ("cuda", "bf16")], ids="-".join)
def test_course(
    form: tuple[str, str],
    placement: Placement,
    always: bool,
    bundles: Bundles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole course of requests gives the tokens of its logits, and no run gives both."""
    engine = bundles.engine(*form, placement)
    expected = course(engine.decoder(adapters=True), bundles.adapters(*form, engine))
    recording = Recording(monkeypatch, RULES["cuda"], engine.config)
    engine = bundles.engine(*form, placement)
    decoder = Choosing(engine.decoder(adapters=True), always=always)
    found = course(decoder, bundles.adapters(*form, engine))  # type: ignore[arg-type]
    assert [] == recording.faults
    kinds = {np.dtype(np.int64): GREEDY_OUTPUT, np.dtype(np.float32): LOGITS}
    assert {*kinds.values()} >= {name for run in recording.runs for name in run.output}
    assert (len(found) if always else len(found) // 2) <= sum(one.dtype == np.int64 for one in found)
    for logits, one in zip(expected, found, strict=True):
        assert np.array_equal(logits.argmax(axis=-1) if one.dtype == np.int64 else logits, one)
    if always:
        assert {GREEDY_OUTPUT} == {name for run in recording.runs for name in run.output}


def test_graphs_without_it_give_logits(bundles: Bundles, tmp_path: Path) -> None:
    """What cannot choose, or does not say that it can, as before contract 1.5, is asked in vain."""
    older = copied(bundles.folder(*FORM), tmp_path / "bundle")
    form = json.loads((older / DECODER_JSON).read_text())["graph"]
    assert form.pop("greedy_output")
    edit_json(older / DECODER_JSON, graph=form, contract_version="1.4")
    for folder in (bundles.folder("cpu", "fp32"), older):
        decoder = Engine(folder, placement=Placement(CPU), threads=1).decoder(adapters=False)
        decoder.start(0, None, 100)
        logits = decoder.append(0, tokens(10, 1), greedy=True)
        assert (np.float32, 2) == (logits.dtype, logits.ndim)


def test_the_first_of_equal_ones(tmp_path: Path) -> None:
    """Tokens 2n and 2n + 1 are always as likely: the graph chooses 2n."""
    folder = tiny.save_model(tmp_path / "model", "llama")

    def pair(tensors: dict[str, Any]) -> None:
        embedding = tensors["model.embed_tokens.weight"]
        embedding[1::2] = embedding[::2]

    edit_tensors(folder / "model.safetensors", pair)
    export(folder, [], tmp_path / "bundle", target="cuda")
    engine = Engine(tmp_path / "bundle", placement=Placement(CPU), threads=1)
    decoder = engine.decoder(adapters=False)
    prompt = tokens(60, 1)
    decoder.start(0, None, 100)
    logits = decoder.append(0, prompt, 60).copy()
    assert np.array_equal(logits[:, ::2], logits[:, 1::2])
    decoder.truncate(0, 0)
    chosen = decoder.append(0, prompt, 60, greedy=True)
    assert np.array_equal(logits.argmax(axis=-1), chosen)
    assert not (chosen % 2).any()


def changed(folder: Path, copy: Path, change: Callable[[ir.Graph], None]) -> Engine:
    """An engine on a copy of a bundle with another graph."""
    shutil.copytree(folder, copy)
    model = ir.load(folder / BASE_GRAPH)
    change(model.graph)
    ir.save(model, copy / BASE_GRAPH)
    return Engine(copy, placement=Placement(CPU), threads=1)


def test_no_token_of_the_vocabulary(cuda: dict[str, Path], tmp_path: Path) -> None:
    """Where no logit is greater than others, CUDA has been seen to give the largest int32: it becomes -1."""

    def sentinel(graph: ir.Graph) -> None:
        chosen = graph.outputs[-1].producer()
        assert chosen is not None
        shift = ir.node("Constant", [], {"value": ir.tensor(np.array([2**31 - 1, 0], np.int64))})
        add = ir.node("Add", [chosen.outputs[0], shift.outputs[0]])
        chosen.outputs[0].name, add.outputs[0].name = "index", GREEDY_OUTPUT
        add.outputs[0].dtype, add.outputs[0].shape = ir.DataType.INT64, ir.Shape(("rows",))
        graph.extend([shift, add])
        graph.outputs[-1] = add.outputs[0]

    decoder = changed(cuda["bundle"], tmp_path / "bundle", sentinel).decoder(adapters=False)
    decoder.start(0, None, 100)
    logits = decoder.append(0, tokens(9, 1), 2).copy()
    decoder.truncate(0, 7)
    assert [-1, logits[1].argmax()] == decoder.append(0, tokens(9, 1)[7:], 2, greedy=True).tolist()


def test_output_that_is_missing(cuda: dict[str, Path], tmp_path: Path) -> None:
    """A graph without the output that `decoder.json` promises is refused when it is loaded."""
    engine = changed(cuda["bundle"], tmp_path / "bundle", lambda graph: graph.outputs.pop())
    with pytest.raises(
        LoadError, match=r"decoder\.onnx .*has no output token_ids, which decoder\.json promises"
    ):
        engine.decoder(adapters=False)


@pytest.fixture(scope="module")
def cuda(work: Path) -> dict[str, Path]:
    """Packages for cuda of two experts on a llama, which the CPU provider runs as they are; and their base."""
    folder = tiny.save_model(work / "llama", "llama", max_position_embeddings=512)
    # <|im_end|> is never the most likely token: answers are as long as a test wants them.
    edit_tensors(
        folder / "model.safetensors", lambda tensors: tensors["model.embed_tokens.weight"][2].fill(0)
    )
    experts = []
    for seed, kind in enumerate(("lora", "dora"), 1):
        adapter = tiny.save_adapter(work / f"llama-{kind}", folder, tiny.adapter_config(kind), seed=seed)
        experts.append(tiny.with_manifest(adapter, f"expert-{kind}"))
    export(folder, experts, work / "llama-cuda", target="cuda", thin=False)
    export(folder, [], work / "llama-base", target="cuda")
    found = {kind: next((work / "llama-cuda").glob(f"*{kind}*.expert")) for kind in ("lora", "dora")}
    return {**found, "bundle": work / "llama-base"}


class Asked:
    """A manager of both experts, and the runs that its answers took."""

    def __init__(self, manager: ExpertManager, recording: Recording):
        self.manager, self.recording = manager, recording

    def outputs(self, do: Callable[[ExpertManager], Any]) -> tuple[Any, list[str]]:
        """What it gives, and what every run for that gave."""
        self.recording.runs.clear()
        found = do(self.manager)
        assert [] == self.recording.faults
        return found, [name for run in self.recording.runs for name in run.output]


@pytest.fixture
def load(
    cuda: dict[str, Path], work: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[bool], Asked]]:
    """Load both experts for graphs that choose tokens, or as if they did not; no earlier prompt is kept."""
    managers: list[ExpertManager] = []
    capabilities = Capabilities.of.__func__  # type: ignore[attr-defined]

    def start(greedy: bool) -> Asked:
        def of(cls: type[Capabilities], *arguments: Any) -> Capabilities:
            return dataclasses.replace(capabilities(cls, *arguments), greedy_output=greedy)

        monkeypatch.setattr(Capabilities, "of", classmethod(of))
        config = DecoderConfig.from_file(cuda["bundle"] / DECODER_JSON)
        recording = Recording(monkeypatch, RULES["cuda"], config)
        # Sessions are shared by what is asked for: as many threads as no other test here.
        options: dict[str, Any] = {"device": "cuda", "fallback": True, "threads": 3 + len(managers)}
        manager = ExpertManager(cache_dir=work / "cache-cuda", trust="off", **options)
        managers.append(manager)
        for kind in ("lora", "dora"):
            manager.load_expert(kind, cuda[kind])
        return Asked(manager, recording)

    yield start
    for manager in managers:
        manager.close()


def tokens_of(results: Any) -> Any:
    """The tokens of results."""
    return [result.tokens for result in results]


def alone(manager: ExpertManager) -> Any:
    """Single requests, the second of the same prompt with a kept prefix."""
    return tokens_of(manager.generate(kind, SQL * 3, **PLAIN) for kind in ("lora", "dora") for _ in range(2))


def together(manager: ExpertManager) -> Any:
    """Several requests of both experts in one batch, of different lengths."""
    requests = [(kind, prompt) for prompt in ("a", SQL, SQL * 4, "x y") for kind in ("lora", "dora")]
    return tokens_of(manager.generate_batch(requests, batch_size=3, **PLAIN))


def guessed(manager: ExpertManager) -> Any:
    """Prompt lookup."""
    options = {**PLAIN, "prompt_lookup": True, "max_tokens": 120}
    results = [manager.generate(kind, SQL * 3, **options) for kind in ("lora", "dora")]
    assert sum(result.accepted_tokens for result in results) > 8
    return tokens_of(results)


def streamed(manager: ExpertManager) -> Any:
    """A stream."""
    stream = manager.generate_stream("dora", SQL, **PLAIN)
    return "".join(stream), stream.result.tokens


def base(manager: ExpertManager) -> Any:
    """The base without an expert, and guesses in a batch, which catches up."""
    options = {**PLAIN, "prompt_lookup": True, "max_tokens": 60}
    several = manager.generate_batch([("lora", SQL * 3), ("dora", SQL * 3)], **options)
    return manager.generate("base", SQL, **PLAIN).tokens, tokens_of(several)


@pytest.mark.parametrize("do", [alone, together, guessed, streamed, base])
def test_greedy_requests(do: Callable[[ExpertManager], Any], load: Callable[[bool], Asked]) -> None:
    """The tokens are those chosen from logits, and no run fetches logits."""
    expected, names = load(False).outputs(do)
    assert {LOGITS} == set(names)
    found, names = load(True).outputs(do)
    assert expected == found
    assert {GREEDY_OUTPUT} == set(names)
    assert len(names) > 5


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "seed": 3},
        {"logprobs": 2},
        {"repetition_penalty": 1.3},
        {"regex": "[a-z ]{30}"},
        {"processors": [lambda _, logits: logits]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_requests_that_need_logits(options: dict[str, Any], load: Callable[[bool], Asked]) -> None:
    """Every run of such a request, alone, gives logits."""
    _, names = load(True).outputs(lambda manager: manager.generate("lora", "a b c", **{**PLAIN, **options}))
    assert {LOGITS} == set(names)
    assert len(names) > 3


def test_beside_a_request_that_needs_logits(load: Callable[[bool], Asked]) -> None:
    """Steps of both take logits, and afterwards the other goes on without; the answers are as alone."""

    def both(manager: ExpertManager) -> Any:
        rows = {"temperature": [0, 0.7], "seed": [None, 5], "max_tokens": [40, 10]}
        requests = [("lora", SQL), ("dora", SQL)]
        return tokens_of(manager.generate_batch(requests, **{**PLAIN, **rows}))

    expected, _ = load(False).outputs(both)
    found, names = load(True).outputs(both)
    assert expected == found
    assert [GREEDY_OUTPUT, GREEDY_OUTPUT] == [names[0], names[-1]]
    assert LOGITS in names


def test_expert_alone(cuda: dict[str, Path], work: Path) -> None:
    """A package loaded as any other, where the CPU may take over."""
    options: dict[str, Any] = {"device": "cuda", "fallback": True, "cache_dir": work / "cache-cuda"}
    with Expert.load(cuda["lora"], trust="off", threads=1, **options) as expert:
        assert expert.base.graph.greedy_output
        assert 24 == expert.generate(SQL, **PLAIN).completion_tokens
