"""`/health`, `/ready` and `/metrics`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from hivellm_ort.observability import PROMETHEUS_CONTENT_TYPE
from hivellm_ort.observability.exposition import MetricFamily, prometheus_text
from hivellm_ort.server.errors import ERRORS
from hivellm_ort.server.state import server_state

__all__ = ["router"]

router = APIRouter(tags=["status"])


@router.get("/health")
async def health() -> dict[str, str]:
    """Return that the process answers. It needs no key."""
    return {"status": "ok"}


@router.get("/ready", responses=ERRORS)
async def ready(request: Request) -> Response:
    """Return whether requests are accepted. Without experts and during shutdown the status is 503."""
    state = server_state(request)
    if state.draining:
        return JSONResponse({"status": "shutting down"}, 503)
    experts = len(state.manager.list_loaded_experts())
    return JSONResponse({"status": "ready" if experts else "no experts"}, 200 if experts else 503)


@router.get(
    "/metrics",
    responses={**ERRORS, 200: {"description": "The text.", "content": {"text/plain": {}}}},
    response_model=None,
    response_class=Response,
)
async def metrics(request: Request) -> Response:
    """Return the metrics of the manager and of HTTP, for Prometheus."""
    state = server_state(request)
    text = state.manager.metrics.prometheus() + _memory(state.manager.stats()) + state.metrics.prometheus()
    return Response(text, media_type=PROMETHEUS_CONTENT_TYPE)


def _memory(stats: Mapping[str, Any]) -> str:
    """Return the metrics of memory and of rows."""
    bases = stats["bases"]
    parts = {"bases": "bytes", "key_values": "key_value_bytes", "prefixes": "prefix_bytes"}
    memory: dict[tuple[str, ...], float] = {
        (part,): sum(base[name] for base in bases) for part, name in parts.items()
    }
    memory["adapters",] = stats["adapter_bytes"]
    rows = sum(base["rows"] for base in bases)
    return prometheus_text(
        [
            MetricFamily("memory_bytes", "gauge", "Bytes in memory, by kind.", ("part",), memory),
            MetricFamily(
                "batch_rows_limit",
                "gauge",
                "Most requests that can have a row at the same time.",
                (),
                {(): rows},
            ),
        ]
    )
