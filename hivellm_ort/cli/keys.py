"""The commands `hivellm-ort keygen` and `hivellm-ort trust`."""

from __future__ import annotations

from pathlib import Path

import click

from hivellm_ort.cli.files import NamedPath
from hivellm_ort.cli.output import echo, json_option, print_json
from hivellm_ort.integrity.keyfiles import generate_key, public_path, read_public_key
from hivellm_ort.integrity.truststore import TrustStore

__all__ = ["keygen", "trust"]


@click.command()
@click.argument("path", type=NamedPath(), default=Path("publisher.key"))
@json_option("Print the key and the files as JSON.")
def keygen(path: Path, as_json: bool) -> None:
    """Make a key to sign packages with: the private key in PATH (publisher.key), the public one beside it.

    Keep the private file to yourself. Publish the public key where users can check it.
    """
    key = generate_key(path)
    public = public_path(path)
    if as_json:
        print_json({"public_key": key, "private_file": str(path), "public_file": str(public)}, indent=None)
        return
    echo(f"public key   {key}")
    echo(f"public file  {public}")
    echo(f"private file {path}")


@click.group()
def trust() -> None:
    """The public keys whose packages count as verified."""


@trust.command()
@click.argument("key_or_file")
@click.option("--name", required=True, help="Whose key it is.")
def add(key_or_file: str, name: str) -> None:
    """Pin KEY_OR_FILE: ed25519: and 64 hex digits, or a .pub file.

    Check the whole key with its owner first, over another way than the one it came by.
    """
    key = read_public_key(key_or_file)
    TrustStore().add(name, key)
    echo(f"{name}  {key}")


@trust.command("list")
@json_option("Print names and keys as a JSON object.")
def list_keys(as_json: bool) -> None:
    """Print the pinned keys."""
    keys = TrustStore().mapping()
    if as_json:
        print_json(keys)
        return
    for name, key in keys.items():
        echo(f"{name}  {key}")


@trust.command()
@click.argument("name_or_key")
def remove(name_or_key: str) -> None:
    """Forget the key pinned as NAME_OR_KEY."""
    echo(f"removed {TrustStore().remove(name_or_key)}")
