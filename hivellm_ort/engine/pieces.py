"""Cut tokens into the runs that read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from hivellm_ort.engine.capabilities import Capabilities

__all__ = ["Piece", "pieces"]


class Piece(NamedTuple):
    """The tokens of one run.

    Attributes:
        begin: the first of them.
        end: behind the last.
        width: tokens of the run; those above `end - begin` are padding on the right.
        wanted: how many of the last tokens give logits, at least one.
    """

    begin: int
    end: int
    width: int
    wanted: int


def pieces(
    capabilities: Capabilities, count: int, *, length: int, capacity: int, wanted: int, longest: int
) -> Iterator[Piece]:
    """The runs that append tokens to one row.

    Args:
        capabilities: what a run may be.
        count: tokens to read, at least one.
        length: tokens in the row.
        capacity: tokens that its cache has room for, at least those of the row and these.
        wanted: of how many of the last tokens logits are needed.
        longest: tokens of a run where any number is allowed; the last run may have more, if it gives all logits.
    """
    # Where a run gives one row of logits, each of the last tokens has a run of its own.
    together = count - wanted + 1 if capabilities.one_logit else count
    cut = together - max(1 if capabilities.one_logit else wanted, longest)
    begin = 0
    while begin < count:
        at, left = length + begin, together - begin
        if left < 1 or (at > 0 and not capabilities.append):
            size = width = 1
        elif capabilities.buckets:
            # Padding takes room as well, so near the end of the cache only small buckets fit.
            fitting = [bucket for bucket in capabilities.buckets if at + bucket <= capacity]
            width = min((bucket for bucket in fitting if bucket >= left), default=max(fitting))
            size = min(left, width)
        else:
            size = width = min(longest, cut - begin) if begin < cut else left
        end = begin + size
        yield Piece(begin, end, width, max(end - max(begin, count - wanted), 1))
        begin = end
