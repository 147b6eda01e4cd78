"""Checks manifests strictly, for their authors, with the JSON schemas (draft 2020-12) of versions 1.x and 2.x.

The schemas are files in `schemas/`, so that editors can use them too. Tolerant reading does not need them, nor the
library `jsonschema`, which is slow to import.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hivellm_ort.errors import ManifestError
from hivellm_ort.filenames import shown
from hivellm_ort.jsonfiles.node import Node, report_on
from hivellm_ort.jsonfiles.positions import MAX_DEPTH, pointer_of
from hivellm_ort.jsonfiles.problems import MAX_PROBLEMS, Problem, Report
from hivellm_ort.jsonfiles.reading import read_json, type_name
from hivellm_ort.package.manifest_reader import read_fields
from hivellm_ort.paths import StrPath

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator, ValidationError

__all__ = ["all_problems", "schema_problems"]

_SHARED = "manifest-shared.json"
_TYPES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "object": "an object",
    "string": "a string",
}
_LIMITS = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "above"}


def schema_problems(path: StrPath) -> list[str]:
    """Return the violations of the schema in a manifest file, for its author.

    Args:
        path: The file.

    Returns:
        One line for each problem, in the order of the file; empty for a valid manifest. Problems in the warnings of
        the `ExpertManifest` are left out.

    Raises:
        ManifestError: The file is missing or not strict JSON.
    """
    path = Path(path)
    mapping = read_json(path)
    report = report_on(mapping, path.name, lenient=True)
    warned = set()
    with suppress(ManifestError):
        read_fields(Node(mapping, report))
        warned = {problem.pointer for problem in report.problems()}
    _check(mapping, report)
    return [str(problem) for problem in report.problems() if problem.pointer not in warned]


def all_problems(mapping: Mapping[str, Any], where: str) -> tuple[Problem, ...]:
    """Return everything that an author should correct: errors, warnings and violations of the schema.

    Args:
        mapping: The parsed manifest. If it comes from `read_json`, problems have line and column.
        where: Name of the file, for messages.

    Returns:
        At most one problem for each value, in the order of the file; empty for a valid manifest.
    """
    report = report_on(mapping, where, lenient=True)
    with suppress(ManifestError):  # It is in the report too.
        read_fields(Node(mapping, report))
    _check(mapping, report)
    return report.problems()


def _check(mapping: Mapping[str, Any], report: Report) -> None:
    """Add the violations of the schema to the report. Nulls count as absent."""
    plain = _plain(mapping, report)
    # One more than a report lists, so that it can say that there are more problems.
    for error in islice(_validator(_major(plain)).iter_errors(plain), MAX_PROBLEMS + 1):
        path = _original(mapping, error.absolute_path)
        for key, fault in _faults(error):
            report.note(pointer_of([*path, *key]), fault)


def _major(plain: Mapping[str, Any]) -> int:
    written = str(plain.get("schema_version")).partition(".")[0]
    if written in ("1", "2"):
        return int(written)
    return 1 if "base_model" in plain and "base_models" not in plain else 2


@cache
def _validator(major: int) -> Draft202012Validator:
    from jsonschema import Draft202012Validator
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    # A registry that holds one resource and cannot retrieve any: a reference never reaches disk or network.
    registry = Registry().with_resource(_SHARED, DRAFT202012.create_resource(_schema(_SHARED)))
    return Draft202012Validator(_schema(f"manifest-{major}.json"), registry=registry)


def _schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(files(__package__).joinpath("schemas", name).read_bytes())
    return schema


def _plain(value: Any, report: Report, depth: int = 1) -> Any:
    """Return a copy for jsonschema, with plain dicts and lists and without nulls."""
    if isinstance(value, Mapping | list | tuple) and depth > MAX_DEPTH:
        report.note("", f"more than {MAX_DEPTH} objects and lists inside each other; flatten them")
        return None
    if isinstance(value, Mapping):
        return {key: _plain(item, report, depth + 1) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item, report, depth + 1) for item in value if item is not None]
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return math.inf  # Python refuses to print whole numbers of thousands of digits.
    return value


def _original(mapping: Any, path: Sequence[str | int]) -> list[str]:
    """Return the path in the original document. Its indices count the nulls in lists too."""
    found = []
    for step in path:
        if isinstance(step, int):
            present = (index for index, item in enumerate(mapping) if item is not None)
            step = next(islice(present, step, None))
        found.append(str(step))
        mapping = mapping[step]
    return found


def _faults(error: ValidationError) -> list[tuple[list[str], str]]:
    """Return the messages for a violation of the schema, each with the key below its path, if any."""
    rule, limit, value = error.validator, error.validator_value, error.instance
    if rule == "required":
        return [([key], "missing; set it") for key in limit if key not in value]
    if rule == "additionalProperties":
        known = error.schema["properties"]
        extra = [key for key in value if key not in known and not key.startswith("_")]
        return [([key], f"no known field; use one of {', '.join(known)}") for key in extra]
    return [([], _fault(rule, limit, value, error.schema))]


def _fault(rule: str, limit: Any, value: Any, schema: Mapping[str, Any]) -> str:
    if rule == "type":
        expected = " or ".join(_TYPES[name] for name in ([limit] if isinstance(limit, str) else limit))
        given = f"{value:g}" if isinstance(value, float) else type_name(value)
        return f"{given} where {expected} is expected"
    if rule in _LIMITS:
        return f"{value:g} is out of range; write a number {_LIMITS[rule]} {limit:g}"
    if rule in ("enum", "const"):
        words = [limit] if rule == "const" else limit
        return f"{_short(value)} is not allowed; use {' or '.join(words)}"
    if rule == "pattern":
        examples = " or ".join(json.dumps(example) for example in schema["examples"])
        return f"{_short(value)} is not allowed; write it like {examples}"
    if rule in ("minItems", "minLength", "minProperties"):
        return "empty; fill it in"
    if rule in ("maxItems", "maxLength"):
        return f"too long; at most {limit} are allowed"
    return f"does not belong here; {schema['description']}"  # rule "not"


def _short(value: Any) -> str:
    return shown(value) if isinstance(value, str) else type_name(value)
