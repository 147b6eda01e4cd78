"""The bodies of `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, in vLLM's form."""

from __future__ import annotations

from pydantic import Field

from hivellm_ort.server.schemas.common import Body

__all__ = ["LoadBody", "UnloadBody"]


class LoadBody(Body):
    """The body of `/v1/load_lora_adapter`."""

    lora_name: str = Field(min_length=1, max_length=128, description="The model name in requests.")
    lora_path: str = Field(min_length=1, description="A package in the folder that the operator allows.")
    load_inplace: bool | None = Field(None, description="Whether to replace a loaded expert of this name.")


class UnloadBody(Body):
    """The body of `/v1/unload_lora_adapter`."""

    lora_name: str = Field(min_length=1, max_length=128)
