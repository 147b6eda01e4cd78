"""The manifest of an expert, `manifest.json`, in both schema versions.

Required are a name, a version, one base model and one adapter. Null counts as absent. Unknown keys are kept only in
`raw`. An unusable value is left unset, with a warning. Strict reading, for authors, refuses everything that is
otherwise a warning, and everything that the schemas of `manifest_schema` refuse.
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
"""The name of the manifest in a package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertManifest:
    """The manifest of one expert.

    Attributes:
        name: Name of the expert; published names begin with `expert-`.
        version: Version of the expert, such as `0.3.0`.
        schema_version: As written; if missing, `1.0` or `2.0` by the fields.
        description: Empty when unset.
        author: Person or organisation; None when unset.
        homepage: Address of a page; None when unset.
        repository: Address of the source, from `repository.url`; None when unset.
        license: Identifier of the licence; None when unset.
        tags: Words to search by.
        base_models: At least one; at least one of them has an adapter.
        capabilities: Capabilities such as `database:sql`.
        decoding: Suggested sampling options.
        routing: The prompts for which it is meant.
        constraints: Required and incompatible experts.
        soft_prompts: Names or paths of soft prompts; they are not applied.
        warnings: One line for each tolerated fault.
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
            ManifestError: The file is missing or not strict JSON, or as for `from_dict`.
        """
        path = Path(path)
        return cls.from_dict(read_json(path), where=path.name, strict=strict)

    @classmethod
    def from_dict(
        cls, mapping: Mapping[str, Any], *, where: str = MANIFEST, strict: bool = False
    ) -> ExpertManifest:
        """Read a parsed manifest.

        Args:
            mapping: The parsed JSON. If it comes from `read_json`, messages have line and column.
            where: Name of the file, for messages.
            strict: Whether to refuse warnings and violations of the schemas; for authors.

        Raises:
            ManifestError: A required field is missing, the schema's major version is unknown, or a strict rule is
                broken. With `strict` the message has one line for each problem, and the attributes are those of the
                first problem.
        """
        if strict and (problems := all_problems(mapping, where)):
            raise error_of(problems)
        report = report_on(mapping, where, lenient=True)
        fields = read_fields(Node(mapping, report))
        return cls(**fields, warnings=tuple(str(problem) for problem in report.problems()), raw=mapping)

    def package_filename(self, base_short: str) -> str:
        """Return the name of the package file for one base, such as `expert-sql-qwen3-0-6b.v0.3.0.expert`.

        Args:
            base_short: Name of the base without folders, such as `Qwen3-0.6B`.

        Raises:
            ManifestError: Name, version or base have characters that a file name cannot have.
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
            "use only letters, digits, dots and hyphens"
        )
