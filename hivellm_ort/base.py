"""A base model as experts share it: engine, tokenizer and chat template of one bundle."""

from __future__ import annotations

import json
import threading
from functools import cached_property
from pathlib import Path

from hivellm_ort.contract import ADAPTER_GRAPH, BASE_GRAPH, WEIGHTS_FILE, DecoderConfig
from hivellm_ort.decoding.words import TokenTexts
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.engine.devices import Device
from hivellm_ort.engine.placement import Placement, place
from hivellm_ort.engine.session import Engine
from hivellm_ort.errors import ManifestError
from hivellm_ort.forking import in_child
from hivellm_ort.grammar.compiler import GrammarCompiler
from hivellm_ort.scheduler import Scheduler
from hivellm_ort.text.template import ChatTemplate
from hivellm_ort.text.tokenizer import TextTokenizer

__all__ = ["BASES", "Base", "BasePool"]

_Key = tuple[str, Placement, int | None]


class Base:
    """Everything of a base bundle that does not depend on the expert.

    Attributes:
        engine: its sessions.
        tokenizer: its tokenizer.
        template: its chat template.
        eos_token_ids: every token that ends an answer.
        grammars: compiles grammars for its vocabulary.
        scheduler: answers its requests.
    """

    def __init__(self, folder: Path, config: DecoderConfig, *, placement: Placement, threads: int | None):
        self.tokenizer = TextTokenizer.from_folder(folder)
        self.template = ChatTemplate.from_folder(folder, self.tokenizer)
        self.eos_token_ids = _eos_token_ids(folder)
        self.grammars = GrammarCompiler(self.tokenizer.to_json, config.architecture.vocab_size)
        self.engine = Engine(folder, config, placement=placement, threads=threads)
        self.engine.start()  # nothing of the folder is read later
        self.scheduler = Scheduler(self.engine, adapters=config.merged is None)

    @property
    def config(self) -> DecoderConfig:
        """The bundle's `decoder.json`."""
        return self.engine.config

    @cached_property
    def no_adapter(self) -> BoundAdapter | None:
        """What requests to the base itself bind; None where an adapter is merged, and the base no more itself."""
        return BoundAdapter.none(self.config) if self.config.merged is None else None

    @cached_property
    def token_texts(self) -> TokenTexts:
        """The tokens that the model can write, by their texts; made for the first request that needs them."""
        return TokenTexts(self.tokenizer.token_bytes[: self.config.architecture.vocab_size])

    @property
    def nbytes(self) -> int:
        """Memory of its weights: the bytes of the graph and the tensors on disk."""
        graph = ADAPTER_GRAPH if self.config.merged is None else BASE_GRAPH
        return sum(int(self.config.files[name]["size"]) for name in (graph, WEIGHTS_FILE))

    @property
    def cache_bytes(self) -> int:
        """Memory of keys and values: of running requests, and kept of earlier ones."""
        return self.scheduler.nbytes + self.engine.prefixes.nbytes

    def forget(self, adapter: BoundAdapter) -> None:
        """Let go of what is kept for an adapter, so that its memory can be freed."""
        self.scheduler.forget(adapter)
        self.engine.prefixes.clear(adapter.digest)

    def close(self) -> None:
        """Free the session and buffers; answers that are being generated end first."""
        self.scheduler.close()
        self.engine.close()


class BasePool:
    """One `Base` per bundle digest, placement and thread count, closed when its last user lets go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bases: dict[_Key, tuple[Base, int]] = {}
        self._making: dict[_Key, threading.Lock] = {}
        self._inherited: list[object] = []
        in_child(self._begin_anew)

    def acquire(
        self, folder: Path, config: DecoderConfig, *, device: Device | None = None, threads: int | None = None
    ) -> Base:
        """The base of the bundle in `folder` with its `decoder.json`; call `release` once for each call of this.

        Raises:
            LoadError: the bundle cannot be used.
        """
        placement = place(device or Device(), config)
        placement.announce(config.name)
        key = (config.sha256, placement, threads)
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        # Those who want the same base wait for it, and nobody else: a session takes seconds to open.
        with making:
            with self._lock:
                base, users = self._bases.get(key, (None, 0))
                if base is not None:
                    self._bases[key] = (base, users + 1)
                    return base
            base = Base(folder, config, placement=placement, threads=threads)
            with self._lock:
                self._bases[key] = (base, 1)
            return base

    def hold(self, base: Base) -> None:
        """Keep a base from `acquire` for one user more."""
        with self._lock:
            key = self._key(base)
            self._bases[key] = (base, self._bases[key][1] + 1)

    def release(self, base: Base) -> None:
        """Let go of a base from `acquire` or `hold`; one of the process that this was forked from stays."""
        if not base.scheduler.home.here:
            return
        with self._lock:
            key = self._key(base)
            users = self._bases[key][1] - 1
            if users:
                self._bases[key] = (base, users)
            else:
                del self._bases[key]
        if not users:
            base.close()

    def _begin_anew(self) -> None:
        """Have no base, in a forked process. To free a session is to wait for its threads, which are not here."""
        self._inherited.append(self._bases)
        self._lock = threading.Lock()
        self._bases = {}
        self._making = {}

    def _key(self, base: Base) -> _Key:
        return next(key for key, (held, _) in self._bases.items() if held is base)


BASES = BasePool()
"""The bases of this process: experts share them however they are loaded."""


def _eos_token_ids(folder: Path) -> frozenset[int]:
    path = folder / "generation_config.json"
    try:
        ids = json.loads(path.read_bytes())["eos_token_id"]
        return frozenset([ids] if isinstance(ids, int) else map(int, ids))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{path.name}: eos_token_id is missing or malformed: {error!r}") from error
