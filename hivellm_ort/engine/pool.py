"""Engines by bundle digest, shared and counted."""

from __future__ import annotations

import threading
from pathlib import Path

from hivellm_ort.contract import DECODER_JSON, DecoderConfig
from hivellm_ort.engine.session import Engine

__all__ = ["EnginePool"]

_Key = tuple[str, str, int | None]


class EnginePool:
    """One `Engine` per base bundle, device and thread count, closed when its last user lets go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: dict[_Key, tuple[Engine, int]] = {}

    def acquire(self, folder: Path, *, device: str | None = None, threads: int | None = None) -> Engine:
        """The engine for the bundle in `folder`; call `release` once for each call of this."""
        key = (DecoderConfig.from_file(folder / DECODER_JSON).sha256, device or "auto", threads)
        with self._lock:
            engine, users = self._engines.get(key, (None, 0))
            if engine is None:
                engine = Engine(folder, device=device, threads=threads)
            self._engines[key] = (engine, users + 1)
            return engine

    def release(self, engine: Engine) -> None:
        """Let go of an engine from `acquire`."""
        with self._lock:
            for key, (held, users) in self._engines.items():
                if held is engine:
                    if users == 1:
                        del self._engines[key]
                        engine.close()
                    else:
                        self._engines[key] = (engine, users - 1)
                    return
