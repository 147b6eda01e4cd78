"""What `manifest.json` says, in both schema versions and as tolerantly as published packages need.

Required are a name, a version, one base model and one adapter. Null counts as absent, unknown keys are kept
in `raw` only, and a value that cannot be used is left unset with a warning. Strict reading, for authors,
refuses whatever the tolerant one warns of and what the schemas of `manifest_schema` object to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hivellm_ort.errors import IntegrityError, ManifestError
from hivellm_ort.filenames import member_name
from hivellm_ort.jsonfiles.node import Node, report_on
from hivellm_ort.jsonfiles.problems import error_of
from hivellm_ort.jsonfiles.reading import read_json
from hivellm_ort.package.manifest_parts import (
    AdapterRef,
    BaseModelRef,
    Constraints,
    DecodingDefaults,
    Routing,
)
from hivellm_ort.package.manifest_reader import read_fields
from hivellm_ort.package.manifest_schema import all_problems
from hivellm_ort.paths import StrPath

__all__ = [
    "MANIFEST",
    "AdapterRef",
    "BaseModelRef",
    "Constraints",
    "DecodingDefaults",
    "ExpertManifest",
    "Routing",
]

MANIFEST = "manifest.json"
"""Name of the manifest in a package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertManifest:
    """The manifest of one expert.

    Attributes:
        name: Name of the expert; published ones begin with `expert-`.
        version: Version of the expert, such as `0.3.0`.
        schema_version: As written, or `1.0` or `2.0` by its form.
        description: Empty when unset.
        author: Person or organisation; None when unset.
        homepage: Address of a page; None when unset.
        repository: Address of the source, from `repository.url`; None when unset.
        license: Identifier of the licence; None when unset.
        tags: Words to search by.
        base_models: At least one; at least one of them has an adapter.
        capabilities: Such as `database:sql`.
        decoding: Suggested sampling.
        routing: For which prompts it is meant.
        constraints: What it needs or excludes.
        soft_prompts: Their names, or paths where they have no name; they are not applied.
        warnings: What was tolerated, one line each.
        raw: The whole manifest as parsed.
    """

    name: str
    version: str
    schema_version: str
    description: str = ""
    author: str | None = None
    homepage: str | None = None
    repository: str | None = None
    license: str | None = None
    tags: tuple[str, ...] = ()
    base_models: tuple[BaseModelRef, ...]
    capabilities: tuple[str, ...] = ()
    decoding: DecodingDefaults = field(default_factory=DecodingDefaults)
    routing: Routing = field(default_factory=Routing)
    constraints: Constraints = field(default_factory=Constraints)
    soft_prompts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def from_file(cls, path: StrPath, *, strict: bool = False) -> ExpertManifest:
        """Read a manifest file.

        Args:
            path: The file.
            strict: As for `from_dict`.

        Raises:
            ManifestError: The file is missing or no strict JSON, or as `from_dict`.
        """
        path = Path(path)
        return cls.from_dict(read_json(path), where=path.name, strict=strict)

    @classmethod
    def from_dict(
        cls, mapping: Mapping[str, Any], *, where: str = MANIFEST, strict: bool = False
    ) -> ExpertManifest:
        """Read a parsed manifest.

        Args:
            mapping: The parsed JSON; one of `read_json` gives messages their line and column.
            where: Name of the file, for messages.
            strict: Refuse what the schemas object to and what else would be a warning; for authors.

        Raises:
            ManifestError: A required field is missing, the schema's major version is not known, or a strict
                rule is broken; with `strict` the message has one line for each problem, and the attributes
                are those of the first.
        """
        if strict and (problems := all_problems(mapping, where)):
            raise error_of(problems)
        report = report_on(mapping, where, lenient=True)
        fields = read_fields(Node(mapping, report))
        return cls(**fields, warnings=tuple(str(problem) for problem in report.problems()), raw=mapping)

    def package_filename(self, base_short: str) -> str:
        """Name of the package file for one base: `expert-sql-qwen3-0-6b.v0.3.0.expert`.

        Args:
            base_short: Name of the base without folders, such as `Qwen3-0.6B`.

        Raises:
            ManifestError: Name, version or base hold characters that a file name cannot have.
        """
        base = re.sub(r"[._]", "-", base_short.lower())
        filename = f"{self.name}-{base}.v{self.version}.expert"
        try:
            if "/" not in filename and member_name(filename) == filename:
                return filename
        except IntegrityError:
            pass
        raise ManifestError(
            f"{MANIFEST}: /name, /version and the base name do not make a file name ({filename[:120]!a}); "
            "keep to letters, digits, dots and hyphens"
        )
