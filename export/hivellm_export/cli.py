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
    help="Folder of an expert: manifest.json and the files that PEFT saved. Can be repeated.",
)
@click.option("--output", required=True, type=NamedPath(), help="Folder to write to.")
@click.option(
    "--target", "targets", type=click.Choice(list(TARGETS)), multiple=True, default=["cpu"], show_default=True,
    help="Runtime of the graphs: a provider of ONNX Runtime, or portable for any runtime of standard ONNX. Can be "
    "repeated: packages then hold one bundle per target.",
)  # fmt: skip
@click.option(
    "--precision", "precisions", metavar="[TARGET=]PRECISION", multiple=True,
    help="Precision of the base's weights; auto chooses by model size and this CPU. With several targets, name the "
    "target, as in portable=fp16. Can be repeated. Precisions by target, the default first: "
    + "; ".join(f"{name} {', '.join(target.precisions)}" for name, target in TARGETS.items()) + ".",
)  # fmt: skip
@click.option(
    "--context", type=click.IntRange(min=2), show_default="2048, or the model's own if less",
    help="Maximum tokens of prompt and answer, only for dml and portable: their shapes are fixed.",
)  # fmt: skip
@click.option(
    "--cache", type=click.Choice(["int8"]), show_default="float32",
    help="Store keys and values in 8 bits, only for cpu. This needs a quarter of the memory and less time for long "
    "contexts and many rows. Needs ONNX Runtime 1.28.",
)  # fmt: skip
@click.option(
    "--tokenizer", type=NamedPath(exists=True, file_okay=False), metavar="FOLDER",
    help="Use the tokenizer of this Hugging Face folder instead of the base's own. It must fit the base.",
)  # fmt: skip
@click.option(
    "--merge",
    "merged",
    is_flag=True,
    help="Merge the expert into the base's weights. Needs exactly one --expert.",
)
@click.option(
    "--thin",
    is_flag=True,
    help="Write packages without the base, and the base once, to base/ in the output folder.",
)
@click.option("--force", is_flag=True, help="Overwrite files of the same names in the output folder.")
@click.option(
    "--verify/--no-verify", "verify", default=None, show_default="if expected to take under a minute",
    help="Compare the export with transformers, PEFT and the files of the base before it is written.",
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
    """Export a base model and PEFT adapters to ONNX.

    Without --expert, the output folder becomes a base bundle: graphs, weights and tokenizer. With --expert, it holds
    one .expert package for each expert.

    Exit status: 0 if everything was written; 2 if an input is wrong or verification fails: then nothing is written.
    If standard output cannot be written, the status is 2 or 141, and the files are complete.
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
            _print_verification(f"{bundle.precision} {bundle.target}", bundle.verification)
        if bundle.folder is not None:
            echo(f"bundle    {output / bundle.folder}")
    for package in report.packages:
        kind = f"{package.kind} rank {package.rank}" if package.rank else package.kind
        echo(f"package   {output / package.file}  {package.size / 1e6:.1f} MB  {kind}")
        for verification in package.verification:
            _print_verification(
                f"{package.name} on {verification.precision} {verification.target}", verification
            )
    if report.unverified:
        echo(f"verified  no: {report.unverified}")
    echo(f"done in   {report.seconds:.1f} s")


def _print_verification(what: str, verification: Verification) -> None:
    """Print the result of a verification, and each thing that was not compared."""
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
