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
_ERRORS, _SLACK = 2.5, 4  # how far a sample may mislead: standard errors of a sum, and entries of the sample


class Tail(NamedTuple):
    """The entries to drop.

    Attributes:
        limit: The share of all weight that they may have, 0 to 1, compared in float32.
        whole: All weight.
        below: The share that was dropped before.
        rising: Whether weights rise with their keys. Of equal keys the lower places are then dropped first;
            otherwise they all stay if one does.
    """

    limit: np.float32
    whole: float
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
        """Set the weights of the entries with the least keys to 0. The entry with the greatest key stays.

        Args:
            weights: float32 [n], none negative, their sum positive; changed.
            keys: float32 [n], no NaN; if weights rise with them, the weights themselves.
            exact: Gives the keys at some places, where `keys` may be rounded.
            mask: bool [n] to work in.
            guess: Use a sample, where that is faster.

        Returns:
            Whether it was done. If not, a guess was wrong, as happens once in a hundred times; weights are lost.
        """
        if not guess or keys.size < 2 * _SAMPLE:
            return self._settle(weights, exact, np.arange(keys.size), self.below, is_end=True)
        sample = _Sample.of(weights, keys, self)
        first, last = sample.around(0, float(self.limit) - self.below)
        below = self.below
        np.greater_equal(keys, sample.keys[first], out=mask)
        if first > 0:
            np.multiply(weights, mask, out=weights)
            below = 1 - float(block_sums(weights).sum()) / self.whole
            # The sum up to `first` is known now, so the rest of the way can be guessed far better.
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
        """Drop what is to be dropped among `places`; nothing below them is left, and nothing above if `is_end`."""
        if np.float32(below) > self.limit or not places.size:
            return False
        found, part = exact(places), weights[places]
        if self.rising:
            ordered, part = np.sort(found), np.sort(part)  # several times faster than sorting places
        else:
            order = np.argsort(found)
            ordered, part = found[order], part[order]
        shares = (part / np.float32(self.whole)).cumsum(dtype=np.float64)
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
    """Some entries, in the order of their keys; if weights rise with the keys, the weights are the keys.

    Attributes:
        keys: float32 [m].
        sums: float64 [m]: the share of all weight that all entries up to this one have, as far as can be told.
        unsure: float [m]: the share by which the sum rises here, 0 where that is certain.
    """

    keys: FloatArray
    sums: DoubleArray
    unsure: FloatArray | DoubleArray

    @classmethod
    def of(cls, weights: FloatArray, keys: FloatArray, tail: Tail) -> _Sample:
        stride = weights.size // _SAMPLE
        scale = stride / tail.whole
        if tail.rising:
            # Heavy entries, of which a sample says little, come last and are not reached.
            found = np.sort(weights[::stride])
            sums = found.cumsum(dtype=np.float64)
            sums *= scale
            return cls(found, sums, found * np.float32(scale))
        heavy = np.flatnonzero(weights > tail.whole / _SAMPLE)
        light = weights[::stride] * scale
        light[light > stride / _SAMPLE] = 0
        found = np.concatenate([keys[::stride], keys[heavy]])
        order = np.argsort(found)
        shares = np.concatenate([light, weights[heavy] / tail.whole])[order]
        unsure = np.concatenate([light, np.zeros(heavy.size)])[order]
        return cls(found[order], shares.cumsum(), unsure)

    def around(self, start: int, share: float) -> tuple[int, int]:
        """Return two entries between which the sum reaches `share`, if it is right at `start`."""
        at = int(self.sums.searchsorted(share))
        steps = self.unsure[start:at]
        error = _ERRORS * sqrt(max(float(steps @ steps) - float(steps.sum()) ** 2 / self.keys.size, 0.0))
        first, last = self.sums.searchsorted((share - error, share + error))
        return max(int(first) - _SLACK, 0), int(last) + _SLACK
