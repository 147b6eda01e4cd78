"""What a verification says, and the bounds it holds exports to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

__all__ = ["BOUNDS", "MOST_SECONDS", "Bound", "Verification", "bound_of", "too_long"]

MOST_SECONDS = 60.0
"""An export is verified by itself where it is expected to take less."""

# Seconds for a billion parameters, on two cores of a Xeon with AVX-512: docs/ci-export.md.
_PER_BUNDLE = _PER_EXPERT = 60.0


@dataclass(frozen=True)
class Bound:
    """The most by which a sound bundle of one precision differs from its source.

    Attributes:
        kl: of answers, Kullback-Leibler divergence of the bundle from transformers, in nats a token.
        error: of any weight matrix or vector, length of the difference by length of the original.
        scale: of the same, how far from 1 the factor may be that fits best.
        layer: of the keys and values of any layer, length of the difference by length.
    """

    kl: float
    error: float
    scale: float
    layer: float


# Chosen from what sound exports measure, with room above the worst of them: docs/ci-export.md has the figures.
BOUNDS = {
    "fp32": Bound(kl=1e-4, error=1e-5, scale=1e-5, layer=2e-3),
    "fp16": Bound(kl=5e-3, error=2e-3, scale=1e-3, layer=5e-2),
    "bf16": Bound(kl=5e-2, error=8e-3, scale=4e-3, layer=2e-1),
    "int8": Bound(kl=5e-2, error=3e-2, scale=1e-2, layer=2e-1),
    "w8a8": Bound(kl=1e-1, error=3e-1, scale=2.5e-2, layer=3e-1),
    "int4": Bound(kl=1.0, error=3e-1, scale=2.5e-2, layer=1.0),
}
"""By precision of the weights."""

# What keys and values in 8 bits may add to the KL, and to the errors of layers.
_ROUNDED_KL, _ROUNDED_LAYER = 5e-2, 2e-1


def bound_of(precision: str, cache: str = "") -> Bound:
    """The bound of a precision, with keys and values of type `cache`."""
    bound = BOUNDS[precision]
    if cache != "int8":
        return bound
    return replace(bound, kl=bound.kl + _ROUNDED_KL, layer=bound.layer + _ROUNDED_LAYER)


@dataclass(frozen=True)
class Verification:
    """How the answers of one bundle, or of one expert on it, compare with those of transformers (and PEFT).

    Attributes:
        target: of the bundle.
        precision: of the bundle.
        kl: Kullback-Leibler divergence of the bundle's next-token distribution from transformers', in nats a token,
            the mean over all positions; None where the answers could not be compared.
        bound: the most that it may be for this precision, in nats a token.
        agreement: share of positions, 0 to 1, at which both prefer the same token; None as `kl`.
        tokens: positions that were compared.
        weights: the largest relative error of a weight tensor (an expert: of an adapted module's effect); None where
            none was compared.
        seconds: how long it took.
        omitted: what was not compared, each with the reason and what to do.
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


def too_long(parameters: int, bundles: int, experts: int) -> str:
    """Why an export is not verified unless that is asked for; empty where it is expected to take under a minute.

    Args:
        parameters: of the model.
        bundles: how many are made.
        experts: how many are made.
    """
    expected = parameters / 1e9 * bundles * (_PER_BUNDLE + experts * _PER_EXPERT)
    if expected < MOST_SECONDS:
        return ""
    return (
        f"{parameters / 1e6:.0f} M parameters, bundles: {bundles}, experts: {experts} are expected to take "
        f"{expected:.0f} s; use --verify to have it"
    )
