"""Agents that read headers before, or without, the agent that sets them: one warning for each, in the log."""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from msgspec import Struct

from ..config import AgentConfig
from ..evaluation.read_headers import UnsetHeader, headers_set, unset_headers
from ..evaluation.resolved_route import ResolvedRoute
from ..evaluation.route_agent import AgentReference
from ..observability.correlation import current
from ..registry import AgentRegistry

logger: Final = logging.getLogger("asgi_agents")

# What the agents of middlewares around the app set, while it starts or is looked through.
_around: Final[ContextVar[frozenset[str]]] = ContextVar("asgi_agents_set_around", default=frozenset())


class AskedTogether(Struct, frozen=True):
    """The agents of a route, or of what no route matches; ``where`` says which, for a sentence; None: of everything."""

    where: str | None
    agents: tuple[AgentReference, ...] | None


@contextmanager
def setting_around(headers: Collection[str]) -> Iterator[None]:
    """What goes on within is behind agents that set these headers."""
    token = _around.set(_around.get().union(headers))
    try:
        yield
    finally:
        _around.reset(token)


def set_around() -> frozenset[str]:
    """The headers that agents around the running code set: those of its connection, or of the start of an app."""
    resolved_route = getattr(current(), "resolved_route", None)
    if not isinstance(resolved_route, ResolvedRoute):
        return _around.get()
    return _around.get() | headers_set([agent.guard.config for agent in resolved_route.agents])


def check_headers(registry: AgentRegistry, listings: Iterable[AskedTogether], around: Collection[str]) -> None:
    """Warn in the log of agents that read headers which no agent before them has set, each once.

    Likewise of an ``after`` that has no effect, because no route has both agents.

    :param around: the headers that agents of middlewares around this one set.
    """
    configs = {guard.config.id: guard.config for guard in registry.guards()}
    places: dict[UnsetHeader, list[str | None]] = {}
    companions: dict[str, set[str]] = {}
    for listing in listings:
        ids = configs if listing.agents is None else _ids(listing.agents)
        asked = [configs[agent_id] for agent_id in ids if agent_id in configs]
        for unset in unset_headers(asked, around):
            places.setdefault(unset, []).append(listing.where)
        for config in asked:
            companions.setdefault(config.id, set()).update(ids)
    for unset, where in places.items():
        logger.warning("%s", _unset(unset, where, configs))
    for agent_id, together in companions.items():
        for name in configs[agent_id].after:
            if name in configs and name not in together:
                logger.warning(
                    "AgentConfig(%r): after has no effect for %r, because no route has both agents; add %r to the"
                    " routes of %r, or leave it out",
                    agent_id,
                    name,
                    name,
                    agent_id,
                )


def _unset(unset: UnsetHeader, where: Sequence[str | None], configs: Mapping[str, AgentConfig]) -> str:
    place = "" if where[0] is None else f" on {where[0]}" + (f" (and {len(where) - 1} more)" if where[1:] else "")
    agent_id, header = unset.agent_id, unset.header
    if unset.setters:
        names = ", ".join(map(repr, unset.setters))
        several = len(unset.setters) > 1
        return (
            f"agent {agent_id!r} reads {header!r}{place} before {names} {'have' if several else 'has'} set it, and so"
            f" without it; write AgentConfig({agent_id!r}, ..., after=[{names}])"
        )
    setters = [config.id for config in configs.values() if config.id != agent_id and header in headers_set((config,))]
    what = f"agent {agent_id!r} trusts {header!r}, which no agent before it{place} sets, so that clients choose it"
    if setters:
        named = setters[0] in configs[agent_id].after
        rest = "" if named else f", and name that in after of AgentConfig({agent_id!r})"
        return f"{what}; add {setters[0]!r} there, which sets it{rest}"
    return f"{what}; name it in sets of the agent that sets it, and that agent in after of AgentConfig({agent_id!r})"


def _ids(references: Iterable[AgentReference]) -> list[str]:
    return [reference if isinstance(reference, str) else reference[0] for reference in references]
