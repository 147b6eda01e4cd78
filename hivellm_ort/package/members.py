"""Which files of a folder go into a package, and in what order."""

from __future__ import annotations

from pathlib import Path

from hivellm_ort.contract import DECODER_JSON
from hivellm_ort.package.bundle import FOLDER
from hivellm_ort.package.manifest import MANIFEST, ExpertManifest

__all__ = ["bundle_members_of", "root_members"]

_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_TEXTS = ("grammar.gbnf", "README.md", "LICENSE")


def root_members(folder: Path, manifest: ExpertManifest) -> list[tuple[str, Path | bytes]]:
    """The files of an expert's folder that belong at a package's root, the manifest first.

    Everything else in the folder stays out: checkpoints, optimizer states, scripts.
    """
    grammar = manifest.decoding.grammar_file
    names = dict.fromkeys((MANIFEST, *_ADAPTER, *_TOKENIZER, *_TEXTS, *([grammar] if grammar else [])))
    return [(name, folder / name) for name in names if (folder / name).is_file()]


def bundle_members_of(bundle: Path) -> list[tuple[str, Path | bytes]]:
    """The files of a base bundle as members, `decoder.json` first: it tells a reader what the others must be."""
    files = sorted(
        (path for path in bundle.iterdir() if path.is_file()),
        key=lambda file: (file.name != DECODER_JSON, file.name),
    )
    return [(f"{FOLDER}/{file.name}", file) for file in files]
