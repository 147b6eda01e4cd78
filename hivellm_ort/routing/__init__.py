"""Chooses the expert for a prompt: ranks candidates by their manifests and gives the reasons."""

from hivellm_ort.routing.candidates import Candidate, Route, Scorer, Tags
from hivellm_ort.routing.hint import parse_hint
from hivellm_ort.routing.router import Router, rank
from hivellm_ort.routing.scorer import KeywordScorer

__all__ = ["Candidate", "KeywordScorer", "Route", "Router", "Scorer", "Tags", "parse_hint", "rank"]
