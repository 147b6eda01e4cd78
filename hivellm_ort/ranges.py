"""Ranges of generation options, for callers and manifests alike."""

from __future__ import annotations

__all__ = [
    "MAX_PENALTY",
    "MAX_PUBLISHED_STOPS",
    "MAX_STOPS",
    "MAX_STOP_LENGTH",
    "MAX_TEMPERATURE",
    "MIN_PENALTY",
    "MIN_TEMPERATURE",
]

# Logits are float32: values outside these bounds would make them infinite.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-4, 1e6
MIN_PENALTY, MAX_PENALTY = 1e-6, 1e6

MAX_STOPS = 16
"""Most stop strings of a request."""

MAX_PUBLISHED_STOPS = 64
"""Most stop strings of a manifest."""

MAX_STOP_LENGTH = 1024
"""Most characters of a stop string."""
