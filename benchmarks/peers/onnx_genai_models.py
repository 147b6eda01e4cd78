"""Make a folder of GenAI's builder readable for onnx-genai; runs in that environment.

The engine wants the last dimension of `past_key_values.*` and `present.*` as a number; the builder may write a name.
Threads and the end-of-sequence id come from `genai_config.json`: the worker writes them.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import onnx


def convert(source: Path, folder: Path) -> None:
    """Copy the folder and write the head size into the shapes of the cache."""
    for path in source.iterdir():
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    for value in [*model.graph.input, *model.graph.output]:
        if value.name.startswith(("present.", "past_key_values.")):
            value.type.tensor_type.shape.dim[-1].dim_value = decoder["head_size"]
    onnx.save(model, str(folder / "model.onnx"))


if __name__ == "__main__":
    _spec = json.loads(sys.argv[1])
    convert(Path(_spec["genai"]), Path(_spec["output"]))
