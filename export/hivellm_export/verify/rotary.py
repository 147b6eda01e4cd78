"""Compare the rotary embedding of a bundle with its source."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivellm_export.verify.source import RotaryFacts
from hivellm_ort.errors import ExportError

__all__ = ["check_rotary"]

Floats = NDArray[np.float64]

# Rounding of angles in float32, and of cosines and sines in the float type of the bundle.
_ANGLE_ERROR = 1e-6
_VALUE_ERROR = {"float32": 2e-5, "float16": 1e-3, "bfloat16": 8e-3}


def check_rotary(
    facts: RotaryFacts, cos: NDArray[Any], sin: NDArray[Any], *, dtype: str, where: str
) -> str | None:
    """Compare cosines and sines of a bundle with those of its source.

    Args:
        facts: The rotary embedding of the source.
        cos: Cosines of the graph, [positions, head_dim / 2].
        sin: Sines of the graph, [positions, head_dim / 2].
        dtype: Float type of the bundle.
        where: The bundle, for messages.

    Returns:
        None, or why they could not be compared.

    Raises:
        ExportError: They differ by more than rounding.
    """
    computed = _frequencies(facts)
    if computed is None:
        return f"rotary embedding: not compared; the check does not know the form {facts.kind!r}"
    frequencies, factor = computed
    if cos.shape[1] != len(frequencies):
        raise ExportError(
            f"{where}: the rotary embedding rotates {2 * cos.shape[1]} dimensions, {facts.where} says "
            f"{2 * len(frequencies)}"
        )
    angles = np.arange(len(cos), dtype=np.float64)[:, None] * frequencies
    allowed = _VALUE_ERROR[dtype] + _ANGLE_ERROR * angles
    for values, function in ((cos, np.cos), (sin, np.sin)):
        wrong = np.abs(values.astype(np.float64) - factor * function(angles)) > factor * allowed
        if wrong.any():
            position, index = np.argwhere(wrong)[0]
            raise ExportError(
                f"{where}: the rotary embedding differs from the source at position {position}, frequency {index}: "
                f"{values[position, index]:.6f} and not {factor * function(angles[position, index]):.6f}; "
                f"{facts.where} says theta {facts.theta:g}{_told(facts)}"
            )
    return None


def _told(facts: RotaryFacts) -> str:
    scaling = "" if facts.kind == "default" else f", {facts.kind} scaling by {facts.scaling.get('factor')}"
    return scaling + ("" if facts.divisors is None else ", frequencies divided by a tensor")


def _frequencies(facts: RotaryFacts) -> tuple[Floats, float] | None:
    """Angles per position, float64 [width / 2], and the factor of cosine and sine; None for an unknown form."""
    plain = facts.theta ** -(np.arange(0, facts.width, 2, dtype=np.float64) / facts.width)
    if facts.divisors is not None:
        plain = plain / facts.divisors
    match facts.kind:
        case (
            "default" | "dynamic"
        ):  # dynamic changes nothing within the context that the model was trained with
            return plain, 1.0
        case "linear":
            return plain / float(facts.scaling["factor"]), 1.0
        case "llama3":
            return _llama3(plain, facts), 1.0
        case "yarn":
            return _yarn(plain, facts)
        case "longrope" if (
            float(facts.scaling.get("original_max_position_embeddings") or 0) >= facts.positions
        ):
            factor = float(facts.scaling.get("attention_factor") or 1.0)
            return plain / np.asarray(facts.scaling["short_factor"], np.float64), factor
    return None


def _llama3(plain: Floats, facts: RotaryFacts) -> Floats:
    """Llama 3.1: low frequencies divided by the factor, high ones unchanged, a ramp between."""
    scaling = facts.scaling
    turns = float(scaling.get("original_max_position_embeddings") or facts.positions) * plain / (2 * math.pi)
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    share = np.clip((turns - low) / (high - low), 0, 1)
    scaled: Floats = plain * (share + (1 - share) / float(scaling["factor"]))
    return scaled


def _yarn(plain: Floats, facts: RotaryFacts) -> tuple[Floats, float]:
    """YaRN (Peng et al., 2023): a ramp over the dimensions between two numbers of rotations."""
    scaling, half = facts.scaling, facts.width // 2
    factor = float(scaling["factor"])
    original = float(scaling.get("original_max_position_embeddings") or facts.positions)

    def dimension(turns: float) -> float:
        return facts.width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(facts.theta))

    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, facts.width - 1)
    ramp = np.clip((np.arange(half) - low) / max(high - low, 0.001), 0, 1)
    attention = scaling.get("attention_factor")
    if attention is None:
        scale, all_dims = scaling.get("mscale"), scaling.get("mscale_all_dim")
        attention = _magnitude(factor, scale) / _magnitude(factor, all_dims) if scale and all_dims else None
    return plain * (1 - ramp + ramp / factor), float(
        _magnitude(factor, 1) if attention is None else attention
    )


def _magnitude(factor: float, share: float) -> float:
    return 0.1 * share * math.log(factor) + 1 if factor > 1 else 1.0
