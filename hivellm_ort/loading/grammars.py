"""Reads the grammar of a package."""

from __future__ import annotations

import logging
from pathlib import Path

from hivellm_ort.errors import GrammarError, IntegrityError, LoadError
from hivellm_ort.filenames import is_system_file, member_name, shown
from hivellm_ort.grammar.grammar import Grammar, Kind
from hivellm_ort.grammar.limits import DEFAULT
from hivellm_ort.package.manifest import MANIFEST, ExpertManifest
from hivellm_ort.package.manifest_parts import DecodingDefaults
from hivellm_ort.package.store import UnpackedPackage
from hivellm_ort.textfile import decode_text

__all__ = ["GRAMMAR", "find_grammar"]

GRAMMAR = "grammar.gbnf"
"""The grammar file of a package, unless its manifest names another one."""

_SUFFIXES: dict[str, Kind] = {".json": "json_schema", ".lark": "lark", ".regex": "regex"}
_ANY_JSON = {"x-guidance": {"whitespace_flexible": True}}

_LOG = logging.getLogger("hivellm_ort")


def find_grammar(package: UnpackedPackage, manifest: ExpertManifest) -> Grammar | None:
    """Read the grammar of a package. It is checked if the manifest sets `use_grammar`.

    The file is the member that `training.decoding.grammar_file` names, else `grammar.gbnf`. Its ending decides the
    kind: `.json` is a JSON schema, `.lark` is Lark, `.regex` is a regular expression, and every other ending is GBNF.

    If there is no file and the manifest sets `use_grammar`, the grammar type `json` means any JSON. With another type
    answers are not constrained, and a warning is logged.

    Args:
        package: The package.
        manifest: Its manifest.

    Raises:
        LoadError: The named file is not in the package, is too large or not UTF-8, or a required grammar has a fault.
    """
    decoding = manifest.decoding
    path = _file(package, decoding)
    if path is None:
        if decoding.use_grammar and decoding.grammar_type == "json":
            return Grammar.json_schema(_ANY_JSON, source="any JSON")
        if decoding.use_grammar:
            _LOG.warning(
                "%s: the manifest says use_grammar, and the package has no %s: answers are not constrained",
                manifest.name,
                GRAMMAR,
            )
        return None
    text = _text(path)
    try:
        grammar = Grammar(_SUFFIXES.get(path.suffix, "gbnf"), text, path.name)
        if decoding.use_grammar and grammar.kind == "gbnf":
            from hivellm_ort.grammar.gbnf import parse_gbnf  # slow to import
            from hivellm_ort.grammar.normalise import normalise

            normalise(parse_gbnf(text))
    except GrammarError as error:
        raise LoadError(f"{path.name}: {error}; or set use_grammar to false in {MANIFEST}") from error
    return grammar


def _file(package: UnpackedPackage, decoding: DecodingDefaults) -> Path | None:
    named = decoding.grammar_file
    try:
        path = package.root / member_name(named or GRAMMAR)
    except IntegrityError as error:
        raise LoadError(f"{MANIFEST}: /training/decoding/grammar_file: {error}") from error
    if path.is_file() and not is_system_file(path.name):
        return path
    if named and decoding.use_grammar:
        raise LoadError(
            f"{MANIFEST}: /training/decoding/grammar_file is {shown(named)}, which is not in the package: add it, "
            "or set use_grammar to false"
        )
    return None


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(DEFAULT.max_bytes + 1)
        if len(content) > DEFAULT.max_bytes:
            raise LoadError(f"{path.name}: larger than {DEFAULT.max_bytes} bytes: shorten the grammar")
        return decode_text(content)
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{path.name}: not a text in UTF-8 ({error}): save it as UTF-8") from error
