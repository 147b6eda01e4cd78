"""`index.json`: the store's record of one unpacked package."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from hivellm_ort.errors import LoadError
from hivellm_ort.filenames import shown
from hivellm_ort.jsonfiles.node import Node
from hivellm_ort.jsonfiles.reading import read_json
from hivellm_ort.package.archive import ArchiveContents, Member
from hivellm_ort.package.bundle_folders import bundle_members, find_bundle_fault
from hivellm_ort.package.entry_locks import INDEX
from hivellm_ort.package.filecheck import FileChecker, is_digest
from hivellm_ort.package.folders import Layout

__all__ = ["FILES", "PackageIndex"]

FILES = "files"
"""The folder beside the index with the package's members."""

_FORMAT = 2


@dataclass(frozen=True, slots=True)
class PackageIndex:
    """The record of one unpacked package.

    Attributes:
        contents: The contents of the archive.
        bundles: Digests of its base bundles; empty for a thin package.
    """

    contents: ArchiveContents
    bundles: tuple[str, ...]

    @property
    def kept(self) -> tuple[Member, ...]:
        """The members beside the index. Those of the bundles are in the folders of the bases."""
        elsewhere = bundle_members(self.contents.members)
        return tuple(member for member in self.contents.members if member.name not in elsewhere)

    def find_fault(self, layout: Layout, checks: FileChecker) -> str | None:
        """Return what is wrong with the package or its bases in a store; None if nothing is."""
        for digest in self.bundles:
            fault = find_bundle_fault(layout.bases / digest, checks)
            if fault is not None:
                return f"its base: {fault}"
        files = layout.packages / self.contents.sha256 / FILES
        for member in self.kept:
            fault = checks.find_fault(files / member.name, member.size, member.sha256)
            if fault is not None:
                return f"{shown(member.name)} {fault}"
        return None

    @classmethod
    def load(cls, folder: Path) -> PackageIndex | None:
        """Read a folder's index; None if it is missing, damaged, or of another format or package."""
        try:
            node = Node(read_json(folder / INDEX), INDEX)
            if node.integer("format") != _FORMAT:
                return None
            contents = ArchiveContents(
                sha256=node.required("sha256"),
                members=tuple(_member(child) for child in node.children("members")),
                skipped=tuple(_member(child) for child in node.children("skipped")),
                notes=node.texts("notes") or (),
            )
            bundles = node.texts("bundles") or ()
            known = contents.sha256 == folder.name and all(map(is_digest, bundles))
            return cls(contents, bundles) if known else None
        except LoadError:
            return None

    def save(self, folder: Path) -> None:
        """Write the index. A folder with an index is complete.

        Raises:
            OSError: It cannot be written.
        """
        value = {"format": _FORMAT, "bundles": self.bundles, **asdict(self.contents)}
        with (folder / INDEX).open("x", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())


def _member(node: Node) -> Member:
    return Member(node.required("name"), node.integer("size") or 0, node.required("sha256"))
