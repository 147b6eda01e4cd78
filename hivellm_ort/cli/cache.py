"""The command `hivellm-ort cache`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import click

from hivellm_ort.cli.output import echo, input_is_a_terminal, json_option, print_json
from hivellm_ort.errors import OptionError
from hivellm_ort.package.entries import StoreEntry
from hivellm_ort.package.sizes import format_size, parse_size
from hivellm_ort.package.store import Store
from hivellm_ort.printable import escaped, printable
from hivellm_ort.progress import progress_bar

__all__ = ["cache"]


@click.group()
def cache() -> None:
    """Show and clean the cache of unpacked packages.

    It also holds bases, prepared adapters and downloads. Its folder is HIVELLM_HOME, or one in the user's cache
    folder; 'hivellm-ort cache list' prints it.
    """


@cache.command("list")
@click.option("--check", is_flag=True, help="Read every file and mark damaged entries.")
@json_option("Print the list as JSON.")
def list_(check: bool, as_json: bool) -> None:
    """List the entries of the cache, with size and last use."""
    store = Store()
    listing = store.listing()
    if check:
        with progress_bar("checking", listing.total_bytes) as progress:
            listing = store.listing(check="digest", progress=progress)
    if as_json:
        print_json(
            {
                "root": str(listing.root),
                "total_bytes": listing.total_bytes,
                "max_bytes": store.max_bytes,
                "entries": [_document(entry) for entry in listing.entries],
            }
        )
        return
    echo(listing.root)
    for line in _lines(listing.entries):
        echo(line)
    limit = f" of at most {format_size(store.max_bytes)}" if store.max_bytes is not None else ""
    echo(f"{format_size(listing.total_bytes)}{limit} on the disk, shared files counted once")


@cache.command()
@click.option(
    "--max-size",
    metavar="SIZE",
    help="Then remove the least recently used entries until the cache is no larger. Example: 20GB.",
)
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Also remove entries that were not used for DAYS.",
)
@json_option("Print the removed entries as JSON.")
def prune(max_size: str | None, older_than: float | None, as_json: bool) -> None:
    """Remove damaged entries, and old ones if asked.

    Every file of the cache is read. Leftovers of processes that were killed are removed too.
    """
    store = Store()
    max_bytes = None if max_size is None else parse_size(max_size)
    before = store.listing().total_bytes
    with progress_bar("checking", before) as progress:
        removed = store.prune(max_bytes=max_bytes, unused_days=older_than, progress=progress)
    after = store.listing().total_bytes
    if as_json:
        entries = [_document(entry) for entry in removed]
        print_json({"removed": entries, "freed_bytes": before - after, "total_bytes": after})
        return
    for line in _lines(removed):
        echo(line)
    echo(f"removed {len(removed)}, freed {format_size(before - after)}; {format_size(after)} left")


@cache.command()
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option("Print the freed bytes as JSON.")
def clear(yes: bool, as_json: bool) -> None:
    """Remove everything from the cache.

    Your own bundles in models/ and your trusted keys stay. So do entries that another process uses now.
    """
    store = Store()
    before = store.listing().total_bytes
    if not yes:
        if not input_is_a_terminal():
            raise OptionError(f"clear removes {format_size(before)} and cannot ask here: pass --yes")
        click.confirm(escaped(f"Remove {format_size(before)} from {store.root}?"), abort=True, err=True)
    in_use = store.clear()
    after = store.listing().total_bytes
    if as_json:
        print_json({"freed_bytes": before - after, "total_bytes": after, "in_use": in_use})
        return
    left = f"; {in_use} in use were left ({format_size(after)})" if in_use else ""
    echo(f"freed {format_size(before - after)}{left}")


def _document(entry: StoreEntry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "key": entry.key,
        "name": entry.name,
        "version": entry.version,
        "precision": entry.precision,
        "bases": entry.bases,
        "bytes": entry.size,
        "last_used": datetime.fromtimestamp(entry.last_used, UTC).isoformat(timespec="seconds"),
        "path": str(entry.path),
        "damaged": entry.fault,
    }


def _lines(entries: Iterable[StoreEntry]) -> Iterator[str]:
    for entry in entries:
        name = " ".join(filter(None, (entry.name, entry.version, entry.precision)))
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
        key = "" if entry.kind == "downloads" else entry.key[:12]
        shown = printable(name)[:40]
        yield f"{entry.kind:<9} {shown:<40} {format_size(entry.size):>9}  {used}  {key}".rstrip()
        if entry.fault is not None:
            yield f"{'':<9} damaged: {printable(entry.fault)}"
