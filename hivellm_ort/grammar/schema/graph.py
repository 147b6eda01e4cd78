"""The graph of all parts of a schema, and which of them have values."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from math import comb

from hivellm_ort.grammar.schema.patterns import all_but
from hivellm_ort.grammar.schema.reader import Reader, children, needed
from hivellm_ort.grammar.schema.shapes import FALSE, Conjunction, Object, Shape, Shapes, String, child

__all__ = ["Graph"]

_MOST_SUBSETS = 256


class Graph:
    """The values of each part of a schema.

    Args:
        reader: The reader of the schema.

    Attributes:
        reader: As given.
        root: The whole.
        shapes: The shapes of each part that have values, in the order of discovery.
        uses: Number of uses of each part.

    Raises:
        RefusedError: The schema cannot be enforced.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.root: Conjunction = (reader.root,)
        self.shapes: dict[Conjunction, Shapes] = {}
        self.uses: dict[Conjunction, int] = {self.root: 1}
        waiting: list[Conjunction] = [self.root]
        while waiting:
            conjunction = waiting.pop()
            if conjunction in self.shapes:
                continue
            found = [one for shape in reader.shapes(conjunction) for one in self._settled(conjunction, shape)]
            self.shapes[conjunction] = tuple(dict.fromkeys(found))
            for shape in self.shapes[conjunction]:
                for inner in children(shape):
                    self.uses[inner] = self.uses.get(inner, 0) + 1
                    waiting.append(inner)
        self._bury()

    def exists(self, conjunction: Conjunction) -> bool:
        """Return whether a part has any value."""
        return bool(self.shapes[conjunction])

    def variants(self, conjunction: Conjunction, shape: Object, *, natively: bool) -> list[Object]:
        """Split an object with a bounded number of properties into objects without that bound.

        Args:
            conjunction: Its part, for messages.
            shape: The object.
            natively: Whether the writer can express the bound if every listed property is required, and can require
                or allow one of several optional properties.

        Raises:
            RefusedError: There would be too many.
        """
        present = tuple((name, part) for name, part in shape.properties if self.exists(part))
        free = [name for name, _ in present if name not in shape.required]
        least = max(0, shape.least - len(shape.required))
        most = None if shape.most is None else shape.most - len(shape.required)
        is_open = self.exists(shape.rest) or any(self.exists(part) for _, part in shape.patterns)
        if most is not None and not is_open and most >= len(free):
            most = None
        if not is_open and least > len(free):
            return []
        # Unlisted keys may repeat, so there may be fewer distinct keys than members.
        if is_open and least > 1:
            why = "keys that are not listed may repeat; list and require the properties"
            self.reader.refuse(conjunction[0], "minProperties", why)
            least = 0
        plain = replace(shape, least=least, most=most)
        if (not least and most is None) or not free:
            return [plain]
        if natively and not is_open and least <= 1 and most in (None, 1):
            return [plain]
        sizes = range(least, min(len(free), len(free) if most is None else most) + 1)
        if is_open or sum(comb(len(free), size) for size in sizes) > _MOST_SUBSETS:
            keyword = "minProperties" if least else "maxProperties"
            self.reader.refuse(
                conjunction[0],
                keyword,
                "it cannot be enforced beside properties that may be left out; require them",
            )
            return [replace(plain, least=0, most=None)]
        return [
            Object(
                tuple((name, part) for name, part in present if name in shape.required or name in chosen),
                rest=(FALSE,),
                required=tuple(name for name, _ in present if name in shape.required or name in chosen),
            )
            for size in sizes
            for chosen in combinations(free, size)
        ]

    def _settled(self, conjunction: Conjunction, shape: Shape) -> list[Shape]:
        """Return the shape with its restrictions on names expressed by properties and patterns."""
        if not isinstance(shape, Object):
            return [shape]
        # Required keys that are not listed come after the listed ones.
        unlisted = tuple((name, child(shape, name)) for name in shape.required if name not in shape.listed)
        shape = replace(shape, properties=(*shape.properties, *unlisted))
        if not shape.names:
            return [shape]
        names = [one for one in self.reader.shapes(shape.names) if isinstance(one, String)]
        if String() in names:
            return [replace(shape, names=())]
        if any(not any(self._held(one, name) for one in names) for name in shape.required):
            return []
        properties = [
            (name, part if any(self._held(one, name) for one in names) else (FALSE,))
            for name, part in shape.properties
        ]
        if all(one.values is not None for one in names):
            allowed = dict.fromkeys(value for one in names for value in one.values or ())
            properties += [(name, child(shape, name)) for name in allowed if name not in shape.listed]
            return [replace(shape, properties=tuple(properties), patterns=(), rest=(FALSE,), names=())]
        patterns = [pattern for one in names for pattern in _as_patterns(one)]
        if shape.patterns or len(patterns) != 1:
            self.reader.refuse(
                shape.names[0],
                "",
                "names that must be so cannot be enforced here; give one pattern, or list them",
            )
            return [replace(shape, names=())]
        return [
            replace(
                shape,
                properties=tuple(properties),
                patterns=((patterns[0], shape.rest),),
                rest=(FALSE,),
                names=(),
            )
        ]

    def _held(self, names: String, name: str) -> bool:
        return names.holds(name) if names.values is None else name in names.values

    def _bury(self) -> None:
        """Remove shapes that require a part without values, or require themselves."""
        alive: set[Conjunction] = set()
        order = list(reversed(self.shapes))
        grown = True
        while grown:
            grown = False
            for conjunction in order:
                if conjunction not in alive and any(
                    all(inner in alive for inner in needed(shape)) for shape in self.shapes[conjunction]
                ):
                    alive.add(conjunction)
                    grown = True
        for conjunction, shapes in self.shapes.items():
            self.shapes[conjunction] = tuple(
                shape for shape in shapes if all(inner in alive for inner in needed(shape))
            )


def _as_patterns(names: String) -> list[str]:
    """Return patterns that together describe the names. Formats are not patterns."""
    patterns = list(names.patterns)
    if names.least or names.most is not None:
        patterns.append(f"^(?s:.{{{names.least},{'' if names.most is None else names.most}}})$")
    if names.excluded:
        patterns.append(all_but(sorted(names.excluded)))
    return [*patterns, *(["", ""] if names.formats else [])]
