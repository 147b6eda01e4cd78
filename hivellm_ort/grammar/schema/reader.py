"""Reads a JSON schema as sets of values: the values that each part allows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from hivellm_ort.errors import GrammarError, argument
from hivellm_ort.grammar.schema.keywords import unknown_keyword
from hivellm_ort.grammar.schema.shapes import (
    ANY,
    FALSE,
    Array,
    Conjunction,
    Object,
    Shapes,
    Subschema,
    child,
    meet,
)

__all__ = ["Reader", "RefusedError", "children", "needed"]

_MOST_SHAPES = 5_000


class RefusedError(GrammarError):
    """A part of a schema cannot be enforced."""


class Reader:
    """Reads the parts of one schema.

    Args:
        schema: The schema, an object.
        source: Its source, for messages.
        pointer: JSON pointer of the schema in the given document.
        lenient: Whether to leave out parts that cannot be enforced, with a warning. Else they are refused.

    Attributes:
        root: The whole schema.
        lenient: As given.
        warnings: Sentences about the schema, without repetitions.
    """

    def __init__(
        self, schema: dict[str, Any], *, source: str, pointer: str = "", lenient: bool = False
    ) -> None:
        self.lenient = lenient
        self.warnings: dict[str, None] = {}
        self._source = source
        self._pointers = dict(_pointers(schema, pointer))
        self._subschemas: dict[tuple[int, bool], Subschema] = {}
        self._shapes: dict[Conjunction, Shapes] = {}
        self._own: dict[Subschema, Shapes] = {}
        self._reading: set[Subschema] = set()
        self._sound: set[Conjunction] = set()
        self._possible: dict[Conjunction, bool] = {}
        self._made: dict[str, Any] = {}
        # Up to draft 7, keywords beside a reference are ignored, including $id.
        self._old = "/draft-0" in str(schema.get("$schema"))
        resolver = self._resolver(schema, pointer, None)
        self.root = self._subschemas[id(schema), False] = Subschema(schema, resolver, pointer)

    def subschema(self, schema: Any, resolver: Any, *, negated: bool = False) -> Subschema:
        """Return the subschema of a part. The same part gives the same object.

        Raises:
            RefusedError: It is not a schema.
        """
        if isinstance(schema, bool):
            return _TRUE if schema is not negated else FALSE
        pointer = self._pointers.get(id(schema), "")
        if not isinstance(schema, dict):
            raise RefusedError(
                f"{self._where(pointer)}: {schema!r:.60} is not a schema; it must be an object, true or false"
            )
        key = (id(schema), negated)
        if key not in self._subschemas:
            # References in a part with its own $id are relative to it.
            if "$id" in schema and not (self._old and "$ref" in schema):
                resolver = self._resolver(schema, pointer, resolver)
            self._subschemas[key] = Subschema(schema, resolver, pointer, negated)
        return self._subschemas[key]

    def part(self, subschema: Subschema, schema: Any, *, negated: bool = False) -> Conjunction:
        """Return a part of a subschema as a conjunction. Bare references are resolved."""
        found = self.subschema(schema, subschema.resolver, negated=negated)
        seen = set()
        while isinstance(found.schema, dict) and "$ref" in found.schema and found not in seen:
            if found.schema.keys() - _BESIDE_REF:
                break
            seen.add(found)
            found = self.referred(found, found.schema["$ref"])
        return () if found is _TRUE else (found,)

    def made(self, subschema: Subschema, key: str, schema: Any) -> Conjunction:
        """Return a derived schema that is not in the text. The same key gives the same object."""
        schema = self._made.setdefault(key, schema)
        self._pointers.setdefault(id(schema), subschema.pointer)
        return self.part(subschema, schema)

    def referred(self, subschema: Subschema, reference: Any) -> Subschema:
        """Resolve a reference.

        Raises:
            RefusedError: It does not exist.
        """
        pointer = f"{subschema.pointer}/$ref"
        if not isinstance(reference, str):
            raise RefusedError(f"{self._where(pointer)}: it must be a text")
        try:
            resolved = subschema.resolver.lookup(reference)
        except (Unresolvable, ValueError, LookupError, TypeError, AttributeError) as error:
            cure = (
                "it does not exist; put the definition where the $ref points to"
                if reference.startswith("#")
                else "put the definition into the schema itself, under $defs: nothing is fetched"
            )
            raise RefusedError(
                f"{self._where(pointer)}: nothing is found under {reference!r:.100}: {cure}"
            ) from error
        return self.subschema(resolved.contents, resolved.resolver, negated=subschema.negated)

    def shapes(self, conjunction: Conjunction) -> Shapes:
        """Return the values that all subschemas of a conjunction allow.

        Raises:
            RefusedError: One of them cannot be enforced.
        """
        if FALSE in conjunction:
            return ()
        found = self._shapes.get(conjunction)
        if found is None:
            found = ANY
            for subschema in conjunction:
                if subschema is _TRUE:
                    continue
                found = self.limited(subschema.pointer, meet(found, self._of(subschema)))
            self._shapes[conjunction] = found
        return found

    def limited(self, pointer: str, shapes: Shapes) -> Shapes:
        """Check the number of shapes, and return them.

        Raises:
            RefusedError: There are too many.
        """
        if len(shapes) > _MOST_SHAPES:
            raise RefusedError(
                f"{self._where(pointer)}: it allows more than {_MOST_SHAPES} kinds of value; write it with fewer "
                "alternatives inside alternatives"
            )
        return shapes

    def check(self, conjunction: Conjunction) -> None:
        """Raise RefusedError if a part of these values cannot be enforced."""
        if conjunction in self._sound:
            return
        self._sound.add(conjunction)
        try:
            for shape in self.shapes(conjunction):
                for inner in children(shape):
                    self.check(inner)
        except RefusedError:
            self._sound.discard(conjunction)
            raise

    def possible(self, conjunction: Conjunction) -> bool:
        """Return whether a value may exist. False is certain.

        Raises:
            RefusedError: As `shapes`.
        """
        if conjunction not in self._possible:
            self._possible[conjunction] = True  # a conjunction may require itself
            self._possible[conjunction] = any(
                all(self.possible(inner) for inner in needed(shape)) for shape in self.shapes(conjunction)
            )
        return self._possible[conjunction]

    def refuse(self, subschema: Subschema, keyword: str, why: str) -> Shapes:
        """Return the shapes of any value and add a warning, if the reader is lenient.

        Args:
            subschema: The subschema of the keyword.
            keyword: Its name, or a pointer below the subschema.
            why: The reason, and what to do instead.

        Raises:
            RefusedError: The reader is not lenient.
        """
        if not self.lenient:
            raise self.refusal(
                subschema, keyword, f"{why}; or leave it unenforced with {argument('lenient', True)}"
            )
        self.warn(subschema, keyword, f"not enforced: {why}")
        return ANY

    def refusal(self, subschema: Subschema, keyword: str, why: str) -> RefusedError:
        """Return the error that names a keyword by its pointer."""
        return RefusedError(f"{self._where(_below(subschema, keyword))}: {why}")

    def warn(self, subschema: Subschema, keyword: str, what: str) -> None:
        """Add a warning."""
        self.warnings[f"{self._where(_below(subschema, keyword))}: {what}"] = None

    def _resolver(self, schema: dict[str, Any], pointer: str, outer: Any) -> Any:
        """Return the resolver of references in a schema, inside the resolver of the surrounding schema."""
        try:
            resource = Resource.from_contents(schema, default_specification=DRAFT202012)
            if outer is not None:
                return outer.in_subresource(resource)
            uri = resource.id() or ""
            return Registry().with_resource(uri, resource).resolver(uri)
        except (AttributeError, TypeError, ValueError) as error:
            raise RefusedError(f"{self._where(pointer)}: its $id and $schema must be texts") from error

    def _where(self, pointer: str) -> str:
        return f"{self._source}, at {pointer}" if pointer else self._source

    def _of(self, subschema: Subschema) -> Shapes:
        found = self._own.get(subschema)
        if found is not None:
            return found
        if subschema in self._reading:
            raise RefusedError(
                f"{self._where(subschema.pointer)}: it is defined by itself, so that no token may come next"
            )
        from hivellm_ort.grammar.schema import complement, rules

        self._reading.add(subschema)
        try:
            if subschema.negated:
                found = complement.of(self, subschema)
            else:
                self._tell(subschema)
                found = ANY
                for keyword, rule in rules.of(subschema.schema):
                    found = self.limited(subschema.pointer, meet(found, rule(self, subschema, keyword)))
        finally:
            self._reading.discard(subschema)
        self._own[subschema] = found
        return found

    def _tell(self, subschema: Subschema) -> None:
        for name in subschema.schema:
            said = unknown_keyword(name)
            if said is not None:
                self.warn(subschema, "", said)


_TRUE = Subschema(True, None, "")
_BESIDE_REF = frozenset(
    {"$ref", "title", "description", "default", "examples", "deprecated", "$comment", "$schema"}
)


def children(shape: Any) -> list[Conjunction]:
    """Return the parts of such values."""
    match shape:
        case Array():
            return [*shape.prefix, shape.rest]
        case Object():
            inner = [conjunction for _, conjunction in (*shape.properties, *shape.patterns)]
            return [*inner, shape.rest, *([shape.names] if shape.names else [])]
        case _:
            return []


def needed(shape: Any) -> Iterator[Conjunction]:
    """Yield the parts that every such value must have."""
    match shape:
        case Array():
            yield from (shape.item(index) for index in range(min(shape.least, len(shape.prefix) + 1)))
        case Object():
            yield from (child(shape, name) for name in shape.required)


def _pointers(schema: Any, pointer: str) -> Iterator[tuple[int, str]]:
    """Yield the identity and the JSON pointer of every object in a document."""
    waiting = [(schema, pointer)]
    while waiting:
        node, pointer = waiting.pop()
        if isinstance(node, dict):
            yield id(node), pointer
            waiting += [(value, f"{pointer}/{_escaped(name)}") for name, value in node.items()]
        elif isinstance(node, list):
            waiting += [(value, f"{pointer}/{index}") for index, value in enumerate(node)]


def _below(subschema: Subschema, keyword: str) -> str:
    return f"{subschema.pointer}/{keyword}" if keyword else subschema.pointer


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
