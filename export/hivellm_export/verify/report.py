"""Results of a verification, their bounds, and its expected duration."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

__all__ = ["BOUNDS", "MOST_SECONDS", "Bound", "Verification", "bound_of", "skip_reason"]

MOST_SECONDS = 60.0
"""Exports are verified by default if this is expected to take less."""

# Seconds for a billion parameters, on two cores of a Xeon with AVX-512: docs/ci-export.md.
_PER_BUNDLE = _PER_EXPERT = 60.0


@dataclass(frozen=True)
class Bound:
    """The largest allowed difference of a bundle from its source, for one precision.

    Attributes:
        kl: Of answers: Kullback-Leibler divergence of the bundle from transformers, in nats per token.
        error: Of each weight tensor: norm of the difference, divided by the norm of the original.
        scale: Of each weight tensor: distance from 1 of the factor that fits best.
        layer: Of the keys and values of each layer: norm of the difference, divided by their norm.
    """

    kl: float
    error: float
    scale: float
    layer: float


# Measured on correct exports, with room above the worst of them. The figures are in docs/ci-export.md.
BOUNDS = {
    "fp32": Bound(kl=1e-4, error=1e-5, scale=1e-5, layer=2e-3),
    "fp16": Bound(kl=5e-3, error=2e-3, scale=1e-3, layer=5e-2),
    "bf16": Bound(kl=5e-2, error=8e-3, scale=4e-3, layer=2e-1),
    "int8": Bound(kl=5e-2, error=3e-2, scale=1e-2, layer=2e-1),
    "w8a8": Bound(kl=1e-1, error=3e-1, scale=2.5e-2, layer=3e-1),
    "int4": Bound(kl=1.0, error=3e-1, scale=2.5e-2, layer=1.0),
}
"""By precision of the weights."""

# Keys and values in 8 bits may add this to the KL, and to the errors of layers.
_ROUNDED_KL, _ROUNDED_LAYER = 5e-2, 2e-1


def bound_of(precision: str, cache: str = "") -> Bound:
    """The bound of a precision, with keys and values of type `cache`."""
    bound = BOUNDS[precision]
    if cache != "int8":
        return bound
    return replace(bound, kl=bound.kl + _ROUNDED_KL, layer=bound.layer + _ROUNDED_LAYER)


@dataclass(frozen=True)
class Verification:
    """How the answers of one bundle, or of one expert on it, compare with those of transformers and PEFT.

    Attributes:
        target: Target of the bundle.
        precision: Precision of the bundle.
        kl: Kullback-Leibler divergence of the bundle's next-token distribution from that of transformers, in nats per
            token, as mean over all positions; None if answers could not be compared.
        bound: Largest allowed `kl` for this precision.
        agreement: Share of positions, 0 to 1, where both prefer the same token; None if `kl` is None.
        tokens: Number of compared positions.
        weights: Largest relative error of a weight tensor, or for an expert of a module's effect; None if none was
            compared.
        seconds: Duration.
        omitted: What was not compared, each with the reason and a remedy.
    """

    target: str
    precision: str
    kl: float | None
    bound: float
    agreement: float | None
    tokens: int
    weights: float | None
    seconds: float
    omitted: list[str] = field(default_factory=list)


def skip_reason(parameters: int, bundles: int, experts: int) -> str:
    """Say why an export is not verified by default.

    Args:
        parameters: Number of parameters of the model.
        bundles: Number of bundles of the export.
        experts: Number of experts of the export.

    Returns:
        The reason; empty if verification is expected to take under a minute.
    """
    expected = parameters / 1e9 * bundles * (_PER_BUNDLE + experts * _PER_EXPERT)
    if expected < MOST_SECONDS:
        return ""
    return (
        f"it would take about {expected:.0f} s for {parameters / 1e6:.0f} M parameters, bundles: {bundles}, experts: "
        f"{experts}; use --verify"
    )
