"""The short name of a model in a GGUF file: without what says only how its weights are stored."""

from __future__ import annotations

import re

import gguf

from hivellm_export.gguf_file import GgufFile

__all__ = ["short_name"]

_PART = re.compile(r"-\d{5}-of-\d{5}$")
# Quantisations as llama.cpp and those who publish files write them, and marks that stand before or beside them:
# UD (Unsloth), i1 and imat (made with an importance matrix).
_STORAGE = re.compile(
    r"(?:^|[-._])(?:I?Q[1-8](?:_[0-9A-Z]{1,3})*|TQ[12]_0|(?:B?F|FP)16|FP?(?:8|32|64)|(?:MX|NV)FP4(?:_MOE)?|UD|i1|i?mat"
    r"|imatrix|GGUF)$",
    re.IGNORECASE,
)
_NO_NAME = ("", "ggml-model", "model", "ggml-vocab")


def short_name(file: GgufFile) -> str:
    """The file's name without the part, the quantisation and the suffix; `Qwen3-0.6B-Q8_0.gguf` is `Qwen3-0.6B`.

    If nothing is left of it, as of `Q4_K_M.gguf`, the name is made of `general.basename` and what belongs to it, else
    it is `general.name`, else that of the folder.
    """
    path = file.paths[0]
    name = _PART.sub("", path.name[: -len(path.suffix)])
    while (shorter := _STORAGE.sub("", name)) != name:
        name = shorter
    if name.lower() not in _NO_NAME:
        return name
    base = file.value("general.basename", str, "")
    if base:
        parts = (file.value(f"general.{key}", str, None) for key in ("finetune", "version", "size_label"))
        finetune, version, size = parts
        name = gguf.utility.naming_convention(None, base, finetune, version, size, output_type=None)
    else:
        name = "-".join(file.value("general.name", str, "").split())
    return name.replace("/", "-").replace("\\", "-") or path.resolve().parent.name
