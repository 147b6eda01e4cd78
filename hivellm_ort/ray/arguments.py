"""The `args` of the configuration, and the `user_config` of the experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from hivellm_ort import ExpertManager
from hivellm_ort.errors import OptionError, OptionTypeError
from hivellm_ort.integrity import Policy
from hivellm_ort.server.options import AUTO, ServerLimits

__all__ = ["ClusterArguments", "ExpertsConfig"]


def _check_name(name: str) -> str:
    if name in (AUTO, ExpertManager.BASE) or not name.isprintable() or not name:
        raise OptionError(f"{name!r} cannot be the name of an expert: choose another name")
    return name


_Name = Annotated[str, AfterValidator(_check_name)]


class ExpertsConfig(BaseModel):
    """The `user_config` of the experts. Ray sends changes to the running replicas.

    Attributes:
        experts: Packages by name. Every machine needs them at the same path.
    """

    model_config = ConfigDict(extra="forbid")

    experts: dict[_Name, Path] = Field(default_factory=dict)


class ClusterArguments(BaseModel):
    """The options of replicas and gateways. Ray restarts all replicas when one of them changes.

    Attributes:
        experts: Packages by name, for the first `user_config` of the experts. Change them there: Ray then restarts
            no replica.
        base: As in `Expert.load`.
        device: As in `Expert.load`.
        threads: As in `Expert.load`. Default: the replica's `num_cpus`, rounded down, at least 1.
        trust: As in `Expert.load`.
        cache_dir: As in `Expert.load`.
        max_loaded_experts: Most experts in the memory of a replica.
        memory_budget: Most bytes of bases, adapters and caches of a replica.
        prefix_cache_bytes: As in `Expert.load`.
        limits: Limits of requests, by the names of `ServerLimits`.
        api_key_file: A file with API keys, one per line. Default: the environment variable `HIVELLM_API_KEYS`,
            separated by commas.
        allowed_hosts: Accepted names in the header `Host`. Default: any.
        allowed_origins: Web sites whose pages may send requests from a browser (CORS).
        queue_timeout: Seconds that a request waits for a replica. Then it gets status 503.
    """

    model_config = ConfigDict(extra="forbid")

    experts: dict[_Name, Path] = Field(default_factory=dict)
    base: Path | None = None
    device: str | None = None
    threads: int | None = Field(default=None, ge=1)
    trust: Policy = "warn"
    cache_dir: Path | None = None
    max_loaded_experts: int | None = Field(default=None, ge=1)
    memory_budget: int | None = Field(default=None, ge=1)
    prefix_cache_bytes: int | None = Field(default=None, ge=0)
    limits: ServerLimits = ServerLimits()
    api_key_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ("*",)
    allowed_origins: tuple[str, ...] = ()
    queue_timeout: float = Field(default=30.0, gt=0)

    @field_validator("limits", mode="before")
    @classmethod
    def _known_limits(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            return given
        known = [limit.name for limit in fields(ServerLimits)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise OptionError(f"the limit {unknown[0]!r} does not exist: choose from {', '.join(known)}")
        try:
            return ServerLimits(**given)
        except OptionTypeError as error:
            raise OptionError(str(error)) from error
