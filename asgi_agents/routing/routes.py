"""Routes, which say which agents are asked about which paths."""

import math
import re
from collections.abc import Iterable, Sequence

from starlette.routing import compile_path
from starlette.types import Scope

from ..config import AgentConfig
from ..errors import ConfigurationError
from ..evaluation.resolved_route import RouteListing
from ..evaluation.route_agent import AgentReference
from ..guardrails import Guardrail, ToolPolicy
from ..guardrails.guardrail import checked_guardrails
from ..messages.naming import named
from ..policy import as_failure_mode
from ..protocol import TOKEN
from .patterns import foreign_syntax


class AgentRoute:
    """The agents of all connections whose path matches ``path``.

    :param path: a pattern in Starlette's syntax (``/items/{id:int}``, ``/api/{rest:path}``), matched against the whole
        path below the app's ``root_path``, prefixes of mounts included. It matches what an app's route with that
        pattern matches, no more and no less. What other frameworks write is refused: ``/api/*``, ``{id:[0-9]+}``,
        ``<id>``.
    :param agents: ids, or pairs of id and the failure mode that holds on this route. In a chain
        they are asked in this order, and of several denials the first one counts. Empty: no agents.
    :param methods: None means all. ``GET`` includes ``HEAD``, and websocket handshakes, which are GET requests.
    :param guardrails: those that judge the text of these requests and answers, in place of those of the middleware.
        None: those of the middleware.
    """

    __slots__ = ("across_lines", "agents", "guardrails", "methods", "path", "prefix", "regex")

    def __init__(
        self,
        path: str,
        agents: Iterable[AgentReference],
        *,
        methods: Iterable[str] | None = None,
        guardrails: Iterable[Guardrail | ToolPolicy] | None = None,
    ) -> None:
        if not isinstance(path, str) or not path.startswith("/"):
            right = f": {'/' + path!r}" if isinstance(path, str) and "://" not in path else ""
            also = ", which matches every path" if path == "{rest:path}" else ""
            raise ConfigurationError(f"AgentRoute: path={path!r}, expected a pattern that starts with '/'{right}{also}")
        fault = foreign_syntax(path)
        if fault is not None:
            raise ConfigurationError(f"AgentRoute({path!r}): path: {fault}")
        try:
            regex, _, _ = compile_path(path)
        except (AssertionError, ValueError) as exc:
            raise ConfigurationError(f"AgentRoute({path!r}): path: {exc}") from exc
        self.path = path
        #: The app's own: whatever another one matched, it would take from a route that the app prefers.
        self.regex = regex
        #: The same, but ``{rest:path}`` does not stop at a line break. For the resolver alone.
        self.across_lines = re.compile(regex.pattern, regex.flags | re.DOTALL)
        #: What every path that matches begins with.
        self.prefix = path.partition("{")[0]
        self.agents = checked_references(f"AgentRoute({path!r}): agents", agents)
        self.guardrails: tuple[Guardrail | ToolPolicy, ...] | None = None
        if guardrails is not None:
            self.guardrails = checked_guardrails(f"AgentRoute({path!r}): guardrails", guardrails)
        self.methods: frozenset[str] | None = None
        if methods is not None:
            names = {_checked_method(path, method) for method in _listed(f"AgentRoute({path!r}): methods", methods)}
            if not names:
                raise ConfigurationError(
                    f"AgentRoute({path!r}): methods={methods!r}, expected at least one, or None for all"
                )
            self.methods = frozenset(names | {"HEAD"} if "GET" in names else names)

    def __repr__(self) -> str:
        return f"AgentRoute({self.path!r}, agents={list(self.agents)!r})"

    def matches(self, path: str, method: str) -> bool:
        """Whether the route is for that path, below ``root_path``, and method, in upper case.

        The path is matched as a Starlette ``Route`` with the same pattern matches it.
        """
        return self.takes(method) and self.regex.match(path) is not None

    def takes(self, method: str) -> bool:
        """Whether the route is for that method, in upper case."""
        return self.methods is None or method in self.methods


#: The former name, which Starlette's routes have too.
Route = AgentRoute


