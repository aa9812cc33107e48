"""Finders of routes, with agents that do nothing."""

from collections.abc import Sequence
from typing import Any

from asgi_agents import Agent, AgentConfig, AgentManager, AgentRoute, RequestHeadersEvent
from asgi_agents.evaluation.resolved_route import ResolvedRoute
from asgi_agents.manager import registry_of
from asgi_agents.routing.finder import RouteFinder


class Listening(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> None: ...


def finder_of(app: object, routes: Sequence[AgentRoute], default: Sequence[str] | None = None) -> RouteFinder:
    """Finds the agents of connections of ``app``; there are those that ``routes`` and ``default`` name."""
    ids: dict[Any, None] = dict.fromkeys([agent for route in routes for agent in route.agents])
    manager = AgentManager([AgentConfig(agent_id, Listening()) for agent_id in ids | dict.fromkeys(default or ())])
    return RouteFinder(app, registry_of(manager), routes, default, owns_agents=False)


def ids_of(resolved_route: ResolvedRoute) -> list[str]:
    """The agents that are asked."""
    return [agent.guard.config.id for agent in resolved_route.agents]
