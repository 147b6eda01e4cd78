"""Times greedy decoding of ONNX Runtime GenAI; runs inside the environment that ``genai_setup.py`` makes.

Two modes. Without ``--serve``: one prompt, ``--repeats`` runs after one unmeasured run, then a summary
(``--json``: one line with medians and all samples). With ``--serve``: the model stays loaded, and every line of
JSON on stdin is one request, answered with one line of JSON on stdout, so that a benchmark can take turns with
this peer:

    {"prompt_ids": [1, 2, 3], "new_tokens": 128}                     a run; optional "stop_ids": [2]
    -> {"tokens": [...], "prefill_s": 0.05, "decode_s": [0.008, ...], "cpu_s": 2.1}
    {"info": true}                                                   versions, model, threads
    -> {"genai": "0.18.0", "onnxruntime": "1.31.1", "model": "int8", "threads": 2}

A request that fails is answered with ``{"error": "..."}``. The line ``ready`` on stderr says that the model is
loaded and has run once; requests sent earlier wait.

What is timed, with ``time.perf_counter``:

* ``prefill_s``: ``append_tokens`` (which runs the model on the prompt) and the first ``generate_next_token``
  (which only picks a token from the logits that are there). It is the time to the first token.
* ``decode_s``: each further ``generate_next_token`` (one run of the model, one arg-max), so there is one entry
  fewer than tokens.

Not timed: loading, creating the generator and its cache, reading tokens back, checking for stop ids.
``max_length`` is the prompt plus the new tokens, so the cache is no larger than the run needs. The
end-of-sequence id of the model is taken out of its configuration: runs go on to ``new_tokens`` unless
``stop_ids`` asks for a stop, and then the stop token is the last one. ``cpu_s`` is the processor time of the
whole process during the run: divided by the elapsed time it is near the thread count, because waiting threads
spin; a lower quotient means that other work took the cores.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import random
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as og


class Peer:
    """A model of ONNX Runtime GenAI that stays loaded.

    Args:
        folder: The model folder, with ``genai_config.json``.
        threads: The number of intra-op threads of the session.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder = folder
        self.threads = threads
        og.disable_telemetry_events()
        config = og.Config(str(folder))
        # An overlay is merged over genai_config.json before the session is created.
        session = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"eos_token_id": [], "decoder": {"session_options": session}}}))
        self.model = og.Model(config)

    def info(self) -> dict[str, object]:
        """Describes what runs.

        Returns:
            Versions, the name of the model folder and the thread count.
        """
        return {
            "genai": importlib.metadata.version("onnxruntime-genai"),
            "onnxruntime": importlib.metadata.version("onnxruntime"),
            "model": self.folder.name,
            "threads": self.threads,
        }

    def run(
        self, prompt_ids: list[int], new_tokens: int, stop_ids: list[int] | None = None
    ) -> dict[str, object]:
        """Decodes greedily and times it.

        Args:
            prompt_ids: The prompt's token ids.
            new_tokens: How many tokens to generate.
            stop_ids: Ids after which to stop early.

        Returns:
            The generated tokens, ``prefill_s``, ``decode_s`` and ``cpu_s``.

        Raises:
            ValueError: If there is no prompt or nothing to generate.
        """
        if not prompt_ids or new_tokens < 1:
            raise ValueError("prompt_ids must not be empty and new_tokens must be at least 1")
        clock = time.perf_counter
        stops = frozenset(stop_ids or ())
        prompt = np.asarray(prompt_ids, dtype=np.int32)
        parameters = og.GeneratorParams(self.model)
        parameters.set_search_options(
            do_sample=False, num_beams=1, repetition_penalty=1.0, max_length=len(prompt) + new_tokens
        )
        generator = og.Generator(self.model, parameters)
        tokens: list[int] = []
        decode: list[float] = []
        cpu = time.process_time()

        start = clock()
        generator.append_tokens(prompt)
        generator.generate_next_token()
        prefill = clock() - start

        tokens.append(int(generator.get_next_tokens()[0]))
        while len(tokens) < new_tokens and tokens[-1] not in stops:
            start = clock()
            generator.generate_next_token()
            decode.append(clock() - start)
            tokens.append(int(generator.get_next_tokens()[0]))
        return {
            "tokens": tokens,
            "prefill_s": prefill,
            "decode_s": decode,
            "cpu_s": time.process_time() - cpu,
        }


