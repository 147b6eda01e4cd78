"""How tokens are cut into the runs that read them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hivellm_ort.engine.capabilities import Capabilities, Chunk
from hivellm_ort.engine.ort_values import FLOAT_TYPES


def form(*, append: bool = True, buckets: tuple[int, ...] = (), one_logits_row: bool = False) -> Capabilities:
    """A form of one row per run."""
    return Capabilities(
        batch=False,
        multi_token_append=append,
        buckets=buckets,
        max_length=None,
        past_present_share_buffer=True,
        one_logits_row=one_logits_row,
        greedy_output=False,
        position_ids=True,
        seqlens_k=True,
        total_sequence_length=(1,),
        cache_type=FLOAT_TYPES["float32"],
        memory=None,
        graph_capture=False,
    )


def test_any_number_of_tokens() -> None:
    """Long prompts are cut at the longest run; the last one has every token whose logits are needed."""
    sizes = {"length": 0, "capacity": 100, "max_chunk": 10}
    assert [Chunk(0, 7, 7, 1)] == list(form().chunks(7, logits_to_keep=1, **sizes))
    expected = [Chunk(0, 10, 10, 1), Chunk(10, 15, 15 - 10, 1), Chunk(15, 25, 10, 3)]
    assert expected == list(form().chunks(25, logits_to_keep=3, **sizes))
    assert [Chunk(0, 13, 13, 1), Chunk(13, 25, 12, 12)][1] == list(
        form().chunks(25, logits_to_keep=12, **sizes)
    )[-1]


FORMS = st.builds(
    form,
    append=st.booleans(),
    buckets=st.sets(st.integers(2, 40), max_size=4).map(
        lambda sizes: tuple(sorted({1, *sizes})) if sizes else ()
    ),
    one_logits_row=st.booleans(),
)


@given(FORMS, st.integers(1, 90), st.integers(0, 30), st.integers(0, 10), st.integers(1, 50), st.data())
def test_every_plan(
    capabilities: Capabilities, count: int, length: int, spare: int, max_chunk: int, data: st.DataObject
) -> None:
    """Every token is in one run, every needed logit comes from one, and no run is what the form forbids."""
    kept = data.draw(st.integers(1, count))
    capacity = length + count + spare
    sizes = {"length": length, "capacity": capacity, "max_chunk": max_chunk}
    runs = list(capabilities.chunks(count, logits_to_keep=kept, **sizes))
    assert [0, *(run.end for run in runs)] == [*(run.begin for run in runs), count]
    given_logits = [
        token
        for run in runs
        for token in range(run.end - run.logits_to_keep, run.end)
        if token >= count - kept
    ]
    assert list(range(count - kept, count)) == given_logits
    for run in runs:
        size, past = run.end - run.begin, length + run.begin
        assert 1 <= run.logits_to_keep <= size <= run.width
        assert past + run.width <= capacity
        assert run.width in capabilities.buckets or not capabilities.buckets
        assert run.width == size or capabilities.buckets
        assert run.width == 1 or past == 0 or capabilities.multi_token_append
        assert run.logits_to_keep == 1 or not capabilities.one_logits_row
        if not capabilities.buckets:
            assert size <= max(max_chunk, kept)
