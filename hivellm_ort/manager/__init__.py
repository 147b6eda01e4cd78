"""Several experts on shared bases: by name, within a memory budget, from any thread."""

from hivellm_ort.manager.info import ExpertInfo
from hivellm_ort.manager.manager import ExpertManager

__all__ = ["ExpertInfo", "ExpertManager"]
