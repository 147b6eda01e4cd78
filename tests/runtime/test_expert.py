"""One expert: what it answers, where it stops, and what it refuses."""

from __future__ import annotations

import json
import shutil
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from support.extras import requires_export
from support.golden import with_base
from support.rows import begun
from support.running import (
    CONTEXT,
    PROMPT,
    SHORT_CONTEXT,
    Packages,
    active,
    engine_of,
    engines,
    greedy,
    prompt_ids,
)

from hivellm_ort import (
    AdapterError,
    ContextLengthError,
    Expert,
    InferenceError,
    IntegrityError,
    LoadError,
    ManifestError,
)
from hivellm_ort.contract import Architecture
from hivellm_ort.engine import decoder
from hivellm_ort.engine.kv_cache import KVCache
from hivellm_ort.errors import OutOfMemoryError


def test_greedy_is_the_most_likely_token_each_step(lora: Expert) -> None:
    """`generate` and a loop over the engine choose the same tokens, and the prompt is the template's."""
    token_ids = prompt_ids(lora, PROMPT)
    result = lora.generate(PROMPT, max_tokens=40)
    assert tuple(token for token, _ in greedy(lora, token_ids, steps=40, capacity=256)) == result.tokens
    assert len(token_ids) == result.prompt_tokens
    assert 40 == result.completion_tokens
    assert "expert-lora" == result.expert


def test_greedy_is_what_peft_generates(packages: Packages, lora: Expert) -> None:
    """The same answer as `generate` of transformers with PEFT's adapter."""
    requires_export()
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(packages.model, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, packages.lora_folder).eval()
    token_ids = torch.tensor([prompt_ids(lora, PROMPT)])
    with torch.no_grad():
        answer = model.generate(
            input_ids=token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=32,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
        )
    expected = tuple(answer[0, token_ids.shape[1] :].tolist())
    assert expected == lora.generate(PROMPT, max_tokens=32).tokens


def test_merged_expert_answers_as_the_swapped_one(packages: Packages, dora: Expert) -> None:
    """Folded into the base or bound to it, an adapter gives the same answer."""
    with packages.load("merged") as merged:
        assert merged.adapter is None
        assert dora.generate(PROMPT, max_tokens=32).tokens == merged.generate(PROMPT, max_tokens=32).tokens


def test_text_is_the_tokens_decoded(lora: Expert) -> None:
    """The whole answer decoded at once is the text."""
    result = lora.generate(PROMPT, max_tokens=60)
    tokenizer = tokenizers.Tokenizer.from_file(str(engine_of(lora).folder / "tokenizer.json"))
    assert tokenizer.decode(list(result.tokens), skip_special_tokens=True) == result.text


def test_messages_and_system(lora: Expert) -> None:
    """Earlier turns, a system message and a schema lengthen the prompt by what they say."""
    plain = lora.generate(PROMPT, max_tokens=1).prompt_tokens
    turns = [{"role": "user", "content": PROMPT}]
    assert plain == lora.generate(messages=turns, max_tokens=1).prompt_tokens
    system = len(prompt_ids(lora, "be brief")) - len(prompt_ids(lora, ""))
    with_system = lora.generate(PROMPT, system="be brief", max_tokens=1).prompt_tokens
    assert with_system - plain > system
    assert with_system < lora.generate(PROMPT, system="be brief", schema="t(a)", max_tokens=1).prompt_tokens


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_seeded_sampling_repeats(seed: int, lora: Expert) -> None:
    """The same seed gives the same tokens, as a whole and as a stream."""
    options: dict[str, Any] = {"temperature": 1.5, "top_p": 0.95, "top_k": 100, "max_tokens": 40}
    first = lora.generate(PROMPT, seed=seed, **options)
    stream = lora.generate_stream(PROMPT, seed=seed, **options)
    pieces = list(stream)
    assert first.tokens == lora.generate(PROMPT, seed=seed, **options).tokens
    assert first.tokens == stream.result.tokens
    assert first.text == "".join(pieces)
    assert first.tokens != lora.generate(PROMPT, seed=seed + 1, **options).tokens


def test_greedy_ignores_the_seed(lora: Expert) -> None:
    """Temperature 0 is greedy with any other options, and so is top_k=1 at any temperature."""
    expected = lora.generate(PROMPT, max_tokens=30).tokens
    for options in ({"seed": 1}, {"seed": 2, "top_p": 0.5}, {"temperature": 0.0, "seed": 3, "top_k": 7}):
        assert expected == lora.generate(PROMPT, max_tokens=30, **options).tokens
    assert expected == lora.generate(PROMPT, max_tokens=30, temperature=2.0, top_k=1, seed=4).tokens


@settings(max_examples=40, deadline=None)
@given(begin=st.integers(0, 30), length=st.integers(1, 6), as_list=st.booleans())
def test_stop_string(packages: Packages, begin: int, length: int, as_list: bool) -> None:
    """The text ends before the first stop string."""
    with packages.load("lora") as expert:
        whole = expert.generate(PROMPT, max_tokens=60)
        stop = whole.text[begin : begin + length]
        result = expert.generate(PROMPT, max_tokens=60, stop=["never there", stop] if as_list else stop)
    assert whole.text[: whole.text.find(stop)] == result.text
    assert "stop" == result.finish_reason
    assert whole.tokens[: result.completion_tokens] == result.tokens


