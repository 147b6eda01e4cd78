"""Build a model with ONNX Runtime GenAI's own builder, and check what it wrote; runs in that environment.

The options are the builder's defaults for the CPU, written out so that another version cannot change them unseen, and
`prune_lm_head`, which it leaves off: logits for the last token of a prompt only, which is faster. Of SmolLM2-135M
it makes 151 projections, the LM head included, all of them MatMulNBits in int8 and int4; in int8 the embedding is a
second copy in fp32, in int4 it is shared with the LM head. `int4+head8` is its `rtn_last`: the LM head in 8 bits, the
projections in 4, which is what our int4 has.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import onnx

_QUANTISED = {"block_size": "32", "accuracy_level": "4", "is_symmetric": "true", "algo_config": "default"}
OPTIONS = {
    "fp32": {},
    "int8": _QUANTISED,
    "int4": _QUANTISED,
    "int4+head8": {**_QUANTISED, "algo_config": "rtn_last"},
}
BITS = {"fp32": set(), "int8": {8}, "int4": {4}, "int4+head8": {4, 8}}


def build(spec: dict[str, str]) -> None:
    """Run the builder in a process of its own."""
    options = {**OPTIONS[spec["precision"]], "prune_lm_head": "true"}
    command = [
        sys.executable,
        "-m",
        "onnxruntime_genai.models.builder",
        "-i",
        spec["hf"],
        "-o",
        spec["output"],
    ]
    weights = spec["precision"].partition("+")[0]
    command += ["-p", weights, "-e", "cpu", "-c", spec["output"] + "/cache", "--extra_options"]
    command += [f"{key}={value}" for key, value in options.items()]
    subprocess.run(command, check=True, stdout=sys.stderr)


def check(folder: Path, precision: str) -> None:
    """Every projection must be in the precision asked for.

    Raises:
        SystemExit: one is not.
    """
    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    operators = Counter(node.op_type for node in graph.node)
    bits = Counter(
        attribute.i
        for node in graph.node
        if node.op_type == "MatMulNBits"
        for attribute in node.attribute
        if attribute.name == "bits"
    )
    wanted = BITS[precision]
    if set(bits) != wanted or (wanted and operators["MatMul"]):
        raise SystemExit(
            f"{precision}: MatMulNBits by bits {dict(bits)}, and {operators['MatMul']} MatMul left"
        )
    (folder / "operators.json").write_text(json.dumps(operators.most_common()))


if __name__ == "__main__":
    _spec = json.loads(sys.argv[1])
    build(_spec)
    check(Path(_spec["output"]), _spec["precision"])
