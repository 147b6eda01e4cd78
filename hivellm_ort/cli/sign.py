"""The commands `hivellm-ort sign` and `hivellm-ort verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from hivellm_ort.cli.files import NamedPath
from hivellm_ort.cli.output import echo, json_option, print_json
from hivellm_ort.integrity.keyfiles import read_public_key
from hivellm_ort.integrity.signing import sign as sign_package
from hivellm_ort.integrity.trust import Trust
from hivellm_ort.integrity.verdict import Verdict
from hivellm_ort.integrity.verification import verify as verify_package
from hivellm_ort.loading.opening import open_with_progress
from hivellm_ort.package.store import Store
from hivellm_ort.printable import printable
from hivellm_ort.progress import progress_bar
from hivellm_ort.textfile import decode_text

__all__ = ["sign", "verify"]

_SIDECAR_NOTES = {
    "differs": " (those of the reference packager always do: it computes them before the file is complete)"
}


@click.command()
@click.argument("package", type=NamedPath())
@click.option("--key", required=True, type=NamedPath(), help="Private key, made by 'hivellm-ort keygen'.")
@click.option(
    "--publisher", show_default="name of the key file", help="Name of the signer, written into the signature."
)
@click.option("--output", type=NamedPath(), show_default="PACKAGE", help="File to write.")
@json_option("Print the signature as JSON.")
def sign(package: Path, key: Path, publisher: str | None, output: Path | None, as_json: bool) -> None:
    """Sign a package.

    An older signature in PACKAGE is replaced. Pickles and executables in it are removed.
    """
    with progress_bar(f"signing {package.name}") as progress:
        signed = sign_package(
            package,
            key,
            publisher=key.stem if publisher is None else publisher,
            output=output,
            progress=progress,
        )
    if as_json:
        print_json({**asdict(signed), "path": str(signed.path)})
        return
    echo(f"signed   {signed.path}")
    echo(f"key      {signed.key}")
    echo(f"members  {signed.members}")
    for note in signed.notes:
        echo(f"note     {printable(note)}")


@click.command()
@click.argument("package", type=NamedPath())
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="PUB",
    help="Trust only this public key (ed25519:… or a .pub file), not the pinned ones. Can be repeated.",
)
@json_option("Print the verdict as JSON.")
@click.pass_context
def verify(ctx: click.Context, package: Path, keys: tuple[str, ...], as_json: bool) -> None:
    """Check who signed a package, and whether it was changed.

    PACKAGE is a .expert file, or a folder with its files. Every file is read, even if the cache knows it.

    Exit status: 0 verified; 1 not verified (unsigned, signed by an unknown key, or failed); 2 the package is damaged
    or cannot be read.
    """
    given = {key: read_public_key(key) for key in keys}
    with Store() as store:
        opened = open_with_progress(package, store, checking="digest")
        verdict = verify_package(opened, given or Trust().pinned())
    # A folder opened in place has no list of members. A broken link in it is not a file.
    members = len(opened.members) + len(opened.skipped) or sum(path.is_file() for path in package.rglob("*"))
    sidecar = _sidecar(package, opened.sha256)
    if as_json:
        found = {**asdict(verdict), "members": members, "sidecar": sidecar, "notes": opened.notes}
        print_json(found)
    else:
        _print(verdict, members, sidecar, opened.notes)
    ctx.exit(0 if verdict.status == "verified" else 1)


def _print(verdict: Verdict, members: int, sidecar: str | None, notes: tuple[str, ...]) -> None:
    echo(printable(str(verdict)))
    if verdict.key is not None:
        echo(f"key      {verdict.key}")
    if verdict.scheme is not None:
        echo(f"scheme   {verdict.scheme}")
    echo(f"members  {members}")
    if sidecar is not None:
        echo(f"sidecar  {sidecar}{_SIDECAR_NOTES.get(sidecar, '')}")
    reason = (verdict.reason,) if verdict.status == "unsigned" and verdict.reason else ()
    for note in (*reason, *notes):
        echo(f"note     {printable(note)}")


def _sidecar(package: Path, sha256: str) -> str | None:
    """Compare with the `.sha256` file beside a package: `matches`, `differs`, `unreadable`; None if there is none."""
    path = package.with_name(f"{package.name}.sha256")
    if not sha256 or not path.exists():
        return None
    try:
        with path.open("rb") as file:
            words = decode_text(file.read(1024)).split()
    except (OSError, UnicodeDecodeError):
        return "unreadable"
    return "matches" if words and words[0].lower() == sha256 else "differs"
