"""Chooses the expert of a request, and answers `/v1/models`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request

from hivellm_ort.errors import OptionError
from hivellm_ort.manager import ExpertInfo
from hivellm_ort.server.errors import ERRORS, ApiError, field_error
from hivellm_ort.server.options import AUTO
from hivellm_ort.server.state import ServerState, server_state

__all__ = ["ChosenExpert", "check_length", "choose_expert", "context_of", "router"]

_CHARACTERS_PER_TOKEN = 32  # far above the average of any language or code
_MOST_REASONS = 5  # in the header of a routed request

router = APIRouter(tags=["models"])


@dataclass(frozen=True)
class ChosenExpert:
    """The expert that answers a request.

    Attributes:
        name: The name of the expert, or `base`.
        headers: Headers of the response: which expert answers, and why.
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
    """Choose the expert of a request.

    Args:
        state: The state of the application.
        model: The model of the request: an expert, `base` or `auto`.
        prompt: The question, for `auto`.
        messages: The conversation, in place of the prompt.
        schema: The schema, as further context.

    Raises:
        ApiError: The model is `base` and there are several bases, or `auto` and there is no question, or the prompt
            is too long for every context.
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
    """Refuse a prompt that is too long for every context. Rendering and encoding it would take seconds.

    Args:
        state: The state of the application.
        field: The name of the field, for the error.
        value: A text, or lists and objects with texts.

    Raises:
        ApiError: The value is too long.
    """
    if value is None:
        return
    context = max((base["context"] for base in state.manager.stats()["bases"]), default=None)
    if context is None or (size := _characters(value)) <= context * _CHARACTERS_PER_TOKEN:
        return
    message = f"{field} has {size} characters, and the model's context is {context} tokens: shorten it"
    raise ApiError(400, message, param=field, code="context_length_exceeded")


def _characters(value: Any) -> int:
    """Return the number of characters of all texts in a value, with the keys of objects."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(len, value)) + sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list | tuple) else 0


def context_of(state: ServerState, name: str) -> int | None:
    """Return the context length of an expert in tokens; None if its base is not in memory."""
    return next((one["max_model_len"] for one in _models(state) if one["id"] == name), None)


@router.get("/v1/models", responses=ERRORS)
async def list_models(request: Request) -> dict[str, Any]:
    """List the base and the experts."""
    return {"object": "list", "data": _models(server_state(request))}


@router.get("/v1/models/{model:path}", responses=ERRORS)
async def get_model(model: str, request: Request) -> dict[str, Any]:
    """Return the base or one expert."""
    for one in _models(server_state(request)):
        if one["id"] == model:
            return one
    raise ApiError(
        404, f"the model {model!r} does not exist: see /v1/models", param="model", code="model_not_found"
    )


def _models(state: ServerState) -> list[dict[str, Any]]:
    manager = state.manager
    loaded = {base["sha256"]: base for base in manager.stats()["bases"]}
    experts = manager.list_loaded_experts()
    bases = _bases(experts)
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
    bases = sorted(_bases(state.manager.list_loaded_experts()).values())
    if len(bases) > 1:
        raise field_error("model", f"the experts have several bases ({', '.join(bases)}): name an expert")
    return state.manager.BASE


def _bases(experts: Iterable[ExpertInfo]) -> dict[str, str]:
    """Return the names of the experts' bases by digest. A merged expert has no base of its own."""
    return {info.base_sha256: info.base for info in experts if info.digest}


def _header(name: str) -> str:
    """Return a name for a header. Characters outside visible ASCII are percent-encoded."""
    return quote(name, safe="!#$&'()*+,/:;=?@[]~ ")
