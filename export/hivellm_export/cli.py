"""The command `hivellm-ort export`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hivellm_export.libraries import prepare_libraries
from hivellm_export.targets import TARGETS
from hivellm_ort.cli.files import NamedPath
from hivellm_ort.cli.output import echo, json_option, print_json

if TYPE_CHECKING:
    from hivellm_export.verify.report import Verification

__all__ = ["export"]


@click.command()
@click.option(
    "--base",
    required=True,
    type=NamedPath(exists=True),
    help="Base model: a Hugging Face folder or a .gguf file.",
)
@click.option(
    "--expert",
    "experts",
    multiple=True,
    type=NamedPath(exists=True, file_okay=False),
    help="An expert's folder (manifest.json, adapter_config.json, adapter_model.safetensors); may be repeated.",
)
@click.option("--output", required=True, type=NamedPath(), help="Folder to write to.")
@click.option(
    "--target", "targets", type=click.Choice(list(TARGETS)), multiple=True, default=["cpu"], show_default=True,
    help="What the graphs are for: an execution provider, or with portable any runtime of standard ONNX; may be "
    "repeated, for packages that carry several.",
)  # fmt: skip
@click.option(
    "--precision", "precisions", metavar="[TARGET=]PRECISION", multiple=True,
    help="Of the base's weights; with several targets it says for which, as portable=fp16, and may be repeated; auto "
    "goes by the model's size and this machine's CPU. By target, the default first: "
    + "; ".join(f"{name} {', '.join(target.precisions)}" for name, target in TARGETS.items()) + ".",
)  # fmt: skip
@click.option(
    "--context", type=click.IntRange(min=2),
    help="Tokens of the cache, for dml and portable, whose shapes are fixed [default: 2048, or what the model has].",
)  # fmt: skip
@click.option(
    "--cache", type=click.Choice(["int8"]),
    help="Keep keys and values of target cpu in 8 bits: a quarter of the memory, and less time for long contexts and "
    "many rows; needs ONNX Runtime 1.28 [default: float32].",
)  # fmt: skip
@click.option(
    "--tokenizer", type=NamedPath(exists=True, file_okay=False), metavar="FOLDER",
    help="Take the tokenizer of this Hugging Face folder, and not the base's own; it must fit the base.",
)  # fmt: skip
@click.option("--merge", "merged", is_flag=True, help="Fold the one expert into the weights.")
@click.option("--thin", is_flag=True, help="Leave the base out of the packages and write it once, to base/.")
@click.option("--force", is_flag=True, help="Replace what the output folder holds of the same names.")
@click.option(
    "--verify/--no-verify", "verify", default=None,
    help="Compare what was made with transformers, PEFT and the files of the base before it is written [default: "
    "where that is expected to take under a minute].",
)  # fmt: skip
@json_option("Print the report as JSON.")
def export(
    base: Path,
    experts: tuple[Path, ...],
    output: Path,
    targets: tuple[str, ...],
    precisions: tuple[str, ...],
    context: int | None,
    cache: str | None,
    tokenizer: Path | None,
    merged: bool,
    thin: bool,
    force: bool,
    verify: bool | None,
    as_json: bool,
) -> None:
    """Turn a base model and PEFT experts into ONNX bundles and .expert packages.

    Exit status: 0 when everything was written; 2 when an input is wrong, or verification fails, and nothing was.
    Where standard output cannot take the report it is 2 or 141, and all was written.
    """
    prepare_libraries()
    from hivellm_export.pipeline import export as run

    report = run(
        base,
        experts,
        output,
        precision=precisions,
        target=targets,
        context=context,
        cache=cache,
        merged=merged,
        thin=thin,
        force=force,
        tokenizer=tokenizer,
        verify=verify,
    )
    if as_json:
        print_json(dataclasses.asdict(report))
        return
    if report.base_origin:
        echo(f"name      {report.base}: from {report.base_origin}")
    for bundle in report.bundles:
        cache = f" with keys and values in {bundle.cache}" if bundle.cache == "int8" else ""
        echo(f"base      {report.base} {bundle.precision} {bundle.target}{cache}  {bundle.sha256[:12]}")
        if bundle.reason:
            echo(f"precision {bundle.precision}: {bundle.reason}")
        if bundle.verification is not None:
            _say(f"{bundle.precision} {bundle.target}", bundle.verification)
        if bundle.folder is not None:
            echo(f"bundle    {output / bundle.folder}")
    for package in report.packages:
        kind = f"{package.kind} rank {package.rank}" if package.rank else package.kind
        echo(f"package   {output / package.file}  {package.size / 1e6:.1f} MB  {kind}")
        for verification in package.verification:
            _say(f"{package.name} on {verification.precision} {verification.target}", verification)
    if report.unverified:
        echo(f"verified  no: {report.unverified}")
    echo(f"done in   {report.seconds:.1f} s")


def _say(what: str, verification: Verification) -> None:
    """One line on a verification, and one for each thing that was not compared."""
    if verification.kl is None:
        answers = "answers not compared"
    else:
        answers = (
            f"KL {verification.kl:.2g} nats a token (at most {verification.bound:g}), "
            f"{verification.agreement:.1%} the same token, {verification.tokens} tokens"
        )
    echo(f"verified  {what}: {answers}, {verification.seconds:.1f} s")
    for omission in verification.omitted:
        echo(f"          {omission}")
