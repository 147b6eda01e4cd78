"""A stream: its pieces, its end, and what it gives back."""

from __future__ import annotations

import gc
import time

import pytest
from running import PROMPT, Packages, engine_of, idle

from hivellm_ort import Expert, InferenceError, InferenceResult


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
    """There is no result while tokens may follow."""
    stream = lora.generate_stream(PROMPT, max_tokens=60)
    for _ in range(3):
        with pytest.raises(InferenceError, match="has not ended"):
            _ = stream.result
        next(stream)
    stream.close()


def test_close_in_the_middle(lora: Expert) -> None:
    """What was generated until then is the result, and the row is free at once."""
    stream = lora.generate_stream(PROMPT, max_tokens=60)
    pieces = [next(stream) for _ in range(5)]
    assert [] == idle(lora)
    stream.close()
    stream.close()
    assert 1 == len(idle(lora))
    result = stream.result
    assert "cancelled" == result.finish_reason
    assert "".join(pieces) == result.text
    assert lora.generate(PROMPT, max_tokens=60).tokens[: result.completion_tokens] == result.tokens
    assert [] == list(stream)


def test_end_of_a_with_block(lora: Expert) -> None:
    """Leaving the block in the middle closes; leaving it after the end keeps how it ended."""
    with lora.generate_stream(PROMPT, max_tokens=60) as stream:
        next(stream)
    assert "cancelled" == stream.result.finish_reason
    with lora.generate_stream(PROMPT, max_tokens=5) as stream:
        list(stream)
    assert "length" == stream.result.finish_reason
    assert 1 == len(idle(lora))


def test_stream_that_is_dropped(lora: Expert) -> None:
    """A stream that nobody refers to any more gives its row back."""
    stream = lora.generate_stream(PROMPT, max_tokens=60)
    next(stream)
    assert [] == idle(lora)
    del stream
    gc.collect()
    assert 1 == len(idle(lora))


def test_stream_that_never_began(lora: Expert) -> None:
    """Closed before its first piece a stream has an empty result and took no row."""
    stream = lora.generate_stream(PROMPT, max_tokens=60)
    stream.close()
    result: InferenceResult = stream.result
    assert ("", (), 0, "cancelled") == (
        result.text,
        result.tokens,
        result.completion_tokens,
        result.finish_reason,
    )
    assert 0.0 == result.tokens_per_second
    assert [] == idle(lora)


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
    assert [] == idle(expert)


def test_timings_leave_the_caller_out(packages: Packages) -> None:
    """Time the caller spends between pieces is not the library's; the adapter is bound once."""
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


def test_error_in_the_middle(lora: Expert, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that fails ends the stream, keeps what there was and gives the row back."""
    stream = lora.generate_stream(PROMPT, max_tokens=60)
    begun = [next(stream), next(stream)]
    monkeypatch.setattr("hivellm_ort.decoding.loop.Step", None)
    with pytest.raises(TypeError):
        next(stream)
    monkeypatch.undo()
    assert "cancelled" == stream.result.finish_reason
    assert "".join(begun) == stream.result.text
    assert 1 == len(idle(lora))
    assert "length" == lora.generate(PROMPT, max_tokens=3).finish_reason
