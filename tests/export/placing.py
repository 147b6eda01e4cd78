"""What stands for an export's products, put in place without PyTorch."""

from __future__ import annotations

from pathlib import Path

from hivellm_export.packaging.output_folder import built_beside

__all__ = ["FILES", "write"]

FILES = ("base.onnx", "decoder.json", "tokenizer.json", "weights.bin")


def write(output: Path, version: str) -> None:
    """Put a bundle of a version, and a folder with two files of it, where an export would."""
    with built_beside(output, force=True) as work:
        products = work / "products"
        (products / "base").mkdir(parents=True)
        for path in (*(products / name for name in FILES), products / "base" / "a", products / "base" / "b"):
            path.write_text(version)
