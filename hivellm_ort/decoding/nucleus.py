"""Drops the least important tokens up to a share of the total weight: top-p and typical-p.

The vocabulary is not sorted. A sorted sample gives two keys between which the threshold probably is, and only the
entries between them are sorted. Exact sums show whether the threshold was really there.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import NamedTuple, TypeAlias

import numpy as np

from hivellm_ort.decoding.arrays import BoolArray, DoubleArray, FloatArray, IntArray
from hivellm_ort.decoding.selection import block_sums

__all__ = ["Tail"]

_Lookup: TypeAlias = Callable[[IntArray], FloatArray]

_SAMPLE = 8192
_ERRORS, _SLACK = 2.5, 4  # tolerance of the sample: standard errors of a sum, and sample entries


class Tail(NamedTuple):
    """Drops the least important entries.

    Attributes:
        limit: Largest share of the total weight to drop, 0 to 1, compared in float32.
        total: Total weight.
        below: Share that was dropped before.
        rising: Whether weights rise with their keys. Then entries with equal keys are dropped one by one, lower
            indices first. Else they all stay if one stays.
    """

    limit: np.float32
    total: float
    below: float
    rising: bool

    def drop(
        self,
        weights: FloatArray,
        keys: FloatArray,
        exact: _Lookup,
        mask: BoolArray,
        *,
        guess: bool = True,
    ) -> bool:
        """Set the weights of the entries with the smallest keys to 0. The entry with the greatest key stays.

        Args:
            weights: float32 [n], none negative, their sum positive; changed.
            keys: float32 [n], no NaN; if weights rise with them, the weights themselves.
            exact: Returns exact keys at some indices, because `keys` may be rounded.
            mask: bool [n], a work buffer.
            guess: Whether to use a sample if that is faster.

        Returns:
            Whether it worked. About one guess in a hundred is wrong; then the weights are lost.
        """
        if not guess or keys.size < 2 * _SAMPLE:
            return self._settle(weights, exact, np.arange(keys.size), self.below, is_end=True)
        sample = _Sample.of(weights, keys, self)
        first, last = sample.around(0, float(self.limit) - self.below)
        below = self.below
        np.greater_equal(keys, sample.keys[first], out=mask)
        if first > 0:
            np.multiply(weights, mask, out=weights)
            below = 1 - float(block_sums(weights).sum()) / self.total
            # The sum up to `first` is known now, so the rest can be estimated much better.
            last = sample.around(first, float(sample.sums[first]) + float(self.limit) - below)[1]
        else:
            mask.fill(True)
        is_end = last >= sample.keys.size
        if not is_end:
            np.logical_and(mask, keys <= sample.keys[last], out=mask)
        return self._settle(weights, exact, np.flatnonzero(mask), below, is_end=is_end)

    def _settle(
        self,
        weights: FloatArray,
        exact: _Lookup,
        places: IntArray,
        below: float,
        *,
        is_end: bool,
    ) -> bool:
        """Drop entries among `places`. All entries below are dropped already; there are none above if `is_end`."""
        if np.float32(below) > self.limit or not places.size:
            return False
        found, part = exact(places), weights[places]
        if self.rising:
            ordered, part = np.sort(found), np.sort(part)  # several times faster than sorting places
        else:
            order = np.argsort(found)
            ordered, part = found[order], part[order]
        shares = (part / np.float32(self.total)).cumsum(dtype=np.float64)
        shares += below
        count = int(np.count_nonzero(shares.astype(np.float32) <= self.limit))
        if count == shares.size:
            if not is_end:
                return False
            count -= 1
        edge = ordered[count]
        weights[places[found < edge]] = 0
        ties = count - int(ordered.searchsorted(edge))
        if ties and self.rising:
            weights[places[np.flatnonzero(found == edge)[:ties]]] = 0
        return True


class _Sample(NamedTuple):
    """A sample of entries in the order of their keys. If weights rise with the keys, the weights are the keys.

    Attributes:
        keys: float32 [m].
        sums: float64 [m]: estimated share of the total weight up to this entry.
        unsure: float [m]: estimated share of this entry; 0 if it is exact.
    """

    keys: FloatArray
    sums: DoubleArray
    unsure: FloatArray | DoubleArray

    @classmethod
    def of(cls, weights: FloatArray, keys: FloatArray, tail: Tail) -> _Sample:
        stride = weights.size // _SAMPLE
        scale = stride / tail.total
        if tail.rising:
            # A sample estimates heavy entries badly, but they come last and are not reached.
            found = np.sort(weights[::stride])
            sums = found.cumsum(dtype=np.float64)
            sums *= scale
            return cls(found, sums, found * np.float32(scale))
        heavy = np.flatnonzero(weights > tail.total / _SAMPLE)
        light = weights[::stride] * scale
        light[light > stride / _SAMPLE] = 0
        found = np.concatenate([keys[::stride], keys[heavy]])
        order = np.argsort(found)
        shares = np.concatenate([light, weights[heavy] / tail.total])[order]
        unsure = np.concatenate([light, np.zeros(heavy.size)])[order]
        return cls(found[order], shares.cumsum(), unsure)

    def around(self, start: int, share: float) -> tuple[int, int]:
        """Return two entries between which the sum reaches `share`, given that it is exact at `start`."""
        at = int(self.sums.searchsorted(share))
        steps = self.unsure[start:at]
        error = _ERRORS * sqrt(max(float(steps @ steps) - float(steps.sum()) ** 2 / self.keys.size, 0.0))
        first, last = self.sums.searchsorted((share - error, share + error))
        return max(int(first) - _SLACK, 0), int(last) + _SLACK
