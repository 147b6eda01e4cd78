"""Which expert a request is for, and what `/v1/models` tells of each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request

from hivellm_ort.errors import OptionError
from hivellm_ort.server.errors import ERRORS, ApiError, field_error
from hivellm_ort.server.state import ServerState, server_state

__all__ = ["AUTO", "ChosenExpert", "check_length", "choose_expert", "context_of", "router"]

AUTO = "auto"
"""The model of a request that is routed."""

_CHARACTERS_OF_A_TOKEN = 32  # many more than a token has on average, in any language or code
_MOST_REASONS = 5  # of a routing, in a header

router = APIRouter(tags=["models"])


@dataclass(frozen=True)
class ChosenExpert:
    """The expert that answers a request.

    Attributes:
        name: of the expert, or `base`.
        headers: of the response: who answers, and why.
    """

    name: str
    headers: Mapping[str, str]


async def choose_expert(
    state: ServerState,
    model: str,
    prompt: str | None = None,
    messages: Sequence[Mapping[str, Any]] | None = None,
    schema: str | None = None,
) -> ChosenExpert:
    """The expert of a request.

    Args:
        state: of the application.
        model: what the request names.
        prompt: what it asks; for `auto`.
        messages: the conversation in its place.
        schema: what it is about.

    Raises:
        ApiError: the base is asked for and there are several, `auto` where there is no question, or the prompt is
            so long that it cannot fit.
    """
    for field, value in (("prompt", prompt), ("messages", messages), ("schema", schema)):
        check_length(state, field, value)
    base = state.manager.BASE
    if model != AUTO:
        return ChosenExpert(
            _one_base(state) if model == base else model, {"x-hivellm-expert": _header(model)}
        )
    try:
        routes = await asyncio.to_thread(state.manager.route, prompt, messages=messages, schema=schema)
    except OptionError as error:
        raise field_error("model", f"{AUTO!r} needs a question to choose by: {error}") from error
    name = routes[0].name if routes else _one_base(state)
    decision = {
        "expert": name,
        "score": routes[0].score if routes else 0.0,
        "reasons": list(routes[0].reasons[:_MOST_REASONS]) if routes else ["no expert fits"],
    }
    return ChosenExpert(name, {"x-hivellm-expert": _header(name), "x-hivellm-routing": json.dumps(decision)})


def check_length(state: ServerState, field: str, value: Any) -> None:
    """Refuse a prompt that no context can hold, before it is rendered and encoded, which would take seconds.

    Args:
        state: of the application.
        field: its name, for the error.
        value: a text, or lists and objects with texts.

    Raises:
        ApiError: it is too long.
    """
    context = max((base["context"] for base in state.manager.stats()["bases"]), default=None)
    if context is None or (size := _characters(value)) <= context * _CHARACTERS_OF_A_TOKEN:
        return
    message = f"{field} has {size} characters, and the model's context is {context} tokens: shorten it"
    raise ApiError(400, message, param=field, code="context_length_exceeded")


def _characters(value: Any) -> int:
    """All characters of all texts in a value, the names of members included."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(len, value)) + sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list | tuple) else 0


def context_of(state: ServerState, name: str) -> int | None:
    """How many tokens prompt and answer of an expert may have together; None where its base is not in memory."""
    return next((one["max_model_len"] for one in _models(state) if one["id"] == name), None)


@router.get("/v1/models", responses=ERRORS)
async def list_models(request: Request) -> dict[str, Any]:
    """The base and the experts."""
    return {"object": "list", "data": _models(server_state(request))}


@router.get("/v1/models/{model:path}", responses=ERRORS)
async def get_model(model: str, request: Request) -> dict[str, Any]:
    """One of them."""
    for one in _models(server_state(request)):
        if one["id"] == model:
            return one
    raise ApiError(404, f"there is no model {model!r}: see /v1/models", param="model", code="model_not_found")


def _models(state: ServerState) -> list[dict[str, Any]]:
    manager = state.manager
    loaded = {base["sha256"]: base for base in manager.stats()["bases"]}
    experts = manager.list_loaded_experts()
    bases = {info.base_sha256: info.base for info in experts if info.digest}
    found: list[dict[str, Any]] = [
        _model(state, manager.BASE, root=name, parent=None, base=loaded.get(sha256))
        for sha256, name in bases.items()
        if len(bases) == 1
    ]
    found.extend(
        _model(
            state,
            info.name,
            root=f"{info.package}@{info.version}" if info.version else info.package,
            parent=manager.BASE if len(bases) == 1 and info.digest else info.base,
            base=loaded.get(info.base_sha256),
        )
        for info in experts
    )
    return found


def _model(
    state: ServerState, name: str, *, root: str, parent: str | None, base: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": state.started,
        "owned_by": "hivellm",
        "root": root,
        "parent": parent,
        "max_model_len": base and base["context"],
        "provider": base and base["provider"],
        "precision": base and base["precision"],
    }


def _one_base(state: ServerState) -> str:
    bases = sorted({info.base for info in state.manager.list_loaded_experts() if info.digest})
    if len(bases) > 1:
        raise field_error("model", f"the experts are of several bases ({', '.join(bases)}): name an expert")
    return state.manager.BASE


def _header(name: str) -> str:
    """A name as a header can hold it: what is not visible ASCII is percent-encoded."""
    return quote(name, safe="!#$&'()*+,/:;=?@[]~ ")
