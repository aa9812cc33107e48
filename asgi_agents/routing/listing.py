"""Every endpoint of an app with the agents that guard it, for those who want to see them all."""

from typing import Literal

from msgspec import Struct
from starlette.routing import Router as AppRouter
from starlette.types import Scope

from ..evaluation.route_agent import AgentReference
from .endpoints import AppEndpoint, EndpointKind
from .resolver import Resolver
from .routes import AgentRoute, Router

DecidedBy = Literal["endpoint", "route", "default"]


class PartOfPaths(Struct, frozen=True):
    """A route that holds for some of an endpoint's paths: ``/items/new`` for the endpoint ``/items/{id}``.

    ``methods`` are those that it is for; None: all.
    """

    path: str
    methods: frozenset[str] | None
    agents: tuple[AgentReference, ...]


class GuardedEndpoint(Struct, frozen=True):
    """An endpoint or a websocket route of an app, and who guards it.

    :ivar kind: ``app`` for what is mounted and has no routes that can be read.
    :ivar path: its pattern, with the prefixes of routers and mounts around it.
    :ivar methods: None means all. Empty for websockets. One whose methods have different agents is here once for each
        of these.
    :ivar host: the pattern of the Host that it is in, or None.
    :ivar name: of the function or class.
    :ivar decided_by: ``endpoint`` for its own policy or that of a router around it, ``route`` for a route of the
        middleware, ``default`` for the default agents.
    :ivar route: the pattern of the route that has decided, or None.
    :ivar agents: in their order, with the failure modes that the policy or route gives. None: all there are.
    :ivar sometimes: the routes that hold in place of that for some of its paths, in their order.
    :ivar within: the routers of the apps that it is in, outermost first, each with the pattern that it has there.
    """

    kind: EndpointKind
    path: str
    methods: frozenset[str] | None
    host: str | None
    name: str
    decided_by: DecidedBy
    route: str | None
    agents: tuple[AgentReference, ...] | None
    sometimes: tuple[PartOfPaths, ...]
    within: tuple[tuple[AppRouter, str], ...]

    @property
    def guarded(self) -> bool:
        """Whether there are agents on all of its paths."""
        return self.agents != () and all(part.agents for part in self.sometimes)


def guarded_endpoints(router: Router, resolver: Resolver, scope: Scope) -> tuple[GuardedEndpoint, ...]:
    """Every endpoint of the app that ``resolver`` is for, in the order in which the app looks for them.

    It asks no agent, and changes nothing. An endpoint that the app never runs, since an earlier one takes all of its
    paths, is here as well. Empty where the app's router can't be found.

    :param router: our routes.
    :param scope: a connection, or a lifespan, in which the app is found if nothing leads to it.
    """
    found: list[GuardedEndpoint] = []
    for endpoint in resolver.app_endpoints(scope):
        if endpoint.mark is not None:
            found.append(_row(endpoint, endpoint.methods, "endpoint", None, endpoint.mark.policy.agents, ()))
            continue
        by_holder: dict[tuple[AgentRoute | None, tuple[AgentRoute, ...]], set[str]] = {}
        # A handshake is a GET request.
        methods = {"GET"} if endpoint.kind == "websocket" else endpoint.methods
        for method in sorted(methods) if methods else [None]:
            by_holder.setdefault(resolver.holder(endpoint, method, scope), set()).update(
                () if method is None else [method]
            )
        for (route, sometimes), held in by_holder.items():
            agents, pattern = router.agents_of(route)
            own = endpoint.methods if endpoint.kind == "websocket" or not held else frozenset(held)
            found.append(_row(endpoint, own, "default" if route is None else "route", pattern, agents, sometimes))
    return tuple(found)


def _row(
    endpoint: AppEndpoint,
    methods: frozenset[str] | None,
    decided_by: DecidedBy,
    pattern: str | None,
    agents: tuple[AgentReference, ...] | None,
    sometimes: tuple[AgentRoute, ...],
) -> GuardedEndpoint:
    return GuardedEndpoint(
        endpoint.kind,
        endpoint.path,
        methods,
        endpoint.host,
        endpoint.name,
        decided_by,
        pattern,
        agents,
        tuple(PartOfPaths(route.path, route.methods, route.agents) for route in sometimes),
        endpoint.within,
    )
