"""What `manifest.json` says, in both schema versions and as tolerantly as published packages need.

Required are a name, a version, one base model and one adapter. Null counts as absent, unknown keys are kept
in `raw` only, and a value that cannot be meant is left unset with a warning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hivellm_ort.errors import IntegrityError, ManifestError
from hivellm_ort.package.jsonfile import Node, read_json
from hivellm_ort.package.manifest_parts import AdapterRef, BaseModelRef, DecodingDefaults
from hivellm_ort.package.names import member_name

__all__ = ["MANIFEST", "AdapterRef", "BaseModelRef", "DecodingDefaults", "ExpertManifest"]

MANIFEST = "manifest.json"
"""Name of the manifest in a package."""

_KNOWN_SCHEMAS = {1: 0, 2: 0}  # newest known minor version of each major


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertManifest:
    """The manifest of one expert.

    Attributes:
        name: Name of the expert; published ones begin with `expert-`.
        version: Version of the expert, such as `0.3.0`.
        schema_version: As written, or `1.0` or `2.0` by its form.
        description: Empty when unset.
        base_models: At least one; at least one of them has an adapter.
        capabilities: Such as `database:sql`.
        decoding: Suggested sampling.
        license: Identifier of the licence; None when unset.
        warnings: What was tolerated, one sentence each.
        raw: The whole manifest as parsed.
    """

    name: str
    version: str
    schema_version: str
    description: str
    base_models: tuple[BaseModelRef, ...]
    capabilities: tuple[str, ...]
    decoding: DecodingDefaults
    license: str | None
    warnings: tuple[str, ...]
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def from_file(cls, path: Path) -> ExpertManifest:
        """Read a manifest file.

        Raises:
            ManifestError: The file is missing or no strict JSON, or as `from_dict`.
        """
        return cls.from_dict(read_json(path), where=path.name)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any], *, where: str = MANIFEST) -> ExpertManifest:
        """Read a parsed manifest.

        Args:
            mapping: The parsed JSON.
            where: Name of the file, for messages.

        Raises:
            ManifestError: A required field is missing, a field has the wrong type, or the schema's major
                version is not known.
        """
        root = Node(mapping, where)
        warnings: list[str] = []
        schema_version = _schema_version(root, warnings)
        training = root.child("training")
        decoding = training.child("decoding") if training else None
        return cls(
            name=root.required("name"),
            version=root.required("version"),
            schema_version=schema_version,
            description=root.text("description") or "",
            base_models=_base_models(root, schema_version, warnings),
            capabilities=root.texts("capabilities") or (),
            decoding=DecodingDefaults.read(decoding, warnings) if decoding else DecodingDefaults(),
            license=root.text("license") or None,
            warnings=tuple(warnings),
            raw=mapping,
        )

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


def _schema_version(root: Node, warnings: list[str]) -> str:
    version = root.text("schema_version")
    if not version:
        return "1.0" if root.has("base_model") and not root.has("base_models") else "2.0"
    parts = re.fullmatch(r"(\d{1,4})(?:\.(\d{1,4}))?(?:\.\d{1,4})?", version, re.ASCII)
    if parts is None:
        root.fail("schema_version", f"{version[:80]!a} is no version; write 2.0")
    major, minor = int(parts[1]), int(parts[2] or 0)
    if major not in _KNOWN_SCHEMAS:
        root.fail("schema_version", f"{version} is not known (1 and 2 are); use a newer hivellm-ort")
    if minor > _KNOWN_SCHEMAS[major]:
        warnings.append(
            f"schema_version {version} is newer than {major}.{_KNOWN_SCHEMAS[major]}; read as that"
        )
    return version


def _base_models(root: Node, schema_version: str, warnings: list[str]) -> tuple[BaseModelRef, ...]:
    first_form = schema_version.split(".")[0] == "1"
    single, several = root.child("base_model"), root.children("base_models")
    if single and several:
        kept = "base_model" if first_form else "base_models"
        warnings.append(
            f"both base_model and base_models are set; read {kept}, as schema {schema_version} asks"
        )
    elif (single or several) and first_form != bool(single):
        first_form = not first_form
        kept = "base_model" if first_form else "base_models"
        warnings.append(f"schema {schema_version} does not have {kept}; read all the same")
    bases = several
    if first_form:
        bases = (single,) if single else ()
    if not bases:
        root.fail("base_model" if first_form else "base_models", "missing or empty; name the base model")
    models = tuple(
        BaseModelRef.read(base, warnings, adapters_in=root if first_form else base) for base in bases
    )
    if not any(model.adapters for model in models):
        (root if first_form else bases[0]).fail("adapters", "missing or empty; list one adapter")
    return models
