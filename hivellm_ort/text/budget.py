"""Limits the steps and bytes of one rendering of a chat template.

A template is an untrusted program. Its loops, calls and operators are counted before they run, so that no template
runs forever or fills the memory. Steps count executed parts of the template and values read. Bytes count values
made, kept or not. A long conversation raises both limits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set, ValuesView
from contextvars import ContextVar
from types import BuiltinMethodType, GeneratorType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

from hivellm_ort.errors import InferenceError

__all__ = ["BUDGET", "MAX_BITS", "MAX_BYTES", "MAX_STEPS", "Budget", "Size", "TemplateLimitError"]

MAX_STEPS = 1_000_000
"""Most steps of a rendering of a short conversation."""

MAX_BYTES = 32 << 20
"""Most bytes made by a rendering of a short conversation."""

_STEPS_PER_VALUE = 2_000  # for each role, text and argument of the conversation
_BYTES_PER_BYTE = 32  # for each byte of the conversation

MAX_BITS = 1 << 16
"""Most bits of an integer."""

_MAX_DEPTH = 200  # nesting of lists

_MAX_CHAIN = 50  # chained filters: each adds three calls to the stack

_SMALL = 1 << 32  # integers up to this need no check

_LONGEST_SEARCH = 1 << 22  # comparisons: the time of CPython's search depends on both lengths

_NUMBER = re.compile(r"\d+")


class TemplateLimitError(InferenceError):
    """A chat template exceeds a limit in any form of the conversation."""


Size = tuple[int, int, int]
"""Most bytes of a value as text or JSON; number of values in it; depth of nesting."""


class Budget:
    """The remaining steps and bytes of a rendering.

    Args:
        given: The conversation. It is measured only if the basic limits do not suffice.

    Attributes:
        steps: Remaining steps.
        bytes: Remaining bytes.
    """

    __slots__ = ("_chains", "_given", "_kept", "bytes", "max_bytes", "max_steps", "steps")

    def __init__(self, given: Any = None) -> None:
        self.steps = self.max_steps = MAX_STEPS
        self.bytes = self.max_bytes = MAX_BYTES
        self._given = given
        # The sandbox changes no lists, so each is measured once. It is kept alive, because its id is the key.
        self._kept: dict[int, tuple[Any, Size]] = {}
        self._chains: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def check(self) -> None:
        """Raise TemplateLimitError if a limit is exceeded."""
        if self.steps >= 0 and self.bytes >= 0:
            return
        if self._given is not None:
            given, self._given = self._given, None
            spent, self.steps = self.steps, MAX_STEPS
            weight, values, _ = self.measure(given)
            self.steps = spent + values * _STEPS_PER_VALUE
            self.bytes += weight * _BYTES_PER_BYTE
            self.max_steps += values * _STEPS_PER_VALUE
            self.max_bytes += weight * _BYTES_PER_BYTE
            self.check()
        elif self.steps < 0:
            raise TemplateLimitError(
                f"the chat template takes more than {self.max_steps} steps for these messages: it loops too often"
            )
        else:
            raise TemplateLimitError(
                f"the chat template makes more than {self.max_bytes} bytes of text and lists for these messages"
            )

    def spend(self, size: int) -> None:
        """Count made bytes."""
        self.bytes -= size
        if self.bytes < 0:
            self.check()

    def step(self, count: int) -> None:
        """Count steps."""
        self.steps -= count
        if self.steps < 0:
            self.check()

    def require(self, size: int) -> None:
        """Raise TemplateLimitError if fewer bytes remain. Call this before making them."""
        if size > self.bytes:
            self.bytes -= size
            self.check()
            self.bytes += size

    def measure(self, value: Any, depth: int = 0) -> Size:
        """Return the size of a value without writing it: lists that share items may be huge as text."""
        if isinstance(value, str):
            return (6 if value.isascii() else 12) * len(value) + 2, 1, 0  # as JSON escapes it
        kind = type(value)
        if kind is dict:
            return self._measure_all(value, (*value, *value.values()), depth)
        if kind is list or kind is tuple:
            return self._measure_all(value, value, depth)
        if value is None or kind is bool or kind is float:
            return 24, 1, 0
        if isinstance(value, int):
            return value.bit_length() // 3 + 24, 1, 0
        if isinstance(value, bytes | bytearray):
            return 4 * len(value) + 12, 1, 0
        if isinstance(value, Mapping):
            return self._measure_all(value, (*value.keys(), *value.values()), depth)
        if isinstance(value, list | tuple | Set | ValuesView):
            return self._measure_all(value, value, depth)
        if kind.__name__ == "Namespace":
            raise TemplateLimitError(
                "the chat template writes or compares a namespace, which has no size of its own"
            )
        if isinstance(value, MethodType | BuiltinMethodType):
            return self.measure(value.__self__, depth + 1)[0] + 256, 1, 0
        return 256, 1, 0

    def _measure_all(self, value: Any, items: Iterable[Any], depth: int) -> Size:
        kept = self._kept.get(id(value))
        if kept is not None:
            return kept[1]
        if depth > _MAX_DEPTH:
            raise TemplateLimitError(f"the chat template nests lists more than {_MAX_DEPTH} deep")
        self.step(len(value))
        weight, values, deepest = 16, 1, 0
        for item in items:
            if type(item) is str:
                weight += (6 if item.isascii() else 12) * len(item) + 10
                values += 1
                continue
            item_weight, item_values, item_depth = self.measure(item, depth + 1)
            weight += item_weight + 8
            values += item_values
            deepest = max(deepest, item_depth)
        if deepest >= _MAX_DEPTH:
            raise TemplateLimitError(f"the chat template nests lists more than {_MAX_DEPTH} deep")
        size = weight, values, deepest + 1
        self._kept[id(value)] = value, size
        return size

    def made(self, value: Any, source: Any = None) -> Any:
        """Count a new value and return it. Iterators count their items later.

        Args:
            value: The value.
            source: The value it was made from. The length of chains of iterators is limited.
        """
        kind = type(value)
        if kind is str or isinstance(value, str):
            self.bytes -= len(value) if value.isascii() else 4 * len(value)
        elif value is None or kind is bool or kind is float:
            pass
        elif kind is int:
            self.whole(value)
        elif isinstance(value, list | tuple):
            self.bytes -= 16 * len(value)
        elif isinstance(value, bytes):
            self.bytes -= len(value)
        elif isinstance(value, Set | Mapping):
            self.bytes -= 128 * len(value)
        elif isinstance(value, Iterator) and not hasattr(value, "depth0"):  # `loop` is one too
            return self._chained(value, source)
        self.bytes -= 64
        if self.bytes < 0:
            self.check()
        return value

    def _chained(self, value: Iterator[Any], source: Any) -> Iterator[Any]:
        """Return an iterator that counts the items of another one, and limits chains of iterators."""
        known = [self._chains.get(one, 0) for one in (value, source) if isinstance(one, GeneratorType)]
        depth = 1 + max(known, default=0)
        if depth > _MAX_CHAIN:
            raise TemplateLimitError(f"the chat template has more than {_MAX_CHAIN} filters read one another")
        result = self.each(value)
        self._chains[result] = depth
        return result

    def each(self, items: Iterable[Any], cost: int = 8) -> Iterator[Any]:
        """Yield the items of an iterator and count each."""
        for item in items:
            self.steps -= cost
            self.bytes -= 64
            if self.steps < 0 or self.bytes < 0:
                self.check()
            yield item

    def walk(self, value: Any, cost: int = 2) -> None:
        """Count the work of a filter for every item of a value. Iterators count by themselves."""
        if hasattr(value, "__len__"):
            self.step(len(value) * cost)
            self.spend(len(value) * 64)

    def read(self, value: Any) -> Any:
        """Count the time to compare, hash or search a value, and return it."""
        if type(value) is str or isinstance(value, str):
            if len(value) > 256:
                self.step(len(value) >> 8)
        elif isinstance(value, int):
            self.whole(value)
        elif isinstance(value, range):
            self.step(len(value))  # searched item by item for other types than integers
        elif value is not None and not isinstance(value, float):
            self.step(self.measure(value)[0] >> 6)
        return value

    def within(self, value: Any) -> Any:
        """As `read`, for the right side of `in`. Mappings search by hash."""
        if type(value) is dict:
            return value
        self.search(value, value)
        return self.read(value)

    def contains(self, part: Any, whole: Any) -> bool:
        """Return `part in whole`."""
        self.read(part)
        if type(whole) is not dict:
            self.read(whole)
            self.search(whole, part)
        return part in whole

    def search(self, text: Any, part: Any) -> None:
        """Count the time to search a text or bytes for a part."""
        if isinstance(text, str | bytes) and isinstance(part, str | bytes):
            self.step(min(len(text) * len(part), _LONGEST_SEARCH) >> 10)

    def whole(self, value: Any) -> None:
        """Count an operation on an integer. Raise TemplateLimitError if the integer is too large."""
        if isinstance(value, int):
            bits = value.bit_length()
            self._bits(bits)
            if bits > 256:  # multiplication, division and formatting take quadratic time
                self.step(bits * bits >> 14)

    def text(self, value: Any) -> str:
        """Return `str(value)`."""
        if type(value) is str:
            return value
        if isinstance(value, str):
            return str(value)
        if isinstance(value, int):
            self.whole(value)
            return str(value)
        self.require(self.measure(value)[0])
        text = str(value)
        self.spend(len(text) if text.isascii() else 4 * len(text))
        return text

    def concat(self, pieces: Iterable[Any]) -> str:
        """Return the joined texts of values: the operator `~`."""
        texts = [self.text(piece) for piece in pieces]
        size = sum(map(len, texts))
        if 4 * size > self.bytes:
            self.require(size if all(map(str.isascii, texts)) else 4 * size)
        text = "".join(texts)
        self.spend(64 + (size if text.isascii() else 4 * size))
        return text

    def add(self, left: Any, right: Any) -> Any:
        """Return `left + right`."""
        if type(left) is str and type(right) is str:
            size = len(left) + len(right)
            if 4 * size > self.bytes:
                self.require(4 * size)
            result = left + right
            self.bytes -= 64 + (size if result.isascii() else 4 * size)
            if self.bytes < 0:
                self.check()
            return result
        if type(left) is int and type(right) is int and -_SMALL < left < _SMALL and -_SMALL < right < _SMALL:
            return left + right
        for side in (left, right):
            self.whole(side)
            if hasattr(side, "__len__"):
                self.require(len(side) * 24)
        return self.made(left + right)

    def multiply(self, left: Any, right: Any) -> Any:
        """Return `left * right`."""
        for times, repeated in ((left, right), (right, left)):
            if isinstance(times, int) and hasattr(repeated, "__len__"):
                each = 4 if isinstance(repeated, str) and not repeated.isascii() else 1
                each = each if isinstance(repeated, str | bytes) else 16
                self.require(max(times, 0) * len(repeated) * each)
        if isinstance(left, int) and isinstance(right, int):
            self._bits(left.bit_length() + right.bit_length())
        return self.made(left * right)

    def power(self, left: Any, right: Any) -> Any:
        """Return `left ** right`."""
        if isinstance(left, int) and isinstance(right, int):
            self._bits(left.bit_length() * abs(right) if abs(left) > 1 else abs(right).bit_length())
        return self.made(left**right)

    def modulo(self, left: Any, right: Any) -> Any:
        """Return `left % right`: a remainder or a formatted text."""
        if isinstance(left, str | bytes):
            self.printf(left, right)
        else:
            self.whole(left)
            self.whole(right)
        return self.made(left % right)

    def apply(self, operator: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
        """Apply an operator whose result is not larger than its operands."""
        if type(left) is int and type(right) is int and -_SMALL < left < _SMALL and -_SMALL < right < _SMALL:
            return operator(left, right)
        return self.made(operator(self.read(left), self.read(right)))

    def printf(self, form: str | bytes, values: Any) -> None:
        """Raise TemplateLimitError if `form % values` may be too long."""
        text = form if isinstance(form, str) else form.decode("latin-1")
        size = 4 * len(text) + 4 * self.widths(text)
        weight = self.measure(values)[0]
        if "*" in text and isinstance(values, tuple):
            size += 4 * sum(abs(value) for value in values if isinstance(value, int))
        elif "*" in text and isinstance(values, int):
            size += 4 * abs(values)
        self.require(size + weight * (text.count("%") if isinstance(values, Mapping) else 1))

    def widths(self, text: str) -> int:
        """Return the sum of the widths in a format, each capped at the limit of bytes."""
        self.read(text)
        return sum(int(digits) if len(digits) < 12 else 10**12 for digits in _NUMBER.findall(text))

    def _bits(self, bits: int) -> None:
        if bits > MAX_BITS:
            raise TemplateLimitError(f"the chat template makes an integer of more than {MAX_BITS} bits")


BUDGET: ContextVar[Budget] = ContextVar("hivellm_ort.template_budget")
"""That of the rendering which goes on in this thread."""
