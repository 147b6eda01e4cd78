"""What an operator sets in the `args` of the configuration, and in the `user_config` of the experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from hivellm_ort import ExpertManager
from hivellm_ort.errors import OptionError, OptionTypeError
from hivellm_ort.integrity import Policy
from hivellm_ort.server.models import AUTO
from hivellm_ort.server.options import ServerLimits

__all__ = ["ClusterArguments", "ExpertsConfig"]


def _free(name: str) -> str:
    if name in (AUTO, ExpertManager.BASE) or not name.isprintable() or not name:
        raise OptionError(f"{name!r} cannot be the name of an expert: take another")
    return name


_Name = Annotated[str, AfterValidator(_free)]


class ExpertsConfig(BaseModel):
    """Which experts there are. Ray hands a changed one to the replicas that run.

    Attributes:
        experts: packages by name. Every machine needs them at the same path.
    """

    model_config = ConfigDict(extra="forbid")

    experts: dict[_Name, Path] = Field(default_factory=dict)


class ClusterArguments(BaseModel):
    """How every replica behaves. Ray starts all replicas anew where one of these changes.

    Attributes:
        experts: packages by name, as the first `user_config` of the experts. Change them there: Ray starts no replica
            anew then.
        base: as in `Expert.load`.
        device: as in `Expert.load`.
        threads: as in `Expert.load`; by default the replica's `num_cpus`, rounded down, at least 1.
        trust: as in `Expert.load`.
        cache_dir: as in `Expert.load`.
        max_loaded_experts: most experts in the memory of a replica.
        memory_budget: most bytes of bases, adapters and caches of a replica.
        prefix_cache_bytes: as in `Expert.load`.
        limits: how much requests may ask, by the names of `ServerLimits`.
        api_key_file: file of the keys that clients must have, one a line. By default they are in the variable
            `HIVELLM_API_KEYS`, separated by commas.
        allowed_hosts: names by which clients reach the cluster; by default any.
        allowed_origins: web pages that may ask from a browser (CORS).
        queue_timeout: seconds that a request waits for a replica that takes it; then it gets status 503.
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
            raise OptionError(f"there is no limit {unknown[0]!r}: {', '.join(known)}")
        try:
            return ServerLimits(**given)
        except OptionTypeError as error:
            raise OptionError(str(error)) from error
