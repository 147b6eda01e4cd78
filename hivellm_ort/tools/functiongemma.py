"""Parses arguments in FunctionGemma's format: `{city:<escape>Paris<escape>,days:3}`."""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["parse_arguments"]

_ESCAPE = "<escape>"
_KEY = re.compile(r"[^:,{}\[\]<]+")
_BARE = re.compile(r"[^,{}\[\]<]+")
_WORDS: dict[str, Any] = {
    "true": True,
    "false": False,
    "null": None,
    "True": True,
    "False": False,
    "None": None,
}
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_DEEPEST = 64


def parse_arguments(body: str) -> str | None:
    """Return arguments as the JSON text of an object; None if they are not in FunctionGemma's format.

    Texts are enclosed in two `<escape>`. Numbers, `true`, `false` and `null` are not. Any other word that is not
    enclosed is a text too.
    """
    reader = _Reader(body.strip())
    try:
        value = reader.value(0)
    except _WrongTextError:
        return None
    if not isinstance(value, dict) or reader.place != len(reader.text):
        return None
    return json.dumps(value, ensure_ascii=False)


class _WrongTextError(Exception):
    pass


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0

    def value(self, depth: int) -> Any:
        if depth > _DEEPEST:
            raise _WrongTextError
        if self._take("{"):
            return self._mapping(depth)
        if self._take("["):
            return self._list(depth)
        if self._take(_ESCAPE):
            return self._escaped()
        return self._bare()

    def _mapping(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._take("}"):
            return found
        while True:
            key = self._escaped() if self._take(_ESCAPE) else self._match(_KEY).strip()
            self._need(":")
            if key in found:
                raise _WrongTextError
            found[key] = self.value(depth + 1)
            if self._take("}"):
                return found
            self._need(",")

    def _list(self, depth: int) -> list[Any]:
        found: list[Any] = []
        if self._take("]"):
            return found
        while True:
            found.append(self.value(depth + 1))
            if self._take("]"):
                return found
            self._need(",")

    def _escaped(self) -> str:
        end = self.text.find(_ESCAPE, self.place)
        if end < 0:
            raise _WrongTextError
        text = self.text[self.place : end]
        self.place = end + len(_ESCAPE)
        return text

    def _bare(self) -> Any:
        word = self._match(_BARE).strip()
        if word in _WORDS:
            return _WORDS[word]
        return json.loads(word) if _NUMBER.fullmatch(word) and len(word) < 1000 else word

    def _take(self, literal: str) -> bool:
        taken = self.text.startswith(literal, self.place)
        self.place += len(literal) * taken
        return taken

    def _need(self, literal: str) -> None:
        if not self._take(literal):
            raise _WrongTextError

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.place)
        if found is None:
            raise _WrongTextError
        self.place = found.end()
        return found[0]
