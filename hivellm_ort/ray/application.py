"""Builds the application of Ray Serve: a gateway and the replicas of the experts."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from hivellm_ort.ray.arguments import ClusterArguments
from hivellm_ort.ray.gateway import gateway_app
from hivellm_ort.ray.replica import ExpertReplica
from hivellm_ort.server.options import ServerOptions, read_keys
from hivellm_ort.serving.batch import DEFAULT_BATCH_SIZE

__all__ = ["build_app"]

_ROUTER = "hivellm_ort.ray.router.ExpertRouter"
_DRAIN_SECONDS = 30.0


@serve.ingress()
class Gateway:
    """The deployment that clients connect to.

    Args:
        experts: The handle of the deployment `experts`.
        arguments: The `ClusterArguments`, as JSON types.
    """

    def __init__(self, experts: DeploymentHandle[Any], arguments: dict[str, Any]) -> None:
        self._experts = experts
        self._arguments = ClusterArguments.model_validate(arguments)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the ASGI application. Ray calls it in the process of the gateway; see `serve.ingress`."""
        arguments = self._arguments
        options = ServerOptions(
            keys=read_keys(arguments.api_key_file),
            allowed_hosts=arguments.allowed_hosts,
            allowed_origins=arguments.allowed_origins,
            limits=arguments.limits,
        )
        return gateway_app(self._experts, options, arguments.queue_timeout)


def build_app(arguments: ClusterArguments | dict[str, Any]) -> Application:
    """Return a Ray Serve application that answers as `hivellm_ort.server.create_app` does, on any number of machines.

    It has two deployments. Clients connect to `gateway`. The replicas of `experts` generate the answers.
    The configuration of Ray Serve sets number, resources and autoscaling of both deployments. The `user_config` of
    `experts` sets the experts.

    Args:
        arguments: The options of replicas and gateways.

    Raises:
        pydantic.ValidationError: An argument is unknown, or has a wrong type or value.
    """
    checked = ClusterArguments.model_validate(arguments)
    plain = checked.model_dump(mode="json")
    experts = serve.deployment(
        ExpertReplica,
        name="experts",
        user_config={"experts": plain["experts"]},
        max_ongoing_requests=2 * DEFAULT_BATCH_SIZE,
        max_queued_requests=checked.limits.max_waiting,
        health_check_period_s=5,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=_DRAIN_SECONDS,
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
    )
    gateway = serve.deployment(
        Gateway,
        name="gateway",
        max_ongoing_requests=1000,
        graceful_shutdown_timeout_s=_DRAIN_SECONDS,
        ray_actor_options={"num_cpus": 0},  # it must fit beside replicas that reserve all cores
    )
    return gateway.bind(experts.bind(plain), plain)
