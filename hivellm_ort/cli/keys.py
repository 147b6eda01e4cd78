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
@json_option("Print the public key and the file names as JSON.")
def keygen(path: Path, as_json: bool) -> None:
    """Make a key pair for signing packages.

    The private key goes to PATH (by default publisher.key), the public key to a .pub file beside it.

    Keep the private key secret. Publish the public key where users can check it.
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
    """Manage the public keys that you trust.

    A package that one of them has signed counts as verified.
    """


@trust.command()
@click.argument("key_or_file")
@click.option("--name", required=True, help="Name of the key's owner.")
def add(key_or_file: str, name: str) -> None:
    """Trust a public key.

    KEY_OR_FILE is a key (ed25519: and 64 hex digits), or a .pub file.

    First compare the whole key with its owner, for example by phone: not on the way that the key came.
    """
    key = read_public_key(key_or_file)
    TrustStore().add(name, key)
    echo(f"{name}  {key}")


@trust.command("list")
@json_option("Print names and keys as a JSON object.")
def list_keys(as_json: bool) -> None:
    """List the trusted keys."""
    keys = TrustStore().mapping()
    if as_json:
        print_json(keys)
        return
    for name, key in keys.items():
        echo(f"{name}  {key}")


@trust.command()
@click.argument("name_or_key")
def remove(name_or_key: str) -> None:
    """Stop trusting the key NAME_OR_KEY."""
    echo(f"removed {TrustStore().remove(name_or_key)}")
