"""Packages of tiny random experts on two bases, exported as any other; needs the export extra.

    python benchmarks/harness/tiny_packages.py FOLDER

It is a process of its own, so that none of what the exporter needs is in the memory of one that is watched.
"""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_EXPERTS = {"llama": ("lora", "dora", "ia3", "rslora"), "qwen3": ("lora", "dora")}


def make(folder: Path) -> list[Path]:
    """Four experts on a tiny llama, two on a tiny qwen3, each with the base in its package.

    Returns:
        The packages.
    """
    sys.path.insert(0, str(_ROOT / "tests"))
    from support import tiny

    from hivellm_export.pipeline import export

    packages = []
    for number, (architecture, kinds) in enumerate(_EXPERTS.items()):
        work = folder / architecture
        model = tiny.save_model(work / "model", architecture, seed=number)
        experts = []
        for seed, kind in enumerate(kinds, start=1):
            expert = tiny.save_adapter(work / kind, model, tiny.adapter_config(kind), seed=seed)
            experts.append(tiny.with_manifest(expert, f"expert-{architecture}-{kind}"))
        report = export(model, experts, work / "out", precision="fp32", verify=False)
        packages += [work / "out" / package.file for package in report.packages]
    return packages


if __name__ == "__main__":
    for path in make(Path(sys.argv[1])):
        print(path)
