"""Verification of an export: what was made against what it was made from.

`run` does all of it; `tokens`, `rotary`, `weights`, `adapters` and `answers` compare one thing each; `source` reads the
base's files a second time; `report` has the bounds.
"""

from hivellm_export.verify.report import BOUNDS, Verification
from hivellm_export.verify.run import Made, too_long, verify

__all__ = ["BOUNDS", "Made", "Verification", "too_long", "verify"]
