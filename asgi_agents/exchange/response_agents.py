"""Which agents receive the body of a response, going by its head."""

from collections.abc import Container, Sequence

from ..evaluation.route_agent import RouteAgent
from .headers import media_type
from .scope import RawHeaders


def agents_for_types(
    agents: Sequence[RouteAgent], media_types: Sequence[str | None], skipping: Container[str] = ()
) -> Sequence[RouteAgent]:
    """Those of the ``agents`` that receive a body of one of these types, without those that are ``skipping`` it.

    :param media_types: in lower case; None for a type that is not known.
    :param skipping: the ids of agents that want to be shown nothing of it.
    """
    return [
        agent
        for agent in agents
        if agent.guard.config.id not in skipping
        and any(agent.guard.config.hears_response_type(media_type) for media_type in media_types)
    ]


def agents_shown_parts(
    agents: Sequence[RouteAgent],
    body_agents: Sequence[RouteAgent],
    status: int,
    headers: RawHeaders,
    skipping: Container[str],
) -> Sequence[RouteAgent]:
    """The agents that would be shown only parts of a body, because the response is none of a whole one.

    RFC 9110, section 14.

    :param agents: those that receive a body of the response's type.
    :param body_agents: all that receive bodies of responses. The types of several parts are said in the parts alone.
    """
    if media_type(headers) == "multipart/byteranges":
        return agents_for_types(body_agents, [None], skipping)
    return agents if status == 206 else ()


def enforced(agents: Sequence[RouteAgent]) -> Sequence[RouteAgent]:
    """Those whose answers are applied."""
    return [agent for agent in agents if agent.guard.config.enforce]


def needing_whole_bodies(agents: Sequence[RouteAgent]) -> Sequence[str]:
    """The ids of those whose answers are applied, and who must not be shown only a part of a body."""
    return [agent.guard.config.id for agent in enforced(agents) if not agent.guard.config.ranges]
