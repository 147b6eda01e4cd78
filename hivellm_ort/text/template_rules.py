"""Counts the cost of methods and filters of a chat template before they run.

A rule takes the budget and then the arguments of its method or filter, with the same names and defaults.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from hivellm_ort.text.budget import Budget, TemplateLimitError

__all__ = ["FILTERS", "METHODS", "tojson", "unknown_method"]

_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # where `splitlines` splits
_ENCODINGS = ("utf8", "utf16", "utf16le", "utf16be", "utf32", "ascii", "latin1")

Rule = Callable[..., Any]


def tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return the JSON of a value, as the filter of transformers: without jinja2's HTML escapes."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _length(value: Any) -> int:
    """Return the length of an indentation, separator or fill: a text or a number of spaces."""
    if isinstance(value, int):
        return max(value, 0)
    return len(value) if hasattr(value, "__len__") else 0


def _count(value: Any, part: Any) -> int:
    """Return how often a part occurs in a text or bytes; an upper bound if their types differ."""
    if type(value) is type(part) or (isinstance(value, str) and isinstance(part, str)):
        return int(value.count(part))
    return len(value) + 1


def _lines(text: Any) -> int:
    """Return an upper bound of the number of lines, without splitting the text."""
    ends: Any = _LINE_ENDS if isinstance(text, str) else (b"\n", b"\r")
    return 1 + sum(int(text.count(end)) for end in ends)


# Methods of texts, bytes, lists, mappings and numbers; `own` is the object.


def unknown_method(budget: Budget, own: Any, *args: Any, **kwargs: Any) -> None:
    """Count a method whose result is not larger than its input."""
    budget.read(own)
    for value in (*args, *kwargs.values()):
        budget.read(value)


def _searched(budget: Budget, own: Any, part: Any = "", *args: Any, **kwargs: Any) -> None:
    unknown_method(budget, own, part)
    budget.search(own, part)


def _unescaped(budget: Budget, own: Any) -> None:
    budget.step(len(own))


def _stripped(budget: Budget, own: Any) -> None:
    budget.step(len(own) + (len(own) * len(own) >> 10))


def _character_map(budget: Budget, own: Any, *texts: Any) -> None:
    for text in texts:
        budget.read(text)
        budget.step(_length(text))


def _padded(budget: Budget, own: Any, width: Any, fillchar: Any = " ") -> None:
    budget.require(4 * _length(width))


def _expandtabs(budget: Budget, own: Any, tabsize: Any = 8) -> None:
    budget.require(
        4 * (len(own) + len(own) * min(_length(tabsize), 8) + _count(own, "\t") * _length(tabsize))
    )


def _replace(budget: Budget, own: Any, old: Any, new: Any = "", count: Any = -1) -> None:
    budget.read(own)
    budget.search(own, old)
    size = len(own) + _count(own, old) * _length(new)
    if 4 * size > budget.bytes:
        budget.require(size if own.isascii() and new.isascii() else 4 * size)


def _joined(budget: Budget, own: Any, items: Any) -> None:
    if hasattr(items, "__len__"):
        budget.walk(items)
        budget.require(sum(_length(item) for item in items) * 4 + len(items) * len(own) * 4)


def _join(budget: Budget, own: Any, items: Any) -> list[Any]:
    if isinstance(items, str):
        budget.walk(items)
    items = list(items)
    _joined(budget, own, items)
    return [items]


def _translate(budget: Budget, own: Any, table: Any, /, delete: Any = b"") -> None:
    budget.read(table)
    values = table.values() if isinstance(table, Mapping) else table
    longest = max((_length(value) for value in values if isinstance(value, str)), default=1)
    budget.require(4 * len(own) * max(longest, 1))
    budget.step(len(own))


def _coded(budget: Budget, own: Any, encoding: Any = "utf-8", errors: Any = "strict") -> None:
    if str(encoding).lower().replace("-", "").replace("_", "") not in _ENCODINGS:
        raise TemplateLimitError(f"the chat template uses the encoding {str(encoding)[:40]!r}: use UTF-8")
    budget.require((4 if errors == "strict" else 100) * len(own))


def _split(budget: Budget, own: Any, sep: Any = None, maxsplit: Any = -1) -> None:
    budget.read(own)
    budget.search(own, sep)
    pieces = _count(own, sep) if sep is not None else len(own) // 2
    if isinstance(maxsplit, int) and maxsplit >= 0:
        pieces = min(pieces, maxsplit)
    budget.spend(pieces * 64 + (len(own) if own.isascii() else 4 * len(own)))


def _from_right(budget: Budget, own: Any, sep: Any = None, *args: Any, **kwargs: Any) -> None:
    # The time to search from the right, or for characters of a set, depends on both lengths.
    budget.step(len(own) * _length(sep) >> 6)
    budget.spend(len(own))


def _rsplit(budget: Budget, own: Any, sep: Any = None, maxsplit: Any = -1) -> None:
    _from_right(budget, own, sep)
    _split(budget, own, sep, maxsplit)


def _splitlines(budget: Budget, own: Any, keepends: Any = False) -> None:
    budget.spend(_lines(own) * 64 + len(own))


def _to_bytes(
    budget: Budget, own: Any, length: Any = 1, byteorder: Any = "big", *, signed: Any = False
) -> None:
    budget.require(_length(length))


def _copied(budget: Budget, own: Any) -> None:
    budget.walk(own, 1)


def _from_keys(budget: Budget, own: Any, keys: Any = (), value: Any = None) -> None:
    budget.walk(keys, 1)
    budget.read(keys)


def _looked_up(budget: Budget, own: Any, key: Any = None, default: Any = None) -> None:
    budget.read(key)


def _view(budget: Budget, own: Any) -> None:
    return None


METHODS: dict[str, Rule] = {
    **dict.fromkeys(("find", "index", "count", "partition"), _searched),
    "unescape": _unescaped,
    "striptags": _stripped,
    "maketrans": _character_map,
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _padded),
    "expandtabs": _expandtabs,
    "replace": _replace,
    "join": _join,
    "translate": _translate,
    **dict.fromkeys(("encode", "decode"), _coded),
    "split": _split,
    "rsplit": _rsplit,
    "splitlines": _splitlines,
    **dict.fromkeys(("strip", "lstrip", "rstrip", "rfind", "rindex", "rpartition"), _from_right),
    "to_bytes": _to_bytes,
    "copy": _copied,
    "fromkeys": _from_keys,
    "get": _looked_up,
    **dict.fromkeys(("items", "keys", "values"), _view),
}
"""Rules by method name. A rule may return a list of other arguments. The rule of all others is `unknown_method`."""


# Filters. The filter gets the result of its rule in place of the value.


def _cheap(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    return value


def _texts(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    return value if isinstance(value, str) else budget.text(value)


def _words(budget: Budget, value: Any) -> Any:
    """Count filters that split a text into words, with the memory of the words."""
    value = _texts(budget, value)
    budget.step(len(value) >> 4)
    budget.require(32 * len(value))
    return value


def _slow(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    """Count filters that wrap, escape or pretty-print. Their time may be quadratic."""
    size = sum(budget.measure(one)[0] for one in (value, *args, *kwargs.values()))
    budget.step(size + (size * size >> 10))
    return _texts(budget, value) if not isinstance(value, Mapping) else value


def _pprint(budget: Budget, value: Any, *args: Any) -> Any:
    _slow(budget, value)
    return value


def _wordwrap(
    budget: Budget,
    value: Any,
    width: Any = 79,
    break_long_words: Any = True,
    wrapstring: Any = None,
    break_on_hyphens: Any = True,
) -> Any:
    value = _slow(budget, value)
    budget.require(4 * len(value) * (1 + _length(wrapstring)))
    return value


def _center(budget: Budget, value: Any, width: Any = 80) -> Any:
    budget.require(4 * _length(width))
    return _texts(budget, value)


def _indent(budget: Budget, value: Any, width: Any = 4, first: Any = False, blank: Any = False) -> Any:
    value = _texts(budget, value)
    lines = _lines(value) + 1
    budget.spend(lines * 64)
    budget.require(4 * (len(value) + lines * _length(width)))
    return value


def _replaced(budget: Budget, value: Any, old: Any, new: Any, count: Any = None) -> Any:
    value = _texts(budget, value)
    _replace(budget, value, _texts(budget, old), _texts(budget, new))
    return value


def _format(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    value = _texts(budget, value)
    budget.printf(value, kwargs or args)
    return value


def _trim(budget: Budget, value: Any, chars: Any = None) -> Any:
    value = _texts(budget, value)
    if chars is not None:
        budget.step(len(value) * _length(chars) >> 6)
    return value


def _tojson(
    budget: Budget,
    value: Any,
    ensure_ascii: Any = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: Any = False,
) -> Any:
    weight, values, depth = budget.measure(value)
    if separators is not None and not isinstance(separators, list | tuple):
        raise TemplateLimitError(
            "the chat template writes JSON with separators that are not a list of two texts"
        )
    if indent is None and separators is None and 16 * weight < budget.bytes:
        return value
    between = 4 if separators is None else sum(map(_length, separators))
    inner = _length(indent) * (depth + 1)
    budget.require(weight + 4 * values * (between + inner))
    budget.step(values)
    return value


def _items(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    """Count filters that read every item once."""
    budget.walk(value)
    return value


def _mapped(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    """Count filters that call a filter or a test, or look up an attribute, for every item."""
    path = kwargs.get("attribute", args[0] if args else "")
    cost = 8 + (len(path) if isinstance(path, str) else 1)
    return budget.each(value, cost) if hasattr(value, "__iter__") else value


def _ordered(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    """Count filters that compare items with each other."""
    path = kwargs.get("attribute", args[0] if args else "")
    if not hasattr(value, "__len__"):
        value = list(value) if hasattr(value, "__iter__") else value
    if hasattr(value, "__len__"):
        length = len(value)
        rounds = length.bit_length() + 1
        budget.walk(value, 8 + rounds + (len(path) if isinstance(path, str) else 1))
        budget.step(rounds * budget.measure(value)[0] >> 6)
    return value


def _joins(budget: Budget, value: Any, d: Any = "", attribute: Any = None) -> Any:
    if not hasattr(value, "__iter__"):
        return value
    if isinstance(value, str):
        budget.walk(value)
    items = list(value)
    budget.walk(items, 4 + _length(attribute) if isinstance(attribute, str) else 4)
    weight = sum(len(i) * 4 if isinstance(i, str) else budget.measure(i)[0] for i in items)
    budget.require(weight + 4 * len(items) * len(budget.text(d)))
    return items


def _sum(budget: Budget, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    if not isinstance(start, int | float):
        raise TemplateLimitError("the chat template adds up values that are not numbers: start must be one")
    return _mapped(budget, value, attribute)


def _batch(budget: Budget, value: Any, linecount: Any, fill_with: Any = None) -> Any:
    if fill_with is not None:
        budget.require(16 * _length(linecount))
    return _items(budget, value)


def _reversed(budget: Budget, value: Any) -> Any:
    return budget.read(value) if isinstance(value, str) else _items(budget, value)


def _number(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(value, str | bytes):
        if len(value) > 10_000:
            raise TemplateLimitError("the chat template reads a number of more than 10000 digits")
        budget.step(len(value) + (len(value) * len(value) >> 12))
    return value


def _round(budget: Budget, value: Any, precision: Any = 0, method: Any = "common") -> Any:
    if isinstance(precision, int) and abs(precision) > 300:
        raise TemplateLimitError("the chat template rounds to more than 300 digits")
    return value


def _truncate(
    budget: Budget,
    value: Any,
    length: Any = 255,
    killwords: Any = False,
    end: Any = "...",
    leeway: Any = None,
) -> Any:
    budget.read(value)
    return value


FILTERS: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "abs",
            "attr",
            "count",
            "d",
            "default",
            "first",
            "items",
            "last",
            "length",
            "random",
        ),
        _cheap,
    ),
    **dict.fromkeys(("capitalize", "lower", "safe", "string", "upper"), _texts),
    **dict.fromkeys(("title", "wordcount"), _words),
    **dict.fromkeys(("e", "escape", "forceescape", "striptags", "urlencode", "urlize", "xmlattr"), _slow),
    "pprint": _pprint,
    "wordwrap": _wordwrap,
    "center": _center,
    "indent": _indent,
    "replace": _replaced,
    "format": _format,
    "trim": _trim,
    "tojson": _tojson,
    **dict.fromkeys(("list", "slice"), _items),
    "reverse": _reversed,
    **dict.fromkeys(("map", "reject", "rejectattr", "select", "selectattr"), _mapped),
    **dict.fromkeys(("dictsort", "groupby", "max", "min", "sort", "unique"), _ordered),
    "join": _joins,
    "sum": _sum,
    "batch": _batch,
    **dict.fromkeys(("filesizeformat", "float", "int"), _number),
    "round": _round,
    "truncate": _truncate,
}
"""Rules by filter name, one for every filter of the environment."""
