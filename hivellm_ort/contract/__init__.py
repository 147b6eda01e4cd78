"""The contract between exporter and runtime: names in the graphs and the form of `decoder.json`.

Version 1.7. A change here changes `CONTRACT_VERSION`: the minor number for an addition that an older runtime
can ignore, the major number for anything else. `docs/contract.md` states it in full.
"""

from __future__ import annotations

from hivellm_ort.contract.architecture import Architecture
from hivellm_ort.contract.decoder import DecoderConfig, FileRecord
from hivellm_ort.contract.graph_config import GraphConfig
from hivellm_ort.contract.names import (
    ADAPTER_FILE,
    ADAPTER_GRAPH,
    BASE_GRAPH,
    CONTRACT_VERSION,
    DECODER_JSON,
    GREEDY_OUTPUT,
    LOGITS,
    WEIGHTS_FILE,
    past_names,
    present_names,
)
from hivellm_ort.contract.sites import Part, Site, StoredWeights

__all__ = [
    "ADAPTER_FILE",
    "ADAPTER_GRAPH",
    "BASE_GRAPH",
    "CONTRACT_VERSION",
    "DECODER_JSON",
    "GREEDY_OUTPUT",
    "LOGITS",
    "WEIGHTS_FILE",
    "Architecture",
    "DecoderConfig",
    "FileRecord",
    "GraphConfig",
    "Part",
    "Site",
    "StoredWeights",
    "past_names",
    "present_names",
]
