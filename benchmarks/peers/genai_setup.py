"""Prepares ONNX Runtime GenAI as a peer for the decode benchmark.

The steps, each skipped when its result is there:

1. a virtual environment in ``FOLDER/venv`` with the versions of ``REQUIREMENTS``;
2. the GGUF base model as a Hugging Face folder in fp32, ``FOLDER/hf``;
3. for every precision, GenAI's model builder for the CPU provider, ``FOLDER/models/PRECISION``, and a check
   of the graph it wrote;
4. ``intra_op_num_threads`` in each ``genai_config.json``, when ``--threads`` is given.

What GenAI 0.18.0's builder makes of SmolLM2-135M (Llama, 30 layers, tied embedding), as counted in step 3:

* All precisions: opset 22, fp32 inputs and outputs, 151 projections (30 layers of packed q/k/v, o, gate, up
  and down, and the LM head), 30 GroupQueryAttention with the rotary embedding inside,
  1 SimplifiedLayerNormalization, 60 SkipSimplifiedLayerNormalization.
* ``int8`` is a precision of its own (``-p int8``); no extra option is needed. All 151 projections, the LM head
  included, are MatMulNBits with bits=8, block_size=32, accuracy_level=4, symmetric (no zero points), and no
  MatMul is left. The embedding is a plain Gather on a second copy in fp32 (113 MB of 267 MB), although
  ``shared_embeddings`` is on: the builder shares quantised embeddings for 4 bits only. A Gather reads one row
  a token, so this costs memory, not time.
* ``int4``: all 151 are MatMulNBits with bits=4, block_size=32, accuracy_level=4, symmetric. The embedding is a
  GatherBlockQuantized on the weights of the LM head.
* ``fp32``: 151 MatMul. The embedding is a Gather on a Transpose of the LM head, a constant that ONNX Runtime
  folds at load.

The weights differ from the GGUF only by its dequantisation to fp32: transformers 5.23.0 with
``dequantize=True`` and transformers 4.57.6 write the same tensors, bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

TORCH = "torch==2.13.0"
REQUIREMENTS = (
    "accelerate==1.15.0",  # transformers asks for it to read a GGUF
    "gguf==0.19.0",
    "huggingface_hub==2.4.0",
    "numpy==2.4.6",
    "onnx==1.23.2",
    "onnx-ir==1.1.0",
    "onnxruntime==1.31.1",
    "onnxruntime-genai==0.18.0",
    "safetensors==0.8.0",
    "tokenizers==0.23.3",
    "transformers==5.23.0",
)
# The builder's defaults for the CPU provider, spelled out so that another version cannot change them unseen.
# It resolves shared_embeddings from tie_word_embeddings, so that one is left to it.
BUILDER_OPTIONS = {
    "fp32": {},
    "int8": {"block_size": "32", "accuracy_level": "4", "is_symmetric": "true", "algo_config": "default"},
    "int4": {"block_size": "32", "accuracy_level": "4", "is_symmetric": "true", "algo_config": "default"},
}
BITS = {"int8": 8, "int4": 4}
STAMP = "setup.json"


class SetupError(Exception):
    """A step failed; the message says which one and what to do."""


def say(text: str) -> None:
    """Prints a line of progress at once.

    Args:
        text: The line.
    """
    print(f"[genai-setup] {text}", flush=True)


def venv_python(work: Path) -> Path:
    """Returns the interpreter of the peer's environment.

    Args:
        work: The working folder.

    Returns:
        The path of its Python.
    """
    folder = work / "venv"
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def call(what: str, command: list[str]) -> None:
    """Runs one command, showing its output.

    Args:
        what: The name of the step, for the message.
        command: The command and its arguments.

    Raises:
        SetupError: If the command cannot start or exits non-zero.
    """
    # The builder looks on the hub for what a local folder lacks; here everything is local.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    started = time.monotonic()
    try:
        code = subprocess.run(command, env=environment, check=False).returncode
    except OSError as error:
        raise SetupError(f"{what}: cannot start {command[0]}: {error}") from error
    if code:
        raise SetupError(f"{what}: exit status {code} of: {' '.join(command)}")
    say(f"{what}: done in {time.monotonic() - started:.0f} s")


def is_done(folder: Path, wanted: dict[str, object]) -> bool:
    """Tells whether a folder was made from the same inputs.

    Args:
        folder: The folder with a stamp.
        wanted: What the stamp must contain.

    Returns:
        True if every entry of ``wanted`` is in the stamp.
    """
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(stamp, dict) and all(stamp.get(key) == value for key, value in wanted.items())


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file whole or not at all.

    Args:
        path: The file.
        value: What to write.
    """
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def make_venv(work: Path, torch_index: str | None) -> None:
    """Creates the virtual environment and installs the peer and its builder.

    Args:
        work: The working folder.
        torch_index: A package index for torch alone, or None for pip's default.
    """
    folder = work / "venv"
    wanted: dict[str, object] = {"requirements": [TORCH, *REQUIREMENTS]}
    if is_done(folder, wanted):
        say(f"environment: {folder} is there")
        return
    say(f"environment: creating {folder}")
    call("environment", [sys.executable, "-m", "venv", "--clear", str(folder)])
    pip = [str(venv_python(work)), "-m", "pip", "install", "--disable-pip-version-check"]
    # torch first: later packages would draw the default build, several gigabytes of CUDA on Linux.
    call("install torch", [*pip, *(["--index-url", torch_index] if torch_index else []), TORCH])
    call("install packages", [*pip, *REQUIREMENTS])
    write_json(folder / STAMP, wanted)


