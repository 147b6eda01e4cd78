"""`/v1/load_lora_adapter` and `/v1/unload_lora_adapter`: off unless the operator allows a folder."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from hivellm_ort.errors import LoadError
from hivellm_ort.server.errors import ERRORS, ApiError, field_error
from hivellm_ort.server.options import AUTO
from hivellm_ort.server.schemas.loading import LoadBody, UnloadBody
from hivellm_ort.server.state import ServerState, server_state
from hivellm_ort.server.strict_route import StrictJSONRoute

__all__ = ["router"]

router = APIRouter(tags=["models"], route_class=StrictJSONRoute)
_LONGEST_PATH = 4096  # characters; the limit of most systems
_RESPONSES = {**ERRORS, 200: {"description": "Done.", "content": {"text/plain": {}}}}


@router.post("/v1/load_lora_adapter", responses=_RESPONSES, response_model=None, response_class=Response)
async def load_adapter(body: LoadBody, request: Request) -> Response:
    """Load an expert. Running requests are not affected."""
    state = server_state(request)
    path = _inside(_folder(state), body.lora_path)
    if body.lora_name in (AUTO, state.manager.BASE) or not body.lora_name.isprintable():
        raise field_error(
            "lora_name", f"{body.lora_name!r} cannot be the name of an expert: choose another name"
        )
    replace = bool(body.load_inplace)
    load = partial(state.manager.load_expert, body.lora_name, path, replace=replace)
    async with state.loading:
        names = {info.name for info in state.manager.list_loaded_experts()}
        if body.lora_name in names and not replace:
            raise field_error(
                "lora_name", f"{body.lora_name!r} is loaded: unload it first, or set load_inplace"
            )
        try:
            await asyncio.to_thread(load)
        except LoadError as error:
            raise ApiError(
                400, state.remove_paths(str(error)), param="lora_path", code="invalid_package"
            ) from error
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post("/v1/unload_lora_adapter", responses=_RESPONSES, response_model=None, response_class=Response)
async def unload_adapter(body: UnloadBody, request: Request) -> Response:
    """Unload an expert. Its running answers are finished."""
    state = server_state(request)
    _folder(state)
    async with state.loading:
        try:
            await asyncio.to_thread(state.manager.unload_expert, body.lora_name)
        except LoadError as error:
            raise field_error("lora_name", state.remove_paths(str(error))) from error
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def _folder(state: ServerState) -> Path:
    folder = state.options.loading_folder
    if folder is None:
        raise ApiError(
            403,
            "loading and unloading are off: the operator allows them with 'hivellm-ort serve --allow-loading FOLDER'",
            code="loading_is_off",
        )
    return folder.resolve()


def _inside(folder: Path, given: str) -> Path:
    """Return a path in the folder, with all links resolved.

    Raises:
        ApiError: The path is outside the folder, or does not exist. Outside, the error is always the same.
    """
    try:
        path = (folder / given[:_LONGEST_PATH]).resolve()  # it looks up every part
        inside = len(given) < _LONGEST_PATH and path.is_relative_to(folder) and path != folder
        found = inside and path.exists()
    except (OSError, ValueError):  # too long, a link to itself, a zero byte
        inside = found = False
    if not inside:
        raise ApiError(
            403,
            "lora_path: it is outside the folder that the operator allows for loading",
            param="lora_path",
            code="path_not_allowed",
        )
    if not found:
        raise ApiError(
            404, "lora_path: this package does not exist", param="lora_path", code="package_not_found"
        )
    return path
