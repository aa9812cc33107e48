"""From an agent to a deployment of Ray Serve."""

from collections.abc import Callable
from typing import Any, Final

from ..agent import Agent
from ..errors import ConfigurationError
from ..messages.naming import named
from ..transports.ray_serve import require_ray
from .batching import Batching, require_batches

#: What Serve's gRPC proxy passes on to deployments of agents: one of ``grpc_servicer_functions`` of its gRPC options.
SERVICER_FUNCTION: Final = "asgi_agents.ray.services.add_services_to_server"

_WHERE: Final = "agent_deployment"
# Ray's own name for it: events of a request belong together, and this keeps them at one replica.
_ROUTER: Final = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"


def agent_deployment(
    agent: Callable[[], Agent],
    *,
    name: str | None = None,
    config: Any = None,
    num_replicas: int | str | None = None,
    max_ongoing_requests: int = 100,
    batching: Batching | None = None,
    envoy: bool = False,
    **options: Any,
) -> Any:
    """An application for ``serve.run`` whose replicas each have an agent, to be reached with ``ray://application/name``.

    ::

        serve.run(agent_deployment(Waf, num_replicas=2), name="guards", route_prefix=None)
        AgentConfig("waf", "ray://guards/Waf")

    With a ``route_prefix`` it can also be reached from outside of the cluster, through Serve's proxies. Over HTTP its
    URL is what :class:`~asgi_agents.HttpTransport` takes. Over gRPC ``GrpcTransport(…, protocol="ray")`` asks it, where
    Serve was started with :data:`SERVICER_FUNCTION` among its ``grpc_servicer_functions``. Nobody can configure it that
    way: give the configuration here.

    Events of one request go to one replica, so that an agent may keep state between them. When the replica is lost, the
    rest goes to another. An update (``serve.run`` anew) starts new replicas before it drains the old ones. A replica
    whose agent has an ``async def check_health(self)`` that raises an exception is replaced.

    :param agent: what makes the agent when called without arguments: its class, a function, a ``functools.partial``.
    :param name: the deployment's; None: that of the class or function.
    :param config: what each replica's agent is configured with; None: what ``AgentConfig.config`` says.
    :param num_replicas: how many; ``"auto"``, or an ``autoscaling_config`` among the options: as many as are needed.
    :param max_ongoing_requests: how many calls a replica does at a time.
    :param batching: collect inspections: see :class:`Batching`.
    :param envoy: it is an external authorizer and an external processor for Envoy as well, through Serve's gRPC proxy.
        Its replicas need the ``grpc`` extra.
    :param options: any other of ``serve.deployment``: ``autoscaling_config``, ``ray_actor_options``,
        ``health_check_period_s``, …
    :raises ConfigurationError: for arguments that can't work, or without the ``ray`` extra.
    """
    require_ray(_WHERE)
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    from .replica import AgentReplica

    if isinstance(agent, Agent) or not callable(agent):
        right = f"expected what makes one: {type(agent).__name__}" if isinstance(agent, Agent) else "expected a class"
        raise ConfigurationError(f"{_WHERE}: agent={named(agent)}, {right}")
    if batching is not None and not isinstance(batching, Batching):
        raise ConfigurationError(f"{_WHERE}: batching={named(batching)}, expected a Batching")
    if batching is not None and isinstance(agent, type):
        require_batches(_WHERE, agent)
    if type(max_ongoing_requests) is not int or max_ongoing_requests < 1:
        raise ConfigurationError(
            f"{_WHERE}: max_ongoing_requests={max_ongoing_requests!r}, expected a whole number of at least 1"
        )
    if type(envoy) is not bool:
        raise ConfigurationError(f"{_WHERE}: envoy={named(envoy)}, expected True or False")
    called = name or getattr(agent, "__name__", None) or getattr(getattr(agent, "func", None), "__name__", None)
    if not isinstance(called, str) or not called or "/" in called:
        raise ConfigurationError(f"{_WHERE}: name={name!r}, expected a name without '/'")
    settings: dict[str, Any] = {"request_router_config": RequestRouterConfig(request_router_class=_ROUTER), **options}
    if num_replicas is not None:
        settings["num_replicas"] = num_replicas
    if config is not None:
        settings["user_config"] = {"config": config}
    try:
        deployment = serve.deployment(AgentReplica).options(
            name=called, max_ongoing_requests=max_ongoing_requests, **settings
        )
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(f"{_WHERE}: {exc}") from exc
    return deployment.bind(agent, batching, max_ongoing_requests, envoy)