def convert(gguf: Path, folder: Path) -> None:
    """Writes a GGUF as a Hugging Face folder in fp32; runs inside the environment.

    Args:
        gguf: The GGUF file.
        folder: The folder to write.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    # Without dequantize=True the model counts as quantised and cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    wrong = sorted({str(p.dtype) for p in model.parameters()} - {"torch.float32"})
    if wrong:
        raise SetupError(f"conversion: parameters of type {', '.join(wrong)} instead of fp32")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def inspect(model: Path, precision: str, extra: dict[str, str]) -> dict[str, object]:
    """Counts the operators of a built graph and checks its precision; runs inside the environment.

    Args:
        model: The model folder.
        precision: The precision asked for.
        extra: Further builder options, as for ``make_model``.

    Returns:
        Operator counts, and the attributes of the quantised operators with their counts.

    Raises:
        SetupError: If a projection is not in the precision asked for.
    """
    import onnx

    graph = onnx.load(str(model / "model.onnx"), load_external_data=False).graph
    operators = Counter(node.op_type for node in graph.node)
    quantised: Counter[str] = Counter()
    heads = []
    for node in graph.node:
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type in {"MatMulNBits", "GatherBlockQuantized"}:
            names = [name for name in ("bits", "block_size", "accuracy_level") if name in attributes]
            quantised[" ".join([node.op_type, *(f"{name}={attributes[name]}" for name in names)])] += 1
        if node.op_type in {"MatMul", "MatMulNBits"} and "lm_head" in node.name:
            heads.append(node.op_type)
    if precision in BITS:
        options = {**BUILDER_OPTIONS[precision], **extra}
        form = {f"{name}={options[name]}" for name in ("block_size", "accuracy_level")}
        form.add(f"bits={BITS[precision]}")
        bad = [key for key in quantised if key.startswith("MatMulNBits") and not form <= set(key.split())]
        if bad or operators["MatMul"] or not operators["MatMulNBits"] or heads != ["MatMulNBits"]:
            raise SetupError(
                f"{precision}: {operators['MatMul']} MatMul left, LM head {heads}, unexpected MatMulNBits: {bad}"
            )
    elif quantised:
        raise SetupError(f"{precision}: the graph has quantised operators: {dict(quantised)}")
    return {"operators": dict(operators.most_common()), "quantised": dict(quantised)}


def make_hf(gguf: Path, work: Path) -> dict[str, object]:
    """Converts the GGUF unless that is done.

    Args:
        gguf: The GGUF file.
        work: The working folder.

    Returns:
        The stamp of the folder: what it was made from.
    """
    folder = work / "hf"
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    stamp: dict[str, object] = {"gguf_sha256": digest, "requirements": [TORCH, *REQUIREMENTS]}
    if is_done(folder, stamp):
        say(f"conversion: {folder} is there")
        return stamp
    say(f"conversion: {gguf.name} to {folder}")
    partial = folder.with_name("hf.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    step = [str(venv_python(work)), str(Path(__file__).resolve()), "--work", str(work), "--step", "convert"]
    call("conversion", [*step, "--gguf", str(gguf), "--folder", str(partial)])
    write_json(partial / STAMP, stamp)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return stamp


def make_model(work: Path, precision: str, extra: dict[str, str], source: dict[str, object]) -> Path:
    """Builds and checks one model unless that is done.

    Args:
        work: The working folder.
        precision: fp32, int8 or int4.
        extra: Further builder options; they become part of the folder's name.
        source: The stamp of the Hugging Face folder.

    Returns:
        The model folder.
    """
    suffix = "".join(f"-{key}-{value}" for key, value in sorted(extra.items()))
    folder = work / "models" / f"{precision}{suffix}"
    options = {**BUILDER_OPTIONS[precision], **extra}
    stamp: dict[str, object] = {**source, "precision": precision, "builder_options": options}
    if is_done(folder, stamp):
        say(f"{folder.name}: {folder} is there")
        return folder
    say(f"{folder.name}: building {folder}")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    python = str(venv_python(work))
    command = [python, "-m", "onnxruntime_genai.models.builder", "-i", str(work / "hf"), "-o", str(partial)]
    command += ["-p", precision, "-e", "cpu", "-c", str(work / "cache")]
    if options:
        command += ["--extra_options", *(f"{key}={value}" for key, value in options.items())]
    call(f"{folder.name} builder", command)
    step = [python, str(Path(__file__).resolve()), "--work", str(work), "--step", "inspect"]
    for key, value in extra.items():
        step += ["--builder-option", f"{key}={value}"]
    call(f"{folder.name} check", [*step, "--precision", precision, "--folder", str(partial)])
    counts = json.loads((partial / "graph.json").read_text(encoding="utf-8"))
    write_json(partial / STAMP, {**stamp, **counts})
    (partial / "graph.json").unlink()
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def set_threads(model: Path, threads: int) -> None:
    """Writes the thread count of a model's session.

    Args:
        model: The model folder.
        threads: The value of ``intra_op_num_threads``.
    """
    path = model / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    write_json(path, config)
    say(f"{model.name}: intra_op_num_threads = {threads}")


def builder_option(text: str) -> tuple[str, str]:
    """Reads one ``KEY=VALUE``.

    Args:
        text: The argument.

    Returns:
        The key and the value.

    Raises:
        argparse.ArgumentTypeError: If there is no ``=``, or a character that no folder name should have.
    """
    key, equals, value = text.partition("=")
    if not (key and equals and value) or set(text) & set("/\\: \t"):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE without spaces, slashes and colons")
    return key, value


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line.

    Args:
        arguments: The arguments, or None for the command line's.

    Returns:
        The options.
    """
    parser = argparse.ArgumentParser(description="Set up ONNX Runtime GenAI as a benchmark peer.")
    parser.add_argument("--gguf", type=Path, help="the base model, a GGUF file")
    parser.add_argument("--work", type=Path, required=True, help="folder for the environment and the models")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=sorted(BUILDER_OPTIONS),
        default=["int8", "int4", "fp32"],
        help="what to build (default: all)",
    )
    parser.add_argument("--threads", type=int, help="intra_op_num_threads to write into genai_config.json")
    parser.add_argument(
        "--builder-option",
        type=builder_option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a further option of the builder, such as prune_lm_head=true; builds into a folder of its own",
    )
    parser.add_argument("--torch-index", metavar="URL", help="package index for torch alone")
    parser.add_argument("--step", choices=["convert", "inspect"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.threads is not None and options.threads < 1:
        parser.error("--threads must be at least 1")
    if options.step != "inspect" and (options.gguf is None or not options.gguf.is_file()):
        parser.error(f"--gguf: no such file: {options.gguf}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the set-up.

    Args:
        arguments: The arguments, or None for the command line's.

    Returns:
        The exit status: 0, or 1 after a message on stderr.
    """
    options = parse(arguments)
    work = options.work.resolve()
    try:
        if options.step == "convert":
            convert(options.gguf.resolve(), options.folder)
        elif options.step == "inspect":
            counts = inspect(options.folder, options.precision[0], dict(options.builder_option))
            write_json(options.folder / "graph.json", counts)
            say(json.dumps(counts))
        else:
            work.mkdir(parents=True, exist_ok=True)
            make_venv(work, options.torch_index)
            source = make_hf(options.gguf.resolve(), work)
            folders = [make_model(work, p, dict(options.builder_option), source) for p in options.precision]
            for folder in folders:
                if options.threads is not None:
                    set_threads(folder, options.threads)
            say(f"ready: {venv_python(work)}; models: {', '.join(str(folder) for folder in folders)}")
    except (SetupError, OSError, KeyError, ValueError) as error:
        with contextlib.suppress(OSError):
            print(f"[genai-setup] failed: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
