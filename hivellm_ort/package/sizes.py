"""Reads and writes sizes such as `20GB`."""

from __future__ import annotations

import re

from hivellm_ort.errors import OptionError

__all__ = ["format_size", "parse_size"]

_STEPS = ("KB", "MB", "GB", "TB")
_UNITS = {"": 1, "B": 1} | {
    name: base**power
    for power, unit in enumerate(_STEPS, start=1)
    for name, base in ((unit, 1000), (f"{unit[0]}IB", 1024))
}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `20GB`, `1.5 GiB` or `500000000`.

    Raises:
        OptionError (ValueError): The text is not a size.
    """
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*", text, re.ASCII)
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None:
        raise OptionError(f"{text[:80]!a} is not a size: write 20GB, 500MB, 1.5GiB or a number of bytes")
    return int(found[1]) if unit == 1 and found[1].isdigit() else int(float(found[1]) * unit)


def format_size(size: int) -> str:
    """Return a number of bytes in decimal units, such as `153.8 MB`."""
    value, unit = float(size), "B"
    for larger in _STEPS:
        # 999.95 would be written as 1000.0
        if value < 999.95:
            break
        value, unit = value / 1000, larger
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
