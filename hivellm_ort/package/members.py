"""Lists the files of a folder that go into a package, in their order."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from hivellm_ort.contract import DECODER_JSON
from hivellm_ort.package.bundle_folders import ONNX_FOLDER, find_bundle_files
from hivellm_ort.package.links import open_file
from hivellm_ort.package.manifest import MANIFEST, ExpertManifest
from hivellm_ort.textfile import decode_text, is_marked

__all__ = ["TOKENIZER_FILES", "as_utf8", "list_bundle_members", "list_root_members"]

_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""Files of an expert's own tokenizer and chat template."""

_TEXTS = ("grammar.gbnf", "README.md", "LICENSE")


def list_root_members(folder: Path, manifest: ExpertManifest) -> list[tuple[str, Path | bytes]]:
    """Return the files of an expert's folder for the root of a package, the manifest first.

    Other files, such as checkpoints, optimizer states and scripts, stay out. Text files with a byte order mark are
    packed as UTF-8 without one, because other readers need that.
    """
    grammar = manifest.decoding.grammar_file
    names = dict.fromkeys((MANIFEST, *_ADAPTER, *TOKENIZER_FILES, *_TEXTS, *([grammar] if grammar else [])))
    return [(name, as_utf8(folder / name)) for name in names if (folder / name).is_file()]


def as_utf8(path: Path) -> Path | bytes:
    """Return a file as the content of a member. A byte order mark is removed, because other readers refuse it."""
    if path.name in (MANIFEST, _ADAPTER[0], *TOKENIZER_FILES):
        # Errors are reported later, when the file is read.
        with contextlib.suppress(OSError, UnicodeDecodeError), open_file(path) as file:
            if is_marked(file.read(4)):
                file.seek(0)
                return decode_text(file.read()).encode()
    return path


def list_bundle_members(folders: Sequence[Path]) -> list[tuple[str, Path | bytes]]:
    """Return the files of base bundles as members, each `decoder.json` before the files that it lists.

    One bundle goes to `onnx/`. Several go to `onnx/<name of the folder>/`. A file that several share is packed once.

    Raises:
        IntegrityError, ManifestError: As for `find_bundle_files`.
    """
    members: list[tuple[str, Path | bytes]] = []
    written = set()
    for bundle in find_bundle_files(folders):
        prefix = ONNX_FOLDER if len(folders) == 1 else f"{ONNX_FOLDER}/{bundle.folder.name}"
        for name, path in bundle.places.items():
            key = (name, bundle.listed.get(name))
            if name == DECODER_JSON or key not in written:
                written.add(key)
                members.append((f"{prefix}/{name}", path))
    return members
