"""A base model as experts share it: engine, tokenizer and chat template of one bundle."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from hivellm_ort.contract import DecoderConfig
from hivellm_ort.engine.providers import choose_provider
from hivellm_ort.engine.session import Engine
from hivellm_ort.errors import ManifestError
from hivellm_ort.text.template import ChatTemplate
from hivellm_ort.text.tokenizer import TextTokenizer

__all__ = ["Base", "BasePool"]

_Key = tuple[str, str, int | None]


class Base:
    """Everything of a base bundle that does not depend on the expert.

    Attributes:
        engine: its sessions.
        tokenizer: its tokenizer.
        template: its chat template.
        eos_token_ids: every token that ends an answer.
    """

    def __init__(self, folder: Path, config: DecoderConfig, *, device: str | None, threads: int | None):
        self.tokenizer = TextTokenizer.from_folder(folder)
        self.template = ChatTemplate.from_folder(folder)
        self.eos_token_ids = _eos_token_ids(folder)
        self.engine = Engine(folder, config, device=device, threads=threads)

    @property
    def config(self) -> DecoderConfig:
        """The bundle's `decoder.json`."""
        return self.engine.config


class BasePool:
    """One `Base` per bundle digest, execution provider and thread count, closed when its last user lets go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bases: dict[_Key, tuple[Base, int]] = {}

    def acquire(
        self, folder: Path, config: DecoderConfig, *, device: str | None = None, threads: int | None = None
    ) -> Base:
        """The base of the bundle in `folder` with its `decoder.json`; call `release` once for each call of this.

        Raises:
            LoadError: the bundle cannot be used.
        """
        key = (config.sha256, choose_provider(device, config.target), threads)
        with self._lock:
            base, users = self._bases.get(key, (None, 0))
            if base is None:
                base = Base(folder, config, device=device, threads=threads)
            self._bases[key] = (base, users + 1)
            return base

    def release(self, base: Base) -> None:
        """Let go of a base from `acquire`."""
        with self._lock:
            for key, (held, users) in self._bases.items():
                if held is base:
                    if users == 1:
                        del self._bases[key]
                        base.engine.close()
                    else:
                        self._bases[key] = (base, users - 1)
                    return


def _eos_token_ids(folder: Path) -> frozenset[int]:
    path = folder / "generation_config.json"
    try:
        ids = json.loads(path.read_bytes())["eos_token_id"]
        return frozenset([ids] if isinstance(ids, int) else map(int, ids))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{path.name}: eos_token_id is missing or malformed: {error!r}") from error
