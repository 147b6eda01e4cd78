"""The command `hivellm-ort inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hivellm_ort.cli.files import NamedPath
from hivellm_ort.cli.output import echo, json_option, print_json
from hivellm_ort.integrity import Trust
from hivellm_ort.loading.inspection import inspect as inspect_package
from hivellm_ort.loading.opening import open_with_progress, verify
from hivellm_ort.package.store import Store
from hivellm_ort.printable import printable

__all__ = ["inspect"]


@click.command()
@click.argument("package", type=NamedPath())
@json_option("Print everything as JSON.")
def inspect(package: Path, as_json: bool) -> None:
    """Show the contents of a package without running it.

    PACKAGE is a .expert file or a folder. Prints the expert, base, adapter, signature, decoding settings, files and
    warnings.
    """
    with Store() as store:
        found = verify(open_with_progress(package, store), package, Trust("off"))
        info = {"package": package.name, **inspect_package(found.files, found.manifest, found.verdict)}
    if as_json:
        print_json(info)
        return
    for label, text in _lines(info):
        echo(f"{label + ':':<13} {printable(text)}")


def _lines(info: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and text of each line; lines without text are left out."""
    bases, adapter, grammar = info["bases"], info["adapter"], info["grammar"]
    models = ", ".join(model["name"] for model in info["base_models"])
    templates = {model["prompt_template"] for model in info["base_models"] if model["prompt_template"]}
    lines = [
        ("expert", f"{info['name']} {info['version']}"),
        ("about", info["description"]),
        ("license", info["license"]),
        ("signature", info["signature"]["verdict"]),
        ("sha256", info["sha256"]),
        ("base model", models),
        *[("base inside", text) for text in _base_texts(bases)],
        ("adapter", _adapter_text(bases, adapter)),
        ("template", ", ".join(filter(None, [*sorted(templates), info["chat_template"]]))),
        ("decoding", ", ".join(f"{name} {value}" for name, value in info["decoding"].items())),
        ("grammar", ", ".join(f"{name} {value}" for name, value in grammar.items()) if grammar else ""),
        ("keywords", ", ".join(info["routing"]["keywords"])),
        ("files", f"{len(info['files'])}, {info['bytes']:,} bytes" if info["files"] else "a folder"),
    ]
    lines += [("warning", warning) for warning in info["warnings"]]
    return [(label, text) for label, text in lines if text]


def _base_texts(bases: list[dict[str, Any]]) -> list[str]:
    """One line for each target."""
    return [
        f"{base['name']} {base['precision']} for {base['target']}, context {base['context']}"
        + (f", keys and values in {base['cache']}" if base["cache"] == "int8" else "")
        for base in bases
    ] or ["none: a bundle of the base model is needed"]


def _adapter_text(bases: list[dict[str, Any]], adapter: dict[str, Any] | None) -> str:
    if adapter is None:
        return "merged into the base" if bases else "none that can be read"
    where = "prepared" if adapter["form"] == "prepared" else "PEFT's files, prepared when loaded"
    modules = ", ".join(adapter["modules"])
    return f"{adapter['kind']} rank {adapter['rank']} on {modules} ({where}, {adapter['bytes']:,} bytes)"