def test_length(lora: Expert) -> None:
    """`max_tokens` ends an answer after exactly so many."""
    for count in (1, 2, 17):
        result = lora.generate(PROMPT, max_tokens=count)
        assert "length" == result.finish_reason
        assert count == result.completion_tokens == len(result.tokens)


def test_end_token(packages: Packages, lora: Expert) -> None:
    """An end token is among the tokens, its text is not, and nothing follows it."""
    whole = lora.generate(PROMPT, max_tokens=40).tokens
    with packages.load("ending") as expert:
        result = expert.generate(PROMPT, max_tokens=40)
        before = expert.generate(PROMPT, max_tokens=result.completion_tokens - 1)
    assert "eos" == result.finish_reason
    assert whole[: whole.index(packages.eos) + 1] == result.tokens
    assert "length" == before.finish_reason
    assert before.text == result.text


def test_end_token_as_the_last_that_is_allowed(packages: Packages) -> None:
    """An end token at `max_tokens` is an end, not a cut."""
    with packages.load("ending") as expert:
        count = expert.generate(PROMPT, max_tokens=40).completion_tokens
        assert "eos" == expert.generate(PROMPT, max_tokens=count).finish_reason


def test_manifest_gives_the_defaults(packages: Packages, tmp_path: Path) -> None:
    """Sampling options and length come from the manifest if the caller does not give them."""
    decoding = {"temperature": 1.2, "top_p": 0.9, "top_k": 50, "max_new_tokens": 11}
    package = with_base("lora", tmp_path / "own.expert", manifest={"training": {"decoding": decoding}})
    with (
        Expert.load(package, cache_dir=tmp_path / "cache", threads=1) as own,
        packages.load("lora") as plain,
    ):
        default = own.generate(PROMPT, seed=5)
        explicit = {"temperature": 1.2, "top_p": 0.9, "top_k": 50, "max_tokens": 11}
        assert plain.generate(PROMPT, seed=5, **explicit).tokens == default.tokens
        assert 11 == default.completion_tokens
        assert (
            plain.generate(PROMPT, max_tokens=7).tokens
            == own.generate(PROMPT, max_tokens=7, temperature=0).tokens
        )


def test_prompt_that_does_not_fit(short: Expert) -> None:
    """Both numbers are in the message, and no row is taken."""
    prompt = "x" * 200
    count = len(prompt_ids(short, prompt))
    for call in (short.generate, short.generate_stream):
        with pytest.raises(
            ContextLengthError, match=rf"prompt of {count} tokens.*context of {SHORT_CONTEXT} "
        ):
            call(prompt)
    assert 0 == active(short)


def test_answer_that_does_not_fit(short: Expert) -> None:
    """The context is used to its last token and not beyond."""
    count = len(prompt_ids(short, PROMPT))
    room = SHORT_CONTEXT - count
    with pytest.raises(
        ContextLengthError, match=rf"{count} tokens and max_tokens={room + 1} exceed"
    ) as caught:
        short.generate(PROMPT, max_tokens=room + 1)
    assert str(SHORT_CONTEXT) in str(caught.value)
    full = short.generate(PROMPT, max_tokens=room)
    assert ("length", room) == (full.finish_reason, full.completion_tokens)
    assert full.tokens == short.generate(PROMPT).tokens


def test_row_beyond_the_context(short: Expert) -> None:
    """The engine itself refuses what the context cannot hold, and says how much that is."""
    row = begun(engine_of(short), short.adapter, SHORT_CONTEXT)
    row.forward([5] * SHORT_CONTEXT)
    with pytest.raises(ContextLengthError, match=f"{SHORT_CONTEXT + 1} tokens .* context of {SHORT_CONTEXT}"):
        row.forward([5])


