"""Regular expressions for whole numbers of any size, and exact numbers of JSON."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

__all__ = ["as_json", "exact", "is_large", "range_regex"]

_SAFE = 2**53  # up to here a double holds every whole number


def exact(value: int | float) -> Fraction:
    """Return the exact value of a number in JSON; for a double that of its shortest decimal."""
    return Fraction(value) if isinstance(value, int) else Fraction(Decimal(repr(value)))


def as_json(value: Fraction) -> int | float:
    """Return a number as `json.dumps` writes it."""
    return value.numerator if value.denominator == 1 else float(value)


def is_large(value: Fraction | None) -> bool:
    """Return whether a number is a whole number beyond 2^53, which a double may not hold."""
    return value is not None and abs(value) > _SAFE


def range_regex(low: int | None, high: int | None) -> str:
    """Return a regular expression of the whole numbers from `low` to `high`, in JSON.

    Args:
        low: The least number; None for no bound.
        high: The greatest number, not below `low`; None for no bound.
    """
    parts = []
    if low is None or low < 0:
        most = None if low is None else -low
        parts.append(f"-(?:{_natural(max(1, -high) if high is not None else 1, most)})")
    if high is None or high >= 0:
        parts.append(_natural(max(0, low or 0), high))
    return "|".join(parts)


def _natural(low: int, high: int | None) -> str:
    """Return a regular expression of the numbers from `low`, at least 0, to `high`."""
    parts = ["0"] if low == 0 else []
    low = max(low, 1)
    digits = len(str(low))
    if high is None:
        parts += [_same_length(str(low), "9" * digits), f"[1-9][0-9]{{{digits},}}"]
        return "|".join(parts)
    while digits <= len(str(high)) and low <= high:
        end = min(high, 10**digits - 1)
        parts.append(_same_length(str(low), str(end)))
        low, digits = 10**digits, digits + 1
    return "|".join(parts)


def _same_length(low: str, high: str) -> str:
    """Return a regular expression of the numbers between two numbers with the same number of digits."""
    if not low:
        return ""
    if low[0] == high[0]:
        return low[0] + _same_length(low[1:], high[1:])
    rest = len(low) - 1
    first, last = int(low[0]), int(high[0])
    parts = []
    if set(low[1:]) - {"0"}:
        parts.append(low[0] + _same_length(low[1:], "9" * rest))
        first += 1
    if set(high[1:]) - {"9"}:
        parts.append(high[0] + _same_length("0" * rest, high[1:]))
        last -= 1
    if first <= last:
        parts.append(f"[{first}-{last}]" + (f"[0-9]{{{rest}}}" if rest else ""))
    return f"(?:{'|'.join(parts)})"
