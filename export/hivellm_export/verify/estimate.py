"""How long a verification takes."""

from __future__ import annotations

__all__ = ["MOST_SECONDS", "too_long"]

MOST_SECONDS = 60.0
"""An export is verified by itself where it is expected to take less."""

# Seconds for a billion parameters, on two cores of a Xeon with AVX-512: docs/ci-export.md.
_PER_BUNDLE = _PER_EXPERT = 60.0


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