class Router:
    """Finds the routes that match a connection.

    A route can only match what begins as its pattern does, up to the first parameter. So those that may match are found
    with a look-up for each length that such a beginning has, however many routes there are, and the pattern is tried on
    them alone.
    """

    def __init__(
        self,
        routes: Sequence[AgentRoute] | None,
        default_agents: Iterable[AgentReference] | None,
        root_path: str = "",
        guardrails: tuple[Guardrail | ToolPolicy, ...] = (),
    ) -> None:
        self._guardrails = guardrails
        self._root_path = root_path
        if routes is not None and not isinstance(routes, Iterable):
            raise ConfigurationError(f"AgentMiddleware: routes={named(routes)}, expected a list of AgentRoute")
        self.routes = None if routes is None else tuple(routes)
        for route in self.routes or ():
            if not isinstance(route, AgentRoute):
                raise ConfigurationError(
                    f"AgentMiddleware: routes contains {named(route)}, expected AgentRoute(path, agents=[...])"
                )
        # With their numbers: the first of them wins, whatever its beginning.
        self._by_prefix: dict[str, list[tuple[int, AgentRoute]]] = {}
        for number, route in enumerate(self.routes or ()):
            self._by_prefix.setdefault(route.prefix, []).append((number, route))
        self._lengths = sorted({len(prefix) for prefix in self._by_prefix})
        #: Whether the method has a say as well as the path.
        self.goes_by_method = any(route.methods is not None for route in self.routes or ())
        if default_agents is None:
            self.default_agents: tuple[AgentReference, ...] | None = None if routes is None else ()
        else:
            self.default_agents = checked_references("AgentMiddleware: default_agents", default_agents)

    @property
    def references(self) -> set[AgentReference]:
        """Every agent that is named anywhere."""
        named = {reference for route in self.routes or () for reference in route.agents}
        return named | set(self.default_agents or ())

    @property
    def guardrails(self) -> Sequence[Guardrail]:
        """Every guardrail that there is anywhere, tool policies aside."""
        return _judging(self._all)

    @property
    def has_guardrails(self) -> bool:
        """Whether there are any, or tool policies, on any route."""
        return bool(self._all)

    @property
    def _all(self) -> Sequence[Guardrail | ToolPolicy]:
        of_routes = (one for route in self.routes or () for one in route.guardrails or ())
        return tuple(dict.fromkeys([*self._guardrails, *of_routes]))

    def guardrails_of(self, route: AgentRoute | None) -> tuple[Guardrail | ToolPolicy, ...]:
        """Those of a route; of no route, the middleware's."""
        return self._guardrails if route is None or route.guardrails is None else route.guardrails

    @property
    def listings(self) -> Sequence[RouteListing]:
        """The routes, and the default agents, for the status page."""
        listed = [
            RouteListing(
                route.path,
                None if route.methods is None else tuple(sorted(route.methods)),
                route.agents,
                _judging(self.guardrails_of(route)),
            )
            for route in self.routes or ()
        ]
        return (*listed, RouteListing(None, None, self.default_agents, _judging(self._guardrails)))

    def agents_of(self, route: AgentRoute | None) -> tuple[tuple[AgentReference, ...] | None, str | None]:
        """The agents of a route (None: all there are), and its pattern. No route: the default agents, and None."""
        return (self.default_agents, None) if route is None else (route.agents, route.path)

    def match(self, scope: Scope) -> AgentRoute | None:
        """The first route that matches a connection, or None where none does."""
        if not self.routes:
            return None
        path, method = self.target(scope)
        best, found = math.inf, None
        for length in self._lengths:
            for number, route in self._by_prefix.get(path[:length], ()):
                if number > best:
                    break
                if route.matches(path, method):
                    best, found = number, route
                    break
        return found

    def candidates(self, path: str, method: str) -> list[AgentRoute]:
        """Every route that matches what :meth:`target` has returned, in the order given."""
        found = [
            (number, route)
            for length in self._lengths
            if length <= len(path)  # else it would be the same beginning as before
            for number, route in self._by_prefix.get(path[:length], ())
            if route.matches(path, method)
        ]
        if len(found) > 1:
            found.sort(key=_number)
        return [route for _, route in found]

    def target(self, scope: Scope) -> tuple[str, str]:
        """The path that patterns are matched against, and the method in upper case. A handshake is a GET request."""
        path = path_below_root(scope["path"], self.root_of(scope))
        if not path.startswith("/"):
            # `*`, or a target of a form that a server has not made sense of: not a way around `/{rest:path}`.
            path = "/" + path
        return path, str(scope.get("method", "GET")).upper()

    def root_of(self, scope: Scope) -> str:
        """The ``root_path`` that the app's router will see."""
        return self._root_path or scope.get("root_path") or ""


def _number(numbered: tuple[int, AgentRoute]) -> int:
    return numbered[0]


def path_below_root(path: str, root: str) -> str:
    """The path that the app's router sees: without ``root``, where that is a prefix of whole segments.

    ASGI spec, HTTP connection scope.
    """
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :]
    return path


def _listed(field: str, given: object) -> Iterable[object]:
    if isinstance(given, str):
        raise ConfigurationError(f"{field}={given!r}, expected a list: [{given!r}]")
    if not isinstance(given, Iterable):
        raise ConfigurationError(f"{field}={named(given)}, expected a list")
    return given


def _judging(guardrails: Iterable[Guardrail | ToolPolicy]) -> tuple[Guardrail, ...]:
    """Those that are no tool policies: they have agents."""
    return tuple(one for one in guardrails if isinstance(one, Guardrail))


def checked_references(field: str, given: object) -> tuple[AgentReference, ...]:
    """``given`` as ids, and pairs of id and failure mode, each agent once.

    ``field`` begins the message of the :class:`ConfigurationError` where that is not what it is.
    """
    references = tuple(_checked_reference(field, reference) for reference in _listed(field, given))
    seen: set[str] = set()
    for reference in references:
        agent_id = reference if isinstance(reference, str) else reference[0]
        if agent_id in seen:
            raise ConfigurationError(f"{field} contains {agent_id!r} more than once, expected each agent once")
        seen.add(agent_id)
    return references


def _checked_reference(field: str, reference: object) -> AgentReference:
    match reference:
        case str():
            return reference
        case (str() as agent_id, failure_mode):
            return (agent_id, as_failure_mode(f"{field} contains ({agent_id!r}, {named(failure_mode)})", failure_mode))
        case AgentConfig():
            raise ConfigurationError(
                f"{field} contains AgentConfig({reference.id!r}, ...), expected its id: {reference.id!r}; the"
                " configuration itself belongs in the agents of protect, AgentMiddleware or AgentManager"
            )
        case _:
            raise ConfigurationError(
                f"{field} contains {named(reference)}, expected ids of agents, or pairs such as ('waf', 'open')"
            )


def _checked_method(path: str, method: object) -> str:
    if not isinstance(method, str) or not TOKEN.match(method):
        raise ConfigurationError(f"AgentRoute({path!r}): methods contains {method!r}, expected names such as 'GET'")
    return method.upper()
