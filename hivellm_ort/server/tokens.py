"""`/tokenize` and `/detokenize`, in vLLM's form."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from hivellm_ort.options import GenerateOptions
from hivellm_ort.server.completions import encode_plain, is_token
from hivellm_ort.server.errors import ERRORS, field_error
from hivellm_ort.server.models import check_length, choose_expert, context_of
from hivellm_ort.server.schemas.tokens import DetokenizeBody, TokenizeBody
from hivellm_ort.server.state import server_state
from hivellm_ort.server.strict_route import StrictJSONRoute

__all__ = ["router"]

router = APIRouter(tags=["tokens"], route_class=StrictJSONRoute)


@router.post("/tokenize", responses=ERRORS)
async def tokenize(body: TokenizeBody, request: Request) -> dict[str, Any]:
    """Return the tokens of a text, or of a conversation with its chat template."""
    state = server_state(request)
    if (body.prompt is None) == (body.messages is None):
        raise field_error("prompt", "give either prompt or messages")
    for field in ("tools", "chat_template_kwargs"):
        if body.messages is None and getattr(body, field) is not None:
            raise field_error(field, "it needs messages: a prompt has no template")
    if body.messages is not None and body.add_special_tokens is not None:
        raise field_error(
            "add_special_tokens", "it needs prompt: the template adds the special tokens of messages"
        )
    check_length(state, "tools", body.tools)
    messages = [message.model_dump(exclude_none=True) for message in body.messages or ()]
    chosen = await choose_expert(state, body.model, body.prompt, messages or None)

    def encode() -> tuple[list[int], list[str | None] | None]:
        tokenizer = state.manager.tokenizer(chosen.name)
        if body.prompt is not None:
            token_ids = encode_plain(tokenizer, body.prompt, special=body.add_special_tokens is not False)
        else:
            options: GenerateOptions = {"messages": messages, "tools": body.tools}
            if body.chat_template_kwargs is not None:
                options["enable_thinking"] = body.chat_template_kwargs.enable_thinking
            token_ids = state.manager.prompt_ids(chosen.name, **options)
        names = [tokenizer.id_to_token(token_id) for token_id in token_ids]
        return token_ids, names if body.return_token_strs else None

    token_ids, names = await asyncio.to_thread(encode)
    return {
        "count": len(token_ids),
        "max_model_len": context_of(state, chosen.name),
        "tokens": token_ids,
        "token_strs": names,
    }


@router.post("/detokenize", responses=ERRORS)
async def detokenize(body: DetokenizeBody, request: Request) -> dict[str, Any]:
    """Return the text of tokens, with special tokens."""
    state = server_state(request)
    chosen = await choose_expert(state, body.model)

    def decode() -> str:
        tokenizer = state.manager.tokenizer(chosen.name)
        for index, token_id in enumerate(body.tokens):
            if not is_token(tokenizer, token_id):
                raise field_error(f"tokens[{index}]", f"the token {token_id} does not exist")
        return tokenizer.decode(body.tokens, skip_special_tokens=False)

    return {"prompt": await asyncio.to_thread(decode)}
