"""Worker of hivellm_ort: this checkout, in the environment that runs the harness.

`folder` holds `base/` and thin packages as `hivellm-ort export --thin` writes them, or is a bundle by itself.
Speeds are of the engine (one row, greedy, token ids in and out); the expert workload goes through `ExpertManager`.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from protocol import Peer, UnsupportedError, serve

import hivellm_ort


class Ours(Peer):
    """One base, its experts, and adapters of random weights."""

    def __init__(self, spec: dict[str, Any]):
        folder, threads = Path(spec["folder"]), spec["threads"]
        self.base = folder / "base" if (folder / "base").is_dir() else folder
        self.adapters: dict[str | None, Any] = {None: None}
        self.lookup = True if spec["precision"].endswith("+lookup") else None
        self.manager = hivellm_ort.ExpertManager(threads=threads, trust="off")
        for name in spec["experts"]:
            (package,) = folder.glob(f"expert-{name}-*.expert")
            self.manager.load_expert(name, package, base=self.base)
            self.adapters[name] = self.manager._registry.get(name).expert.adapter
        self.rows: dict[bool, Any] = {}
        self.address: str | None = None
        if spec["experts"]:
            self.engine = self.manager._registry.bases()[0].engine
        else:
            from hivellm_ort.engine.session import Engine

            self.engine = Engine(self.base, threads=threads)
            self.row(False)

    def row(self, adapters: bool) -> Any:
        """The decoder on the graph with adapters, or without."""
        if adapters not in self.rows:
            self.rows[adapters] = self.engine.decoder(adapters=adapters)
        return self.rows[adapters]

    def generate(self, prompt_ids: list[int], new_tokens: int, adapter: str | None = None) -> dict[str, Any]:
        """See `Peer`; the base runs on the graph without adapters, as a merged expert does."""
        row = self.row(adapter is not None)
        row.start(0, self.adapters[adapter], len(prompt_ids) + new_tokens)
        begin = time.perf_counter()
        tokens = [int(row.forward(prompt_ids).argmax())]
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            tokens.append(int(row.forward(tokens[-1:]).argmax()))
        end = time.perf_counter()
        row.free_rows()
        return {"prefill_seconds": first - begin, "decode_seconds": end - first, "tokens": tokens}

    def add_adapter(self, name: str, kind: str, rank: int, modules: list[str]) -> dict[str, Any]:
        """See `Peer`."""
        import hashlib

        import numpy as np

        from hivellm_ort.adapters.prepared_adapter import PreparedAdapter, PreparedModule
        from hivellm_ort.engine.adapters import BoundAdapter

        rng, config = np.random.default_rng(rank), self.engine.config
        prepared = {
            part.module: PreparedModule(
                lora_A=rng.standard_normal((site.in_features, rank), np.float32) * 0.02,
                lora_B=rng.standard_normal((rank, part.size), np.float32) * 0.02,
                scale=rng.uniform(0.99, 1.01, part.size).astype(np.float32) if kind == "dora" else None,
            )
            for site in config.sites
            for part in site.parts
            if part.module.rpartition(".")[2] in modules
        }
        digest = hashlib.sha256(name.encode()).hexdigest()
        adapter = PreparedAdapter(kind, rank, config.source_sha256, prepared, digest=digest)
        self.adapters[name] = BoundAdapter(adapter, config)
        return {}

    def swap(self, adapters: list[str], count: int) -> dict[str, Any]:
        """See `Peer`."""
        row, seconds = self.row(True), []
        for number in range(count):
            row.start(0, self.adapters[adapters[number % len(adapters)]], 256)
            seconds.append(row.swap_seconds)
        row.free_rows()
        return {"seconds": seconds[len(adapters) :]}

    def batch(
        self, prompts: list[list[int]], adapters: list[str | None], new_tokens: int, together: bool
    ) -> dict[str, Any]:
        """See `Peer`; rows with different adapters share every step."""
        begin = time.perf_counter()
        if not together:
            for prompt, adapter in zip(prompts, adapters, strict=True):
                self.generate(prompt, new_tokens, adapter)
            return {"seconds": time.perf_counter() - begin}
        row, tokens = self.row(any(adapters)), []
        for number, (prompt, adapter) in enumerate(zip(prompts, adapters, strict=True)):
            row.start(number, self.adapters[adapter], len(prompt) + new_tokens)
            tokens.append(int(row.append(number, prompt)[0].argmax()))
        for _ in range(new_tokens - 1):
            tokens = row.step(tokens).argmax(axis=-1).tolist()
        seconds = time.perf_counter() - begin
        row.free_rows()
        return {"seconds": seconds}

    def clients(
        self, prompts: list[list[int]], adapters: list[str], new_tokens: int, http: bool
    ) -> dict[str, Any]:
        """See `Peer`."""
        fields = {
            "temperature": 0,
            "max_tokens": new_tokens,
            "min_tokens": new_tokens,
            "prompt_lookup": False,
        }
        asked = list(zip(adapters, prompts, strict=True))
        if http:
            bodies = [{"model": name, "prompt": prompt, "stream": True, **fields} for name, prompt in asked]
            script = Path(__file__).with_name("http_clients.py")
            command = [sys.executable, str(script), self.served()]
            done = subprocess.run(
                command, input=json.dumps(bodies), capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(done.stderr[-400:])
            return {"seconds": float(done.stdout)}

        def read(name: str, prompt: list[int]) -> None:
            for _ in self.manager.generate_stream(name, prompt_ids=prompt, **fields):
                pass

        with ThreadPoolExecutor(len(asked)) as pool:
            begin = time.perf_counter()
            for future in [pool.submit(read, *one) for one in asked]:
                future.result()
            return {"seconds": time.perf_counter() - begin}

    def served(self) -> str:
        """The address of a server of the manager, which runs until this process ends."""
        if self.address is None:
            from hivellm_ort.server import create_app
            from hivellm_ort.server.uvicorn_runner import ListenOptions, run

            told: queue.Queue[str] = queue.Queue()
            arguments = (create_app(self.manager), ListenOptions(port=0), told.put)
            threading.Thread(target=run, args=arguments, daemon=True).start()
            self.address = told.get(timeout=60)
        return self.address

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """See `Peer`; through the public API, with everything it does by itself: kept prefixes, forced tokens."""
        if request["expert"] not in self.adapters:
            raise UnsupportedError("the experts are for another base")
        begin = time.perf_counter()
        result = self.manager.generate(request["expert"], request["user"], **self.options(request))
        return {"seconds": time.perf_counter() - begin, **self.described(result)}

    def answers(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        """See `Peer`; requests of all experts share the steps of one batch."""
        options = [self.options(request) for request in requests]
        pairs = [(request["expert"], request["user"]) for request in requests]
        begin = time.perf_counter()
        results = self.manager.generate_batch(
            pairs, **{name: [own[name] for own in options] for name in options[0]}
        )
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "answers": [self.described(result) for result in results]}

    def options(self, request: dict[str, Any]) -> dict[str, Any]:
        """Those of a request in the public API."""
        return {
            "system": request["system"],
            "temperature": 0,
            "max_tokens": request["max_tokens"],
            "grammar": request["grammar"]["gbnf"] if request["enforce"] else False,
            "prompt_lookup": self.lookup,
        }

    @staticmethod
    def described(result: Any) -> dict[str, Any]:
        """What the harness wants to know of an answer."""
        return {
            "tokens": result.completion_tokens,
            "ids": list(result.tokens),
            "text": result.text,
            "valid": result.grammar_complete,
            "prompt_tokens": result.prompt_tokens,
            "forced_tokens": result.forced_tokens,
            "cached_tokens": result.cached_tokens,
        }

    def logits(self, ids: list[int], file: str) -> dict[str, Any]:
        """See `Peer`."""
        import numpy as np

        row = self.row(False)
        row.start(0, None, len(ids))
        np.save(file, row.append(0, ids, wanted=len(ids)))
        row.free_rows()
        return {}


if __name__ == "__main__":
    serve(Ours, ("hivellm-ort", "onnxruntime", "numpy", "tokenizers", "llguidance"))
