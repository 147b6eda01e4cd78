"""How tokens are cut into runs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hivellm_ort.engine.capabilities import Capabilities
from hivellm_ort.engine.device_arrays import FLOAT_TYPES
from hivellm_ort.engine.pieces import Piece, pieces


def form(*, append: bool = True, buckets: tuple[int, ...] = (), one_logit: bool = False) -> Capabilities:
    """A form of one row per run."""
    return Capabilities(
        batch=False,
        append=append,
        buckets=buckets,
        max_length=None,
        new_tokens=False,
        one_logit=one_logit,
        greedy=False,
        positions=True,
        lengths=True,
        total=(1,),
        cache_type=FLOAT_TYPES["float32"],
        memory=None,
        cuda_graph=False,
    )


def test_any_number_of_tokens() -> None:
    """Long prompts are cut at the longest run; the last one has every token whose logits are wanted."""
    sizes = {"length": 0, "capacity": 100, "longest": 10}
    assert [Piece(0, 7, 7, 1)] == list(pieces(form(), 7, wanted=1, **sizes))
    expected = [Piece(0, 10, 10, 1), Piece(10, 15, 15 - 10, 1), Piece(15, 25, 10, 3)]
    assert expected == list(pieces(form(), 25, wanted=3, **sizes))
    assert [Piece(0, 13, 13, 1), Piece(13, 25, 12, 12)][1] == list(pieces(form(), 25, wanted=12, **sizes))[-1]


FORMS = st.builds(
    form,
    append=st.booleans(),
    buckets=st.sets(st.integers(2, 40), max_size=4).map(
        lambda sizes: tuple(sorted({1, *sizes})) if sizes else ()
    ),
    one_logit=st.booleans(),
)


@given(FORMS, st.integers(1, 90), st.integers(0, 30), st.integers(0, 10), st.integers(1, 50), st.data())
def test_every_plan(
    can: Capabilities, count: int, length: int, spare: int, longest: int, data: st.DataObject
) -> None:
    """Every token is in one run, every wanted logit comes from one, and no run is what the form forbids."""
    wanted = data.draw(st.integers(1, count))
    capacity = length + count + spare
    runs = list(pieces(can, count, length=length, capacity=capacity, wanted=wanted, longest=longest))
    assert [0, *(run.end for run in runs)] == [*(run.begin for run in runs), count]
    given_logits = [
        token for run in runs for token in range(run.end - run.wanted, run.end) if token >= count - wanted
    ]
    assert list(range(count - wanted, count)) == given_logits
    for run in runs:
        size, at = run.end - run.begin, length + run.begin
        assert 1 <= run.wanted <= size <= run.width
        assert at + run.width <= capacity
        assert run.width in can.buckets or not can.buckets
        assert run.width == size or can.buckets
        assert run.width == 1 or at == 0 or can.append
        assert run.wanted == 1 or not can.one_logit
        if not can.buckets:
            assert size <= max(longest, wanted)