def made_up_prompt(folder: Path, length: int) -> list[int]:
    """Makes a prompt of the model's vocabulary, the same on every call.

    Args:
        folder: The model folder.
        length: The number of tokens.

    Returns:
        Token ids: the BOS id, then ids from a seeded generator.
    """
    model = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
    ids = random.Random(0)
    return [model["bos_token_id"], *(ids.randrange(100, model["vocab_size"]) for _ in range(length - 1))]


def read_prompt(path: Path) -> list[int]:
    """Reads a prompt.

    Args:
        path: A file with a JSON list of token ids.

    Returns:
        The token ids.

    Raises:
        ValueError: If the file holds anything else.
    """
    ids = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(ids, list) or not ids or not all(type(item) is int for item in ids):
        raise ValueError(f"{path}: not a JSON list of token ids")
    return ids


def measure(peer: Peer, prompt: list[int], new_tokens: int, repeats: int) -> dict[str, object]:
    """Runs one prompt several times.

    Args:
        peer: The loaded model.
        prompt: The prompt's token ids.
        new_tokens: How many tokens to generate per run.
        repeats: How many runs to measure.

    Returns:
        Medians and all samples.
    """
    peer.run(prompt, new_tokens)
    prefills, decodes, rates, busy = [], [], [], []
    tokens: list[int] = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = peer.run(prompt, new_tokens)
        busy.append(result["cpu_s"] / (time.perf_counter() - start))
        prefills.append(result["prefill_s"])
        decodes.append(result["decode_s"])
        rates.append(len(result["decode_s"]) / sum(result["decode_s"]))
        tokens = result["tokens"]
    return {
        **peer.info(),
        "prompt_tokens": len(prompt),
        "new_tokens": new_tokens,
        "prefill_median_s": statistics.median(prefills),
        "decode_median_s": statistics.median(sample for run in decodes for sample in run),
        "decode_tokens_per_s": statistics.median(rates),
        "cpu_per_wall": statistics.median(busy),
        "prefill_s": prefills,
        "decode_s": decodes,
        "tokens": tokens,
    }


def serve(peer: Peer) -> None:
    """Answers requests from stdin until it ends.

    Args:
        peer: The loaded model.
    """
    print("ready", file=sys.stderr, flush=True)
    for line in sys.stdin:
        if not line.strip():
            continue
        try:
            request = json.loads(line)
            if request.get("info"):
                answer = peer.info()
            else:
                answer = peer.run(request["prompt_ids"], int(request["new_tokens"]), request.get("stop_ids"))
        # Whatever a request does wrong, the next one is answered.
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark or the server.

    Args:
        arguments: The arguments, or None for the command line's.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description="Time greedy decoding of ONNX Runtime GenAI.")
    parser.add_argument("--model", type=Path, required=True, help="model folder with genai_config.json")
    parser.add_argument(
        "--threads", type=int, required=True, help="intra-op threads, over genai_config.json's"
    )
    parser.add_argument("--prompt-tokens", type=int, default=16, help="length of the made-up prompt")
    parser.add_argument(
        "--prompt-ids", type=Path, help="file with a JSON list of token ids to use as the prompt"
    )
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens to generate per run")
    parser.add_argument("--repeats", type=int, default=5, help="runs to measure")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON line with medians and all samples"
    )
    parser.add_argument("--serve", action="store_true", help="answer JSON requests from stdin")
    options = parser.parse_args(arguments)
    for name in ("threads", "prompt_tokens", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if options.new_tokens < 2:
        parser.error("--new-tokens must be at least 2: the first token belongs to the prefill")
    if not (options.model / "genai_config.json").is_file():
        parser.error(f"--model: no genai_config.json in {options.model}")

    peer = Peer(options.model.resolve(), options.threads)
    if options.serve:
        peer.run(made_up_prompt(peer.folder, 16), 8)
        serve(peer)
        return 0
    prompt = read_prompt(options.prompt_ids) if options.prompt_ids else None
    prompt = prompt or made_up_prompt(peer.folder, options.prompt_tokens)
    result = measure(peer, prompt, options.new_tokens, options.repeats)
    if options.json:
        print(json.dumps(result))
    else:
        print(f"GenAI {result['genai']}, model {result['model']}, {result['threads']} threads")
        print(f"prefill of {result['prompt_tokens']} tokens: {result['prefill_median_s'] * 1000:.1f} ms")
        each = f"{result['decode_median_s'] * 1000:.2f} ms each"
        print(f"decode: {result['decode_tokens_per_s']:.1f} tokens/s, {each}")
        print(f"processor time per elapsed time: {result['cpu_per_wall']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
