"""Describes a package without running it."""

from __future__ import annotations

import dataclasses
from typing import Any

from hivellm_ort.adapters.config import read_peft_config
from hivellm_ort.adapters.prepared_adapter import PreparedAdapter
from hivellm_ort.contract import DECODER_JSON, DecoderConfig
from hivellm_ort.errors import LoadError
from hivellm_ort.integrity import Verdict
from hivellm_ort.loading.adapter_files import find_adapter_files
from hivellm_ort.loading.grammars import GRAMMAR
from hivellm_ort.package.manifest import MANIFEST, ExpertManifest
from hivellm_ort.package.manifest_schema import schema_problems
from hivellm_ort.package.store import UnpackedPackage

__all__ = ["inspect"]

_TEMPLATES = ("chat_template.jinja", "tokenizer_config.json")


def inspect(package: UnpackedPackage, manifest: ExpertManifest, verdict: Verdict) -> dict[str, Any]:
    """Describe a package as plain JSON values.

    A part that cannot be read becomes a warning, because a broken package can be inspected too.

    Args:
        package: The package.
        manifest: Its manifest.
        verdict: The result of checking its signature.
    """
    path = package.root / MANIFEST
    warnings = [*package.notes, *manifest.warnings, *(schema_problems(path) if path.is_file() else [])]
    return {
        "name": manifest.name,
        "version": manifest.version,
        "description": manifest.description,
        "license": manifest.license,
        "schema_version": manifest.schema_version,
        "capabilities": list(manifest.capabilities),
        "sha256": package.sha256 or None,
        "signature": {"verdict": str(verdict), **dataclasses.asdict(verdict)},
        "base_models": [
            {"name": base.short_name, "sha256": base.sha256, "prompt_template": base.prompt_template}
            for base in manifest.base_models
        ],
        "bases": _bases(package, warnings),
        "adapter": _adapter(package, manifest, warnings),
        "chat_template": _chat_template(package),
        "decoding": {
            name: value
            for name, value in dataclasses.asdict(manifest.decoding).items()
            if value is not None and "grammar" not in name
        },
        "grammar": _grammar(package, manifest),
        "routing": dataclasses.asdict(manifest.routing),
        "constraints": dataclasses.asdict(manifest.constraints),
        "files": [dataclasses.asdict(member) for member in package.members],
        "skipped": [dataclasses.asdict(member) for member in package.skipped],
        "bytes": sum(member.size for member in package.members),
        "warnings": warnings,
    }


def _bases(package: UnpackedPackage, warnings: list[str]) -> list[dict[str, Any]]:
    """Describe the base bundles in the package, one for each target; empty for a thin package."""
    configs = []
    for folder in package.bundles:
        try:
            configs.append(DecoderConfig.from_file(folder / DECODER_JSON))
        except LoadError as error:
            warnings.append(str(error))
    return [
        {
            "name": config.name,
            "model_type": config.architecture.model_type,
            "precision": config.precision,
            "target": config.target,
            "context": config.context,
            "cache": config.graph.cache_dtype,
            "sha256": config.sha256,
            "source_sha256": config.source_sha256,
            "merged": config.merged,
            "contract_version": config.contract_version,
        }
        for config in configs
    ]


def _adapter(
    package: UnpackedPackage, manifest: ExpertManifest, warnings: list[str]
) -> dict[str, Any] | None:
    """Describe the adapter, prepared or as files of PEFT; None if it is merged or cannot be read."""
    try:
        if package.adapter is not None:
            prepared = PreparedAdapter.from_file(package.adapter)
            return {
                "form": "prepared",
                "kind": prepared.kind,
                "rank": prepared.rank,
                "modules": sorted({module.rpartition(".")[2] for module in prepared.modules}),
                "bytes": package.adapter.stat().st_size,
                "source_sha256": prepared.source_sha256,
            }
        if package.bundles:
            return None
        first = next(base for base in manifest.base_models if base.adapters)
        files = find_adapter_files(package, manifest, first)
        config = read_peft_config(files.config)
        modules = config.target_modules
        return {
            "form": "peft",
            "kind": config.kind,
            "rank": config.rank,
            "modules": [modules] if isinstance(modules, str) else sorted(modules),
            "bytes": files.weights.stat().st_size,
            "source_sha256": None,
        }
    except LoadError as error:
        warnings.append(str(error))
        return None


def _chat_template(package: UnpackedPackage) -> str | None:
    """Return the file with the chat template: a bundle's, else the package's own."""
    for folder in (*package.bundles, package.root):
        for name in _TEMPLATES:
            path = folder / name
            if path.is_file() and (name.endswith(".jinja") or b'"chat_template"' in path.read_bytes()):
                return name
    return None


def _grammar(package: UnpackedPackage, manifest: ExpertManifest) -> dict[str, Any] | None:
    decoding = manifest.decoding
    name = decoding.grammar_file or GRAMMAR
    size = next((member.size for member in package.members if member.name == name), None)
    if size is None and not package.members and (package.root / name).is_file():
        size = (package.root / name).stat().st_size
    if size is None and decoding.use_grammar is None and decoding.grammar_type is None:
        return None
    return {"file": name, "bytes": size, "type": decoding.grammar_type, "use": decoding.use_grammar}
