"""A stream: its pieces, its end, and what it gives back."""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import pytest
from support.running import PROMPT, Packages, active, engine_of, slowed

from hivellm_ort import Expert, InferenceError
from hivellm_ort.engine.forward_pass import ForwardPass


def test_pieces_are_the_text(lora: Expert) -> None:
    """The pieces joined are the result's text, none is empty, and the result is that of `generate`."""
    stream = lora.generate_stream(PROMPT, max_tokens=60)
    pieces = list(stream)
    whole = lora.generate(PROMPT, max_tokens=60)
    assert whole.text == "".join(pieces) == stream.result.text
    assert whole.tokens == stream.result.tokens
    assert "" not in pieces
    assert len(pieces) > 10
    assert [] == list(stream)


def test_result_before_the_end(lora: Expert) -> None:
    """There is no result before the last token."""
    stream = lora.generate_stream(PROMPT, max_tokens=60, processors=[slowed])
    for _ in range(3):
        with pytest.raises(InferenceError, match="has not ended"):
            _ = stream.result
        next(stream)
    stream.close()


def test_close_in_the_middle(lora: Expert) -> None:
    """The result is the text so far, and the row is free at once."""
    stream = lora.generate_stream(PROMPT, max_tokens=60, processors=[slowed])
    pieces = [next(stream) for _ in range(5)]
    assert 1 == active(lora)
    stream.close()
    stream.close()
    assert 0 == active(lora)
    result = stream.result
    assert "cancelled" == result.finish_reason
    assert result.text.startswith("".join(pieces))
    assert lora.generate(PROMPT, max_tokens=60).tokens[: result.completion_tokens] == result.tokens
    assert result.text == "".join([*pieces, *stream])
    assert [] == list(stream)


def test_end_of_a_with_block(lora: Expert) -> None:
    """Leaving the block in the middle closes; leaving it after the end keeps how it ended."""
    with lora.generate_stream(PROMPT, max_tokens=60, processors=[slowed]) as stream:
        next(stream)
    assert "cancelled" == stream.result.finish_reason
    with lora.generate_stream(PROMPT, max_tokens=5) as stream:
        list(stream)
    assert "length" == stream.result.finish_reason


def test_stream_that_is_dropped(lora: Expert) -> None:
    """A stream without references releases its row."""
    stream = lora.generate_stream(PROMPT, max_tokens=400, processors=[slowed])
    next(stream)
    assert 1 == active(lora)
    del stream
    gc.collect()
    deadline = time.monotonic() + 2
    while active(lora) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 0 == active(lora)


def test_interleaved_streams(packages: Packages, lora: Expert, dora: Expert) -> None:
    """Streams of different experts on one base, piece by piece in turn, give what they give alone."""
    with packages.load("ia3") as ia3:
        experts = [lora, dora, ia3, lora]
        assert 1 == len({id(engine_of(expert)) for expert in experts})
        alone = [expert.generate(PROMPT, max_tokens=50) for expert in experts]
        streams = [expert.generate_stream(PROMPT, max_tokens=50) for expert in experts]
        texts = ["" for _ in streams]
        going = set(range(len(streams)))
        while going:
            for number in sorted(going):
                piece = next(streams[number], None)
                if piece is None:
                    going.remove(number)
                else:
                    texts[number] += piece
        assert [result.tokens for result in alone] == [stream.result.tokens for stream in streams]
        assert [result.text for result in alone] == texts
        assert 3 == len({result.tokens for result in alone})


def test_closing_the_expert_lets_its_streams_end(packages: Packages) -> None:
    """An answer that is being generated when its expert is closed is finished."""
    expert = packages.load("lora")
    expected = expert.generate(PROMPT, max_tokens=40)
    stream = expert.generate_stream(PROMPT, max_tokens=40)
    first = next(stream)
    expert.close()
    assert expected.text == first + "".join(stream)
    assert expected.tokens == stream.result.tokens
    assert 0 == active(expert)


def test_timings_leave_the_caller_out(packages: Packages) -> None:
    """The answer does not wait for the caller between pieces; the adapter is bound once."""
    with packages.load("dora") as expert:
        stream = expert.generate_stream(PROMPT, max_tokens=6)
        begin = time.perf_counter()
        for _ in stream:
            time.sleep(0.2)
        wall = time.perf_counter() - begin
        first = stream.result.timings
        assert 0 < first.swap < first.prefill
        assert 0 < first.decode
        assert first.prefill + first.decode < wall - 0.2
        assert 5 / first.decode == pytest.approx(stream.result.tokens_per_second)
        second = expert.generate(PROMPT, max_tokens=6)
        assert 0.0 == second.timings.swap
        assert second.tokens == stream.result.tokens


def test_error_in_the_middle(lora: Expert) -> None:
    """A step that fails ends the stream with the error, and the next request is answered."""

    def fail(token_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        if token_ids.size > limit:
            raise TypeError("mine")
        return logits

    limit = len(lora.builder.build(PROMPT, {}).request.prompt_ids) + 3
    stream = lora.generate_stream(PROMPT, max_tokens=60, processors=[fail])
    expected = lora.generate(PROMPT, max_tokens=4).text
    pieces = []
    with pytest.raises(TypeError, match="mine"):
        pieces.extend(iter(stream))
    with pytest.raises(TypeError, match="mine"):
        _ = stream.result
    assert 0 == active(lora)
    assert expected.startswith("".join(pieces))
    assert "length" == lora.generate(PROMPT, max_tokens=3).finish_reason


def test_a_pass_that_fails(lora: Expert, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model itself fails every request of that pass has the error, and later ones are answered."""
    expected = lora.generate(PROMPT, max_tokens=20)
    run = ForwardPass.run

    def fail(self: Any, token_ids: Any, *rest: Any, **options: Any) -> Any:
        if len(token_ids) == 2:
            raise InferenceError("the pass failed")
        return run(self, token_ids, *rest, **options)

    monkeypatch.setattr(ForwardPass, "run", fail)
    streams = [lora.generate_stream(PROMPT, max_tokens=20, processors=[slowed]) for _ in range(2)]
    for stream in streams:
        with pytest.raises(InferenceError, match="the pass failed"):
            list(stream)
    assert expected.tokens == lora.generate(PROMPT, max_tokens=20).tokens
