"""Routes that work, but not as they were most likely meant: one warning for each, in the log, with what to write."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Final

from starlette.types import Scope

from ..agent import Agent
from ..evaluation.resolved_route import ResolvedRoute
from ..evaluation.route_agent import AgentReference
from ..guard import Guard
from ..guardrails import TextGuardrail
from ..protocol import EventType
from ..registry import AgentRegistry
from .patterns import below, colon_syntax, covers, may_meet, without_names
from .resolver import Endpoint, Resolver
from .routes import AgentRoute, Router

logger: Final = logging.getLogger("asgi_agents")

# The IANA registry of methods, and two that caches and browsers send.
# fmt: off
_METHODS: Final = frozenset(
    {
        "ACL", "BASELINE-CONTROL", "BIND", "CHECKIN", "CHECKOUT", "CONNECT", "COPY", "DELETE", "GET", "HEAD",
        "LABEL", "LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL", "MKREDIRECTREF", "MKWORKSPACE",
        "MOVE", "OPTIONS", "ORDERPATCH", "PATCH", "POST", "PRI", "PROPFIND", "PROPPATCH", "PUT", "QUERY",
        "REBIND", "REPORT", "SEARCH", "TRACE", "UNBIND", "UNCHECKOUT", "UNLINK", "UNLOCK", "UPDATE",
        "UPDATEREDIRECTREF", "VERSION-CONTROL", "PURGE", "SUBSCRIBE",
    }
)
# fmt: on
# Methods that middlewares and routers answer where no endpoint lists them.
_ANSWERED_ANYWHERE: Final = frozenset({"HEAD", "OPTIONS", "TRACE", "CONNECT"})
# What an agent may be made with, and can be compared without trouble.
_COMPARABLE: Final = frozenset({str, bytes, int, float, bool})
# Only the first so many routes are compared with all before them: the time grows with the square of their number.
_MOST_ROUTES: Final = 200
# A route that matches nothing is compared with each route of the app, to say which one was meant. Each comparison may
# keep the event loop for 100 µs: after so many there are no more.
_MOST_COMPARED: Final = 5_000


def check_routes(router: Router, resolver: Resolver, scope: Scope) -> None:
    """Warn in the log of each route of a middleware that is most likely a mistake.

    Warnings that depend on the app's routes are given only where all of these can be read.

    :param scope: the connection, or the lifespan, in which the app is found.
    """
    routes = router.routes or ()
    endpoints = resolver.endpoints(scope) or ()
    comparisons = _MOST_COMPARED
    for number, route in enumerate(routes):
        fault = _misspelt(route, endpoints)
        if fault is None and number < _MOST_ROUTES:
            fault = _shadowed(route, routes[:number], resolver, scope)
        if fault is None and endpoints and route.agents:
            meeting = [methods for spelling, methods in endpoints if may_meet(route.path, spelling)]
            if meeting:
                fault = _not_taken(route, meeting)
            elif comparisons > 0:
                comparisons -= len(endpoints)
                fault = _unmatched(route, router, endpoints, router.root_of(scope))
        if fault is not None:
            logger.warning("%s %s", _shown(route), fault)
    decided = {one.path for one in resolver.policies(scope)[0] if any(mark is not None for mark, _ in one.policies)}
    endpoints = [endpoint for endpoint in endpoints if endpoint[0] not in decided]
    for fault in dict.fromkeys(_unguarded(router, endpoints)):
        logger.warning("%s", fault)


def check_agents(registry: AgentRegistry, router: Router) -> None:
    """Warn in the log of agents that are never asked. Guardrail agents are left out: handlers ask them."""
    named = {*_ids(router.references), *_ids(one for listing in registry.listings for one in listing.agents or ())}
    missing = [
        guard.config.id
        for guard in registry.guards()
        if guard.config.id not in named and EventType.GUARDRAIL_INSPECT not in guard.hears
    ]
    if missing:
        ids = ", ".join(map(repr, missing))
        logger.warning(
            "agents are never asked, because no route and no default_agents names them: %s; name them in an AgentRoute,"
            " or write default_agents=[%s]",
            ids,
            ids,
        )


def check_text_guardrails(registry: AgentRegistry) -> None:
    """Warn in the log of agents that are made to judge text, and that no guardrail names."""
    named = {guardrail.agent_id for listing in registry.listings for guardrail in listing.guardrails}
    for guard in registry.guards():
        if guard.config.id not in named and isinstance(guard.client.agent, TextGuardrail):
            logger.warning(
                "AgentConfig(%r): no Guardrail names this TextGuardrail, so that it judges nothing but what handlers"
                " ask about; write guardrails=[Guardrail(%r, on={'output'})]",
                guard.config.id,
                guard.config.id,
            )


def agents_asked_twice(outer: ResolvedRoute, inner: ResolvedRoute) -> bool:
    """Warn in the log of agents that two middlewares ask about one connection. Returns whether there are any."""
    theirs = [agent.guard for agent in outer.agents]
    twice = [agent.guard.config.id for agent in inner.agents if any(_are_same(guard, agent.guard) for guard in theirs)]
    if twice:
        logger.warning(
            "agents are asked twice about the same connection, by two AgentMiddleware around one app: %s; guard an app"
            " once, with protect(app, ...) or with one AgentMiddleware (logged once)",
            ", ".join(map(repr, twice)),
        )
    return bool(twice)


def _are_same(one: Guard, other: Guard) -> bool:
    """Whether they lead to one agent, or to two that were most likely made by the same lines."""
    if one is other:
        return True
    client, other_client = one.client, other.client
    if one.config.id != other.config.id or client.kind != other_client.kind:
        return False
    agent, other_agent = client.agent, other_client.agent
    if agent is not None and other_agent is not None:
        return type(agent) is type(other_agent) and _settings(agent) == _settings(other_agent)
    return client.address == other_client.address


def _settings(agent: Agent) -> dict[str, object]:
    """What an agent was given when it was made, as far as that can be compared: ``Limit(10)`` is no ``Limit(5)``."""
    return {name: value for name, value in getattr(agent, "__dict__", {}).items() if type(value) in _COMPARABLE}


def _misspelt(route: AgentRoute, endpoints: Sequence[Endpoint]) -> str | None:
    """A method or a pattern that is written as it should not be, and is not the app's own."""
    for method in sorted(route.methods or ()):
        if method not in _METHODS and not any(method in (methods or ()) for _, methods in endpoints):
            near = get_close_matches(method, sorted(_METHODS), 1)
            if near:
                return f"is for the method {method!r}, which HTTP does not have; did you mean {near[0]!r}?"
    right = colon_syntax(route.path)
    if right is not None and all(spelling != route.path for spelling, _ in endpoints):
        return f"has a ':' that stands for itself, and matches nothing else; parameters are written {{name}}: {right!r}"
    return None


