"""Rows of an engine, for tests of logits."""

from __future__ import annotations

from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.engine.decoder import Decoder
from hivellm_ort.engine.session import Engine


def begun(engine: Engine, adapter: BoundAdapter | None, capacity: int) -> Decoder:
    """Return a decoder whose first row is started."""
    decoder = engine.decoder(adapters=adapter is not None)
    decoder.start(0, adapter, capacity)
    return decoder
