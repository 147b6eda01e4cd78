"""The command `hivellm-ort init`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from hivellm_ort.cli.files import NamedPath
from hivellm_ort.cli.output import echo, input_is_a_terminal, json_option, print_json
from hivellm_ort.errors import LoadError, ManifestError
from hivellm_ort.loading.peft_folder import (
    build_manifest,
    describe_base_model,
    read_base_name,
    suggest_expert_name,
)
from hivellm_ort.package.links import check_folder
from hivellm_ort.package.manifest import MANIFEST, ExpertManifest
from hivellm_ort.package.manifest_parts import PROMPT_TEMPLATES
from hivellm_ort.printable import printable
from hivellm_ort.text.prompt import dialect_of

__all__ = ["init"]

# Required fields and their questions. The option has the name of the field, except for capabilities.
_QUESTIONS = {
    "name": "Name, such as expert-sql",
    "version": "Version",
    "base": "Base model, such as Qwen3-0.6B, or the folder of its base bundle",
    "description": "What the expert does, in one line",
    "license": "Licence, such as Apache-2.0",
    "capability": "Capabilities, such as task:summary language:en",
}


@click.command()
@click.argument("folder", type=NamedPath())
@click.option("--name", show_default="expert-FOLDER", help="Name of the expert, such as expert-sql.")
@click.option("--version", show_default="0.1.0", help="Version of the expert: three numbers.")
@click.option(
    "--base",
    show_default="from adapter_config.json",
    help="Base model: its name, or the folder of its exported base. With a folder, the manifest pins its digest.",
)
@click.option("--description", help="What the expert does, in one line.")
@click.option("--license", help="Identifier of the licence, such as Apache-2.0.")
@click.option(
    "--capability",
    multiple=True,
    help="Capability, such as task:summary or database:sql. Routing uses it. Can be repeated.",
)
@click.option("--author", help="Person or organisation that made the expert.")
@click.option(
    "--keyword", multiple=True, help="Word in prompts for this expert. Routing uses it. Can be repeated."
)
@click.option("--stop", multiple=True, help="Text that ends an answer. Can be repeated.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Maximum tokens of an answer.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, max=2),
    help="Randomness: 0 always takes the most likely token.",
)
@click.option(
    "--prompt-template",
    type=click.Choice(PROMPT_TEMPLATES),
    show_default="the chat template of FOLDER, or of the base",
    help="Format of the training prompts.",
)
@click.option("--force", is_flag=True, help="Overwrite an existing manifest.json.")
@json_option("Print the manifest as JSON, and ask no questions.")
def init(
    folder: Path,
    author: str | None,
    keyword: tuple[str, ...],
    stop: tuple[str, ...],
    max_tokens: int | None,
    temperature: float | None,
    prompt_template: str | None,
    force: bool,
    as_json: bool,
    **told: Any,
) -> None:
    """Write the manifest.json of a PEFT adapter.

    FOLDER is the folder that PEFT saved. The manifest passes 'hivellm-ort pack --strict'. On a terminal, the command
    asks for required fields that no option gives.

    A manifest has no field for a system prompt: write it into chat_template.jinja in FOLDER, or pass it with every
    request.
    """
    if not folder.is_dir():
        raise LoadError(f"{folder}: not a folder; name the folder that PEFT saved")
    check_folder(folder)
    path = folder / MANIFEST
    if path.exists() and not force:
        raise ManifestError(f"{path} exists already: edit it, or overwrite it with --force")
    defaults = {"name": suggest_expert_name(folder), "version": "0.1.0", "base": read_base_name(folder)}
    # Read the adapter before any question: most mistakes are there.
    build_manifest(folder, name="", version="", base={"name": ""})
    answers = _answers(told, defaults, ask=not as_json and input_is_a_terminal())
    base = describe_base_model(answers["base"])
    if prompt_template is not None:
        base["prompt_template"] = prompt_template
    fields: dict[str, Any] = {
        "description": answers["description"],
        **({"author": author} if author else {}),
        "license": answers["license"],
        "capabilities": list(answers["capability"]),
        **({"routing": {"keywords": list(keyword)}} if keyword else {}),
    }
    decoding: dict[str, Any] = {
        **({} if temperature is None else {"temperature": temperature}),
        **({} if max_tokens is None else {"max_new_tokens": max_tokens}),
        **({"stop_sequences": list(stop)} if stop else {}),
    }
    document = build_manifest(
        folder,
        name=answers["name"],
        version=answers["version"],
        base=base,
        fields=fields,
        decoding=decoding,
    )
    manifest = _checked(document)
    _write(path, document)
    notes = _notes(manifest)
    if as_json:
        print_json({"file": str(path), "manifest": document, "notes": notes})
        return
    for note in notes:
        echo(f"note: {note}", err=True)
    echo(f"{path}  {manifest.name} {manifest.version}")
    echo(f"next: hivellm-ort pack {folder} --strict")


def _answers(told: dict[str, Any], defaults: dict[str, str | None], *, ask: bool) -> dict[str, Any]:
    """Complete the options: ask for missing ones, or take the defaults if nobody can be asked."""
    answers = {}
    for field, question in _QUESTIONS.items():
        value = told[field] or None
        if value is None and ask:
            default = defaults.get(field)
            shown = f"{question} [{printable(default)}]" if default else question
            value = click.prompt(shown, default=default, show_default=False, err=True)
            value = value.replace(",", " ").split() if field == "capability" else value
        value = value or defaults.get(field)
        if not value:
            raise ManifestError(f"--{field} is missing: {question[0].lower()}{question[1:]}")
        answers[field] = value
    return answers


def _checked(document: dict[str, Any]) -> ExpertManifest:
    """Check the manifest as `pack --strict` does; an error names the option that is wrong."""
    try:
        return ExpertManifest.from_dict(document, strict=True)
    except ManifestError as error:
        line = str(error).splitlines()[0]
        field = (error.pointer or "").split("/")[1:]
        option = {
            "capabilities": "capability",
            "base_models": "base",
            "training": "stop",
            "routing": "keyword",
        }
        name = option.get(field[0], field[0]) if field else ""
        inside = "adapters" in field
        raise ManifestError(line if inside or not name else f"--{name}: {line}") from error


def _write(path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    work = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            work.write_bytes(text.encode())
            work.replace(path)
        finally:
            work.unlink(missing_ok=True)
    except OSError as error:
        raise LoadError(f"{path}: cannot be written: {error.strerror or error}") from error


def _notes(manifest: ExpertManifest) -> list[str]:
    dialect = dialect_of(manifest.capabilities, manifest.decoding.grammar_type)
    if dialect is None:
        return []
    return [
        f"because of these capabilities, prompts without a system message get 'Dialect: {dialect}' as one. "
        "If the training prompts had none, remove that capability, or pass an empty system message with every request"
    ]
