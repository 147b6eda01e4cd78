"""Counts of values by size."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

__all__ = ["Histogram", "HistogramSnapshot"]


@dataclass(frozen=True)
class HistogramSnapshot:
    """A histogram as it was at one moment.

    Attributes:
        bounds: Upper bounds of the buckets, ascending; one more bucket has no bound.
        counts: Values in each bucket, not cumulated, len(bounds) + 1.
        sum: Of all values.
        least: The smallest value; 0.0 where there is none.
        most: The largest value; 0.0 where there is none.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    least: float
    most: float

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self.counts)

    @property
    def cumulative(self) -> tuple[tuple[float, int], ...]:
        """Each bound and how many values do not exceed it; the last bound is infinite."""
        return tuple(zip((*self.bounds, float("inf")), accumulate(self.counts), strict=True))

    def percentile(self, share: float) -> float | None:
        """Return the value that this share of all values, 0 to 1, does not exceed; None where there is none.

        An estimate: values are taken to be spread evenly over their bucket, within the least and the largest value.
        """
        rank = share * self.count
        below = 0
        for index, count in enumerate(self.counts):
            if count and below + count >= rank:
                low = max(self.least, self.bounds[index - 1] if index else self.least)
                high = min(self.most, self.bounds[index] if index < len(self.bounds) else self.most)
                return low + (high - low) * (rank - below) / count
            below += count
        return None


class Histogram:
    """Values counted in buckets; not thread-safe by itself.

    Args:
        bounds: Upper bounds of the buckets, ascending; a value equal to a bound is in its bucket.
    """

    __slots__ = ("_bounds", "_counts", "_least", "_most", "_sum")

    def __init__(self, bounds: Sequence[float]):
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._least = float("inf")
        self._most = float("-inf")

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value
        if value < self._least:
            self._least = value
        if value > self._most:
            self._most = value

    def read(self) -> HistogramSnapshot:
        """Return a copy that changes no more."""
        filled = any(self._counts)
        return HistogramSnapshot(
            bounds=self._bounds,
            counts=tuple(self._counts),
            sum=self._sum,
            least=self._least if filled else 0.0,
            most=self._most if filled else 0.0,
        )
