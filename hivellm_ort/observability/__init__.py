"""Events, metrics and OpenTelemetry spans."""

from hivellm_ort.observability.dispatch import Events
from hivellm_ort.observability.events import (
    BaseFreed,
    BaseLoaded,
    Event,
    EvictionReason,
    ExpertEvicted,
    ExpertLoaded,
    ExpertUnloaded,
    FirstToken,
    Listener,
    RequestFinished,
    RequestQueued,
    RequestStarted,
    StepDone,
    Swapped,
)
from hivellm_ort.observability.exposition import PROMETHEUS_CONTENT_TYPE
from hivellm_ort.observability.metrics import Metrics
from hivellm_ort.observability.tracing import start_request

__all__ = [
    "PROMETHEUS_CONTENT_TYPE",
    "BaseFreed",
    "BaseLoaded",
    "Event",
    "Events",
    "EvictionReason",
    "ExpertEvicted",
    "ExpertLoaded",
    "ExpertUnloaded",
    "FirstToken",
    "Listener",
    "Metrics",
    "RequestFinished",
    "RequestQueued",
    "RequestStarted",
    "StepDone",
    "Swapped",
    "start_request",
]
