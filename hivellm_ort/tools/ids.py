"""Ids of calls."""

from __future__ import annotations

import secrets
import string

__all__ = ["CallIds"]

_LETTERS = string.ascii_letters + string.digits


class CallIds:
    """Random ids of the calls of one answer; the same index has the same id each time.

    They are `call_` and 24 letters and digits. Templates of Mistral take only ids of nine letters and digits.

    Args:
        family: Of the format in which the model writes calls.
    """

    def __init__(self, family: str | None) -> None:
        self._short = family in ("mistral", "mistral_args")
        self._ids: dict[int, str] = {}

    def __call__(self, index: int) -> str:
        """The id of the call with this index, from 0."""
        length, prefix = (9, "") if self._short else (24, "call_")
        # Several threads may ask at once.
        return self._ids.setdefault(index, prefix + "".join(secrets.choice(_LETTERS) for _ in range(length)))