def test_growing_cache_changes_nothing(lora: Expert, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that grows many times gives the logits of one that is large from the start."""
    token_ids = prompt_ids(lora, PROMPT)
    large = list(greedy(lora, token_ids, steps=200, capacity=CONTEXT))
    monkeypatch.setattr(decoder, "_CAPACITY_STEP", 8)
    grown = list(greedy(lora, token_ids, steps=200, capacity=1))
    assert [token for token, _ in large] == [token for token, _ in grown]
    assert max(np.abs(a - b).max() for (_, a), (_, b) in zip(large, grown, strict=True)) < 1e-5


def test_answer_beyond_the_first_capacity(lora: Expert) -> None:
    """A long answer outgrows its first cache, and stays the same as with a large one."""
    expected = tuple(
        token for token, _ in greedy(lora, prompt_ids(lora, PROMPT), steps=400, capacity=CONTEXT)
    )
    assert expected == lora.generate(PROMPT, max_tokens=400).tokens


def test_prefill_in_chunks(lora: Expert, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt in pieces gives the logits it gives as a whole."""
    token_ids = prompt_ids(lora, "select name from users where age > 30 " * 6)
    whole = list(greedy(lora, token_ids, steps=10, capacity=1))
    for chunk in (8, len(token_ids) - 1):
        monkeypatch.setattr(decoder, "_HOST_CHUNK", chunk)
        pieces = list(greedy(lora, token_ids, steps=10, capacity=1))
        assert [token for token, _ in whole] == [token for token, _ in pieces]
        assert max(np.abs(a - b).max() for (_, a), (_, b) in zip(whole, pieces, strict=True)) < 1e-5


def test_cache_that_cannot_be_allocated() -> None:
    """The message gives the size, so that the caller knows what to lower."""
    architecture = Architecture("llama", 64, 96, 2, 4, 2, 1 << 10, 288, 1 << 40)
    with pytest.raises(OutOfMemoryError, match=r"a cache for 1099511627776 tokens needs \d+ MiB"):
        KVCache(architecture, rows=1, capacity=1 << 40)


def test_threads_do_not_disturb_each_other(packages: Packages, lora: Expert, dora: Expert) -> None:
    """Four generations at once, two an expert, give the tokens they give alone."""
    prompts = [f"question {number} " * number for number in range(1, 5)]
    jobs: list[tuple[Expert, str]] = list(zip([lora, dora, lora, dora], prompts, strict=True))
    alone = [expert.generate(prompt, max_tokens=60).tokens for expert, prompt in jobs]
    together: list[list[tuple[int, ...]]] = [[] for _ in jobs]
    barrier = threading.Barrier(len(jobs))

    def work(number: int) -> None:
        expert, prompt = jobs[number]
        barrier.wait()
        together[number].extend(expert.generate(prompt, max_tokens=60).tokens for _ in range(3))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [[tokens] * 3 for tokens in alone] == together
    assert 0 == active(lora)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 1.5},
        {"top_k": -1},
        {"max_tokens": 0},
        {"max_tokens": -3},
        {"seed": -1},
        {"stop": ""},
        {"stop": ["x"] * 17},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "system", "content": "x"}], "system": "y"},
    ],
    ids=str,
)
def test_bad_option(options: dict[str, Any], lora: Expert) -> None:
    """A value that makes no sense is a ValueError at the call, and the next request works."""
    for call in (lora.generate, lora.generate_stream):
        with pytest.raises(ValueError, match=next(iter(options)).rstrip("s")):
            call(PROMPT, **options)
    assert "length" == lora.generate(PROMPT, max_tokens=1).finish_reason


def test_nothing_to_answer(lora: Expert) -> None:
    """Neither prompt nor messages is a ValueError."""
    with pytest.raises(ValueError, match="nothing to answer"):
        lora.generate()


def test_use_after_close(packages: Packages) -> None:
    """A closed expert says so; closing again is fine, and no engine stays."""
    expert = packages.load("lora")
    engine = engine_of(expert)
    expert.close()
    expert.close()
    for call in (expert.generate, expert.generate_stream):
        with pytest.raises(InferenceError, match="'expert-lora' is closed"):
            call(PROMPT)
    assert engine not in engines()


@pytest.mark.parametrize(
    ("break_it", "error"),
    [
        (lambda root: (root / "manifest.json").unlink(), ManifestError),
        (lambda root: (root / "onnx" / "decoder.json").write_text("{"), ManifestError),
        (lambda root: (root / "onnx" / "tokenizer.json").unlink(), IntegrityError),
        (lambda root: (root / "onnx" / "generation_config.json").unlink(), IntegrityError),
        (lambda root: (root / "onnx" / "adapter.safetensors").write_bytes(b"x"), LoadError),
        (lambda root: [path.unlink() for path in root.rglob("adapter*.safetensors")], AdapterError),
    ],
    ids=["manifest", "decoder.json", "tokenizer", "generation_config", "adapter", "no-adapter"],
)
def test_failed_load_leaves_nothing(
    break_it: Callable[[Path], object], error: type[Exception], packages: Packages, tmp_path: Path
) -> None:
    """A folder that lacks a part is refused, and no engine stays in memory."""
    with tarfile.open(packages.lora) as archive:
        archive.extractall(tmp_path / "package", filter="data")
    with Expert.load(tmp_path / "package", cache_dir=packages.cache, threads=1) as expert:
        assert "expert-lora" == expert.name
    break_it(tmp_path / "package")
    before = engines()
    with pytest.raises(error):
        Expert.load(tmp_path / "package", cache_dir=packages.cache, threads=1)
    assert before == engines()


def test_graph_without_a_promised_input_is_refused(packages: Packages, tmp_path: Path) -> None:
    """A bundle whose decoder.json promises an input that its graph lacks is an error that names it."""
    with packages.load("lora") as expert:
        folder = expert._base.engine.folder
        bundle = tmp_path / "bundle"
        shutil.copytree(folder, bundle)
    document = json.loads((bundle / "decoder.json").read_bytes())
    document["sites"][0]["parts"][0]["bias"] = True
    (bundle / "decoder.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(LoadError, match=r"decoder\.adapters\.onnx .*qkv_proj\.bias"):
        Expert.load(packages.lora, base=bundle, cache_dir=packages.cache, threads=1)
