"""Keywords of JSON schemas, and the wrappers of OpenAI's clients."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

__all__ = [
    "ANNOTATIONS",
    "ASSERTIONS",
    "FINER",
    "QUIET_FORMATS",
    "RANGES",
    "UUIDS",
    "says_nothing",
    "unknown_keyword",
    "unwrapped",
]

ASSERTIONS = frozenset(
    {
        "$ref",
        "$dynamicRef",
        "$recursiveRef",
        "type",
        "enum",
        "const",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "if",
        "then",
        "else",
        "properties",
        "patternProperties",
        "additionalProperties",
        "unevaluatedProperties",
        "propertyNames",
        "required",
        "minProperties",
        "maxProperties",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "items",
        "prefixItems",
        "additionalItems",
        "unevaluatedItems",
        "contains",
        "minContains",
        "maxContains",
        "minItems",
        "maxItems",
        "uniqueItems",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
    }
)
"""Keywords that restrict values."""

ANNOTATIONS = frozenset(
    {
        "$schema",
        "$id",
        "id",
        "$anchor",
        "$dynamicAnchor",
        "$recursiveAnchor",
        "$vocabulary",
        "$comment",
        "$defs",
        "definitions",
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "readOnly",
        "writeOnly",
        "contentMediaType",
        "contentEncoding",
        "contentSchema",
        "discriminator",
        "xml",
        "externalDocs",
        "markdownDescription",
        "enumNames",
        "enumDescriptions",
        "propertyOrdering",
    }
)
"""Annotations for people and other programs. Keys that begin with `x-` are annotations too."""

QUIET_FORMATS = frozenset(
    {
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "int",
        "uint",
        "int128",
        "uint128",
        "float",
        "double",
        "decimal",
        "number",
        "password",
        "byte",
        "binary",
        "base64",
        "base64url",
        "base64urlencoded",
        "path",
        "file-path",
        "directory-path",
        "file",
        "json-string",
        "json",
        "color",
        "phone",
        "currency",
        "partial-date-time",
        "unix-time",
        "guid",
        "cuid",
        "cuid2",
        "ulid",
        "xid",
        "ksuid",
        "nanoid",
        "jwt",
        "emoji",
        "e164",
        "cidrv4",
        "cidrv6",
        "ipv4network",
        "ipv6network",
        "ipvanyaddress",
        "ipvanyinterface",
        "ipvanynetwork",
        "ipv4interface",
        "ipv6interface",
        "url",
        "uri-reference",
        "uri-template",
        "iri",
        "iri-reference",
        "multi-host-uri",
        "postgres-dsn",
        "name-email",
        "idn-email",
        "idn-hostname",
        "json-pointer",
        "relative-json-pointer",
        "regex",
        "time-delta",
        "starts_with",
        "ends_with",
        "includes",
        "lowercase",
        "uppercase",
        "template_literal",
        "json_string",
        "safeint",
    }
)
"""Formats that clients write and that only annotate."""

RANGES = {
    **{f"int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32)},
    **{f"uint{bits}": (0, 2**bits - 1) for bits in (8, 16, 32)},
}
"""What whole numbers of a format are from and to."""

_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DAY = f"^(?:{_LEAP}-02-29|[0-9]{{4}}-(?:02-(?:[01][0-9]|2[0-8])|(?:0[13-9]|1[0-2])-[0-9]{{2}}))"
_YEAR = "^(?:[1-9]|0[1-9]|00[1-9]|000[1-9])"
FINER = {
    "date": (_DAY, _YEAR),
    "date-time": (_DAY, _YEAR, "^[^:]*:[0-9]{2}:[0-5]"),
    "time": ("^[0-9]{2}:[0-9]{2}:[0-5]",),
}
"""Patterns beside formats, so that dates exist and every minute has sixty seconds."""

UUIDS = {f"uuid{version}": f"^.{{14}}{version}.{{4}}[89abAB]" for version in (1, 3, 4, 5, 6, 7, 8)}
"""Patterns of UUIDs of a version, as Pydantic names them."""

_WRAPPER = {"name", "strict", "schema", "description", "type"}
_OUTER = {
    "json_schema": {"type", "json_schema"},
    "response_format": {"response_format"},
    "format": {"format"},
}


def unknown_keyword(name: str) -> str | None:
    """Return a message about an unknown keyword; None for keywords and keys that begin with `x-`."""
    if name in ASSERTIONS or name in ANNOTATIONS or name.startswith(("x-", "X-", "~")):
        return None
    if name == "nullable":
        return 'the keyword "nullable" is OpenAPI\'s and has no effect; write "type": [..., "null"]'
    near = get_close_matches(name, ASSERTIONS, n=1, cutoff=0.75)
    meant = f"; did you mean {near[0]!r}?" if near else "; begin its name with x- if it is a note"
    return f"the keyword {name!r} is unknown and has no effect{meant}"


def says_nothing(schema: dict[str, Any]) -> list[str]:
    """Return the unknown keys of a schema without any keyword, which would allow anything."""
    if any(name in ASSERTIONS for name in schema):
        return []
    return [name for name in schema if unknown_keyword(name) is not None]


def unwrapped(schema: Any) -> tuple[Any, str]:
    """Return the schema inside a wrapper of OpenAI's clients, and its JSON pointer.

    Wrappers are `{"name", "strict", "schema"}`, alone, as `json_schema` beside `"type": "json_schema"`, or as
    `format`, and any of these as `response_format`.
    """
    pointer = ""
    while isinstance(schema, dict):
        inner = next(
            (
                key
                for key, keys in _OUTER.items()
                if isinstance(schema.get(key), dict) and schema.keys() <= keys
            ),
            None,
        )
        named = schema.get("type", "json_schema") == "json_schema" and schema.keys() & {
            "name",
            "strict",
            "type",
        }
        if inner is None and named and isinstance(schema.get("schema"), dict) and schema.keys() <= _WRAPPER:
            inner = "schema"
        if inner is None or (inner == "json_schema" and schema.get("type", "json_schema") != "json_schema"):
            break
        schema, pointer = schema[inner], f"{pointer}/{inner}"
    return schema, pointer