def _shadowed(route: AgentRoute, earlier: Iterable[AgentRoute], resolver: Resolver, scope: Scope) -> str | None:
    for other in earlier:
        if other.methods is not None and (route.methods is None or not route.methods <= other.methods):
            continue
        # One that is spelt like a route of the app is only for that, if another of ours is spelt like the handler's.
        if other.path == route.path or (covers(other.path, route.path) and not resolver.may_pass_over(other, scope)):
            if route.methods == other.methods and covers(route.path, other.path):
                return f"is never used, because {_shown(other)} before it matches the same paths; leave one of them out"
            return f"is never used, because {_shown(other)} before it matches all of its paths; put it before that"
    return None


def _unmatched(route: AgentRoute, router: Router, endpoints: Sequence[Endpoint], root: str) -> str | None:
    spellings = [spelling for spelling, _ in endpoints]
    hint = _taken_for_a_prefix(route, router, spellings) or _hint(route.path, spellings, root)
    # Else it may be meant so: an agent may answer where the app has nothing, as with a redirect or to a scanner.
    return None if hint is None else f"matches no route of the app{hint}"


def _taken_for_a_prefix(route: AgentRoute, router: Router, spellings: Sequence[str]) -> str | None:
    """Of a path without a route of the app, below which there are some that its agents are not asked about."""
    above = route.path + "/"
    if route.path.endswith("/") or set(_ids(route.agents)) <= set(_ids(router.default_agents or ())):
        return None
    for spelling in spellings:
        if spelling.startswith(above) and not any(covers(other.path, spelling) for other in router.routes or ()):
            return f", and not what is below it, such as {spelling!r}; for that write {above + '{rest:path}'!r}"
    return None


