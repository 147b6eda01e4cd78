"""Reads the fields of a manifest tolerantly, as published packages need it."""

from __future__ import annotations

import re
from typing import Any

from hivellm_ort.filenames import shown
from hivellm_ort.jsonfiles.node import Node
from hivellm_ort.package.manifest_parts import BaseModelRef, Constraints, DecodingDefaults, Routing

__all__ = ["read_fields"]

_MAJORS = ("1", "2")  # the newest known minor version of each is 0


def read_fields(root: Node) -> dict[str, Any]:
    """Return the arguments of an `ExpertManifest`, except `warnings` and `raw`.

    Args:
        root: The manifest, with a lenient report that collects the warnings.

    Raises:
        ManifestError: A required field is missing, or the schema's major version is unknown.
    """
    schema_version = _schema_version(root)
    training, repository = root.child("training"), root.child("repository")
    decoding = training.child("decoding") if training else None
    routing, constraints = root.child("routing"), root.child("constraints")
    # Required fields come last, because their errors end the reading. So a report has the other problems too.
    return {
        "schema_version": schema_version,
        "description": root.text("description") or "",
        "author": root.text("author") or None,
        "homepage": root.text("homepage") or None,
        "repository": (repository.text("url") or None) if repository else None,
        "license": root.text("license") or None,
        "tags": root.texts("tags") or (),
        "capabilities": root.texts("capabilities") or (),
        "decoding": DecodingDefaults.read(decoding) if decoding else DecodingDefaults(),
        "routing": Routing.read(routing) if routing else Routing(),
        "constraints": Constraints.read(constraints) if constraints else Constraints(),
        "soft_prompts": _soft_prompts(root),
        "base_models": _base_models(root, schema_version),
        "name": root.required("name"),
        "version": root.required("version"),
    }


def _schema_version(root: Node) -> str:
    form = "1.0" if root.has("base_model") and not root.has("base_models") else "2.0"
    version = root.text("schema_version")
    if not version:
        return form
    digits = re.match(r"0*([0-9]+)", version)
    if digits is None:
        root.note("schema_version", f"{shown(version)} is not a version, read as {form}; write {form}")
        return form
    major = digits[1]
    if major not in _MAJORS:
        root.fail("schema_version", f"{shown(version)} is not known (1 and 2 are); use a newer hivellm-ort")
    parts = re.fullmatch(r"[0-9]+(?:\.([0-9]+))?(?:\.[0-9]+)?", version)
    if parts is None:
        root.note("schema_version", f"{shown(version)} is not a version, read as {major}.0; write {major}.0")
        return f"{major}.0"
    if (parts[1] or "").strip("0"):
        root.note("schema_version", f"{shown(version)} is newer than {major}.0 and read as that")
    return version


def _base_models(root: Node, schema_version: str) -> tuple[BaseModelRef, ...]:
    first_form = schema_version.lstrip("0").startswith("1")
    single, several = root.child("base_model"), root.children("base_models")
    if single and several:
        kept, other = ("base_model", "base_models") if first_form else ("base_models", "base_model")
        root.note(other, f"not read, for schema {shown(schema_version)} has {kept}; remove one of them")
    elif (single or several) and first_form != bool(single):
        first_form = not first_form
        kept = "base_model" if first_form else "base_models"
        root.note(kept, f"schema {shown(schema_version)} has no such field; correct one of them")
    nodes = several
    if first_form:
        nodes = (single,) if single else ()
    if not nodes:
        root.fail("base_model" if first_form else "base_models", "no usable base model; name one")
    found = [BaseModelRef.read(node, adapters_in=root if first_form else node) for node in nodes]
    models = tuple(model for model in found if model is not None)
    if not models:
        nodes[0].fail("name", "no usable name; name the base model")
    if not any(model.adapters for model in models):
        (root if first_form else nodes[0]).fail("adapters", "no usable adapter; list one")
    return models


def _soft_prompts(root: Node) -> tuple[str, ...]:
    nodes = root.children("soft_prompts")
    if nodes:
        root.note("soft_prompts", "not applied: this runtime has no soft prompts; remove them")
    return tuple(name for node in nodes if (name := node.text("name") or node.text("path")))
