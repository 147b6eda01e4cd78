"""Histograms."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

__all__ = ["Histogram", "HistogramSnapshot"]


@dataclass(frozen=True)
class HistogramSnapshot:
    """The state of a histogram at one moment.

    Attributes:
        bounds: Upper bounds of the buckets, ascending; one more bucket has no bound.
        counts: Values in each bucket, not cumulative, len(bounds) + 1.
        sum: Sum of all values.
        least: The smallest value; 0.0 without values.
        most: The largest value; 0.0 without values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    least: float
    most: float

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.counts)

    @property
    def cumulative(self) -> tuple[tuple[float, int], ...]:
        """Each bound and the number of values up to it. The last bound is infinite."""
        return tuple(zip((*self.bounds, float("inf")), accumulate(self.counts), strict=True))

    def percentile(self, share: float) -> float | None:
        """Estimate a quantile, `share` from 0 to 1; None without values.

        Values are assumed to be spread evenly over their bucket.
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
    """Counts values in buckets. Not thread-safe.

    Args:
        bounds: Upper bounds of the buckets, ascending; a value equal to a bound belongs to its bucket.
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
        """Return an immutable copy."""
        filled = any(self._counts)
        return HistogramSnapshot(
            bounds=self._bounds,
            counts=tuple(self._counts),
            sum=self._sum,
            least=self._least if filled else 0.0,
            most=self._most if filled else 0.0,
        )