def _not_taken(route: AgentRoute, meeting: Sequence[frozenset[str] | None]) -> str | None:
    """Of a route for methods that no route of the app takes: ``meeting`` has the methods of those that it may meet."""
    asked = (route.methods or frozenset()) - _ANSWERED_ANYWHERE
    if not asked or any(methods is None or not asked.isdisjoint(methods) for methods in meeting):
        return None
    taken = sorted({method for methods in meeting for method in methods or ()})
    return f"matches routes of the app, but none that takes {_listed(asked)}; they take {_listed(taken)}"


def _hint(path: str, spellings: Sequence[str], root: str) -> str | None:
    """Which route of the app was most likely meant; None where there is none like it."""
    if root and path.startswith(root) and path[len(root) : len(root) + 1] == "/":
        rest = path[len(root) :]
        if any(may_meet(rest, spelling) for spelling in spellings):
            return f": paths are matched below the root path {root!r}, where the app is mounted; write {rest!r}"
    for spelling in spellings:
        for prefix, rest in _cut(spelling):
            if may_meet(path, rest):
                return f", which has {spelling!r}: paths are matched whole, mounts included; write {prefix + path!r}"
    for _, rest in _cut(path):
        if any(may_meet(rest, spelling) for spelling in spellings):
            return f": paths are matched below the place where the app is mounted; write {rest!r}"
    for spelling in spellings:
        if spelling.lower() == path.lower():
            return f"; did you mean {spelling!r}?"
    # A path below another one is no misspelling of it.
    alike = [spelling for spelling in spellings if _depth(spelling) == _depth(path)]
    near = get_close_matches(path, alike, 1, 0.8)
    return f"; did you mean {near[0]!r}?" if near else None


def _depth(path: str) -> int:
    """How many segments there are, whether or not a slash ends the path."""
    return path.rstrip("/").count("/")


def _cut(path: str) -> Iterator[tuple[str, str]]:
    """The path in two, before each segment that begins without a parameter, but for the first."""
    for index, char in enumerate(path):
        if index and char == "/" and path[index + 1 : index + 2] not in ("", "/", "{"):
            yield path[:index], path[index:]


def _unguarded(router: Router, endpoints: Sequence[Endpoint]) -> Iterator[str]:
    """Warnings of routes for all below a path, where the app has a route for that path and it is unguarded."""
    routes = router.routes or ()
    by_shape: dict[str, list[Endpoint]] = {}
    for endpoint in endpoints:
        by_shape.setdefault(without_names(endpoint[0]), []).append(endpoint)
    for route in routes:
        top = below(route.path)
        if top is None or not route.agents:
            continue
        for spelling, methods in by_shape.get(without_names(top), ()):
            if not _share(route.methods, methods):
                continue
            there = [other for other in routes if _share(other.methods, methods) and covers(other.path, spelling)]
            if any(without_names(other.path) == without_names(top) for other in there):
                # A route of its own says who is asked there, so it is meant.
                continue
            asked = _ids(there[0].agents if there else router.default_agents or ())
            missing = [agent_id for agent_id in _ids(route.agents) if agent_id not in asked]
            if missing:
                yield (
                    f"{_shown(route)} does not match {spelling!r}, a route of the app that {_listed(missing)}"
                    f" {'is' if len(missing) == 1 else 'are'} not asked about; add an"
                    f" AgentRoute({spelling!r}, agents=[...]) with those that are to be asked there"
                )


def _share(one: frozenset[str] | None, other: frozenset[str] | None) -> bool:
    return one is None or other is None or not one.isdisjoint(other)


def _ids(references: Iterable[AgentReference]) -> list[str]:
    return [reference if isinstance(reference, str) else reference[0] for reference in references]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names)))


def _shown(route: AgentRoute) -> str:
    methods = "" if route.methods is None else f", methods=[{_listed(route.methods)}]"
    return f"AgentRoute({route.path!r}{methods})"
