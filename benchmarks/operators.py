"""Single operators of ONNX Runtime that the graphs are made of, in the variants there are to choose from.

    python benchmarks/operators.py [--rounds 15] [--threads 2] [--model smollm2]

All variants of a case take turns; a cell is the median in microseconds and, in brackets, the least. Products are of
several weights in turn, as many as the layers of a model have, so that none is found in a CPU's nearest cache.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from harness.models import MODELS, Model
from onnx import TensorProto, helper, numpy_helper
from tqdm import tqdm

MS = "com.microsoft"
CACHES: dict[str, tuple[int, Any, str]] = {
    "float32": (TensorProto.FLOAT, np.float32, ""),
    "float16": (TensorProto.FLOAT16, np.float16, ""),
    "int8, one scale": (TensorProto.INT8, np.int8, "PER_TENSOR"),
    "int8, scale per channel": (TensorProto.INT8, np.int8, "PER_CHANNEL"),
}
BLOCKS = (16, 32, 64, 128, 256)
# Rows, tokens per row, tokens before them.
PASSES = (
    (1, 64, 0),
    (1, 256, 0),
    (1, 512, 0),
    (1, 256, 256),
    (1, 1, 16),
    (1, 1, 512),
    (1, 1, 4095),
    (8, 1, 512),
)
WEIGHTS_BYTES = 30_000_000

Timed = Callable[[], Any]


def session(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: Mapping[str, Any], threads: int
) -> Any:
    """A session of a graph on the CPU."""
    named = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "operators", inputs, outputs, named),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(MS, 1)],
        ir_version=9,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def attention(model: Model, cache: str, rows: int, tokens: int, before: int, threads: int) -> Timed:
    """GroupQueryAttention with the rotary embedding inside, on caches that are updated in place."""
    kind, storage, scales = CACHES[cache]
    heads, width = model.kv_heads, model.head_dim
    total = before + tokens
    angles = np.outer(np.arange(total), 1e4 ** (-np.arange(width // 2) / (width // 2)))
    weights = {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    names = ["qkv", "", "", "past.key", "past.value", "lengths", "total", "cos", "sin"]
    attributes = {"num_heads": model.heads, "kv_num_heads": heads, "do_rotary": 1}
    if scales:
        size = heads * width if scales == "PER_CHANNEL" else 1
        weights["scale"] = np.full(size, 0.03, np.float32)
        names += ["", "", "", "scale", "scale"]
        attributes |= {"k_quant_type": scales, "v_quant_type": scales, "kv_cache_bit_width": 8}
    outputs = ["out", "present.key", "present.value"]
    node = helper.make_node("GroupQueryAttention", names, outputs, domain=MS, **attributes)
    rng = np.random.default_rng(0)
    query = rng.standard_normal((rows, tokens, (model.heads + 2 * heads) * width)).astype(np.float32)
    keep = {
        "qkv": query,
        "past.key": rng.integers(-90, 90, (rows, heads, total, width)).astype(storage),
        "past.value": rng.integers(-90, 90, (rows, heads, total, width)).astype(storage),
        "lengths": np.full(rows, total - 1, np.int32),
        "total": np.array(total, np.int32),
        "out": np.empty((rows, tokens, model.heads * width), np.float32),
    }
    types = {"qkv": TensorProto.FLOAT, "lengths": TensorProto.INT32, "total": TensorProto.INT32}
    inputs = [
        helper.make_tensor_value_info(name, types.get(name, kind), keep[name].shape)
        for name in ("qkv", "past.key", "past.value", "lengths", "total")
    ]
    results = [helper.make_tensor_value_info("out", TensorProto.FLOAT, keep["out"].shape)] + [
        helper.make_tensor_value_info(name, kind, keep["past.key"].shape) for name in outputs[1:]
    ]
    started = session([node], inputs, results, weights, threads)
    binding = started.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in keep.items()}
    for name in values.keys() - {"out"}:
        binding.bind_ortvalue_input(name, values[name])
    for name in outputs:
        binding.bind_ortvalue_output(name, values[name.replace("present", "past")])

    def run(held: Any = keep) -> None:  # ONNX Runtime does not keep the arrays alive
        started.run_with_iobinding(binding)

    return run


def products(size: tuple[int, int], bits: int, block: int, rows: int, threads: int) -> tuple[Timed, int]:
    """MatMulNBits with int8 activations: rows times several weights [N, K]; how many of them."""
    columns, width = size
    blocks = -(-columns // block)
    count = max(1, WEIGHTS_BYTES // (columns * width))
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {}
    nodes, outputs = [], []
    for number in range(count):
        shape = (width, blocks, block * bits // 8)
        weights[f"values.{number}"] = rng.integers(0, 256, shape, dtype=np.uint8)
        weights[f"scales.{number}"] = rng.random((width, blocks)).astype(np.float32)
        names = ["x", f"values.{number}", f"scales.{number}"]
        attributes = {"K": columns, "N": width, "bits": bits, "block_size": block, "accuracy_level": 4}
        nodes.append(helper.make_node("MatMulNBits", names, [f"y.{number}"], domain=MS, **attributes))
        outputs.append(helper.make_tensor_value_info(f"y.{number}", TensorProto.FLOAT, (rows, width)))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (rows, columns))]
    started = session(nodes, inputs, outputs, weights, threads)
    x = rng.standard_normal((rows, columns)).astype(np.float32)
    return lambda: started.run(None, {"x": x}), count


def in_turns(variants: Mapping[str, Timed], rounds: int) -> dict[str, list[float]]:
    """Microseconds of each variant; a first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            begin = time.perf_counter()
            run()
            if number:
                times[name].append(1e6 * (time.perf_counter() - begin))
    return times


def table(
    head: str, columns: list[str], rows: Iterator[tuple[str, dict[str, list[float]]]], share: int = 1
) -> str:
    """Markdown of the cases."""
    lines = [f"| {head} | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for name, times in rows:
        cells = (f"{statistics.median(own) / share:.0f} ({min(own) / share:.0f})" for own in times.values())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", choices=list(MODELS), default="smollm2")
    options = parser.parse_args()
    model, threads = MODELS[options.model], options.threads

    def attentions() -> Iterator[tuple[str, dict[str, list[float]]]]:
        for rows, tokens, before in tqdm(PASSES, desc="attention", disable=None):
            variants = {cache: attention(model, cache, rows, tokens, before, threads) for cache in CACHES}
            yield f"{rows} x {tokens} after {before}", in_turns(variants, options.rounds)

    print(table(f"attention of a layer, {model.title}", list(CACHES), attentions()) + "\n")
    sizes = ((model.hidden, model.intermediate), (model.intermediate, model.hidden))
    for size in sizes:
        for bits in (8, 4):
            made = {
                (rows, block): products(size, bits, block, rows, threads)
                for rows in (1, 8, 256)
                for block in BLOCKS
            }
            count = made[1, BLOCKS[0]][1]
            own = (
                (str(rows), in_turns({str(b): made[rows, b][0] for b in BLOCKS}, options.rounds))
                for rows in tqdm((1, 8, 256), desc=f"{size[0]} x {size[1]}, {bits} bits", disable=None)
            )
            head = f"rows, {size[0]} x {size[1]}, {bits} bits, by block"
            print(table(head, [str(block) for block in BLOCKS], own, count) + "\n")


if __name__ == "__main__":
    main()
