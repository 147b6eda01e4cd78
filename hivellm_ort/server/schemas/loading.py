"""The bodies of `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, in vLLM's form."""

from __future__ import annotations

from pydantic import Field

from hivellm_ort.server.schemas.common import Body

__all__ = ["LoadBody", "UnloadBody"]


class LoadBody(Body):
    """An expert that is to be loaded."""

    lora_name: str = Field(min_length=1, max_length=128, description="The name to ask it by.")
    lora_path: str = Field(min_length=1, description="A package in the folder that the operator named.")
    load_inplace: bool | None = Field(None, description="Whether it may take the place of another.")


class UnloadBody(Body):
    """An expert that is to be unloaded."""

    lora_name: str = Field(min_length=1, max_length=128)
