"""The agents of a manager, for the package's own code: their guards, the routes that they are on, how they change.

Users have an :class:`~asgi_agents.AgentManager`, which shows what is documented. The middleware, the status page and
the metrics find the registry behind it with :func:`~asgi_agents.manager.registry_of`.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import RLock
from typing import Final

import anyio

from .advice import warn_of
from .concurrency.shared_limiter import SharedLimiter
from .config import AgentConfig
from .errors import AgentError, ConfigurationError, UnknownAgentError
from .evaluation.endpoint_policy import EndpointPolicy
from .evaluation.resolved_route import ResolvedRoute, RouteListing
from .evaluation.route_agent import AgentReference, RouteAgent
from .evaluation.stages import find_cycle
from .evaluation.text_judges import RouteJudges, check_guardrail, judge_of
from .guard import Guard
from .guardrails import Guardrail, ToolPolicy
from .lifecycle import Lifecycle, try_to_configure
from .messages.naming import named
from .observability.instruments import Metered
from .observability.metrics import Tally
from .observability.reports import Reports
from .observability.telemetry import Telemetry
from .policy import as_failure_mode
from .protocol.stream import MetricsReport
from .retirement import Retirements
from .transports.base import ConfigUpdateCallback, MetricsCallback

logger: Final = logging.getLogger("asgi_agents")

# What a route is resolved from.
_Guardrails = tuple[Guardrail | ToolPolicy, ...]
_Resolved = tuple[
    tuple[AgentReference, ...] | None, str | None, bool, _Guardrails, _Guardrails, EndpointPolicy | None, str | None
]


class AgentRegistry:
    """All agents of a manager, each behind its guard, and the routes that were resolved with them.

    It may be used from several event loops, each in a thread of its own. Raises :class:`ConfigurationError` where two
    ``agents`` have the same id, or one comes ``after`` an agent that there is not, or after itself.
    """

    def __init__(
        self,
        agents: Iterable[AgentConfig],
        *,
        on_metrics_report: MetricsCallback | None,
        on_config_update: ConfigUpdateCallback | None,
        telemetry: Telemetry,
        clock: Callable[[], float],
        debug: bool,
    ) -> None:
        self._on_metrics_report = on_metrics_report
        self._on_config_update = on_config_update
        self._clock = clock
        self._debug = debug
        self.telemetry = telemetry
        #: What agents behind the stream transport have reported of themselves.
        self.reports = Reports()
        #: Which agents receive the events of which paths, as the middlewares that share the manager have it.
        self.listings: list[RouteListing] = []
        #: Called with each guard that is made from now on, before anything is asked of its agent.
        self.on_guard: list[Callable[[Guard], object]] = []
        self._guards: dict[str, Guard] = {}
        # Held while agents are changed or resolved, on whichever event loop. Reentrant: a change of agents also retires
        # the routes that were resolved.
        self._lock = RLock()
        # By what they were resolved from. All paths with the same agents share one, and a change of agents finds all of
        # them here.
        self._resolved_routes: dict[_Resolved, ResolvedRoute] = {}
        # Those that were resolved before a change, while connections hold them.
        self._retired: list[ResolvedRoute] = []
        # Agents that were removed and are not closed yet.
        self._leaving: list[Guard] = []
        # By agent: held by the call that replaces it.
        self._replacing: dict[str, SharedLimiter] = {}
        self._retirements = Retirements()
        self.lifecycle = Lifecycle(self.guards, self._retirements)
        for config in agents:
            if config.id in self._guards:
                raise ConfigurationError(
                    f"AgentManager: two agents have the id {config.id!r}, expected each to be unique"
                )
            self._guards[config.id] = self._make_guard(config)
        for guard in self._guards.values():
            self._check_order(guard.config)
            telemetry.metering.add(guard)

    def guards(self) -> Sequence[Guard]:
        """The guards of all agents, in the order the agents were added."""
        return tuple(self._guards.values())

    @property
    def agent_ids(self) -> Sequence[str]:
        """The ids, in the order the agents were added."""
        return tuple(self._guards)

    def guard(self, agent_id: str) -> Guard:
        """The guard of one agent. Raises :class:`UnknownAgentError`."""
        try:
            return self._guards[agent_id]
        except KeyError:
            known = ", ".join(self._guards) or "none"
            raise UnknownAgentError(f"no agent has the id {agent_id!r}; there are: {known}") from None

    def find(self, agent_id: str) -> Guard | None:
        """The guard of one agent; None where there is no such agent any more."""
        return self._guards.get(agent_id)

    @property
    def metered(self) -> Sequence[Metered]:
        """The agents whose metrics are exported: all there are, and those that were removed and are not closed yet."""
        return (*self.guards(), *self._leaving)

    def list_routes(self, listings: Iterable[RouteListing]) -> None:
        """Have these routes shown, as on the status page."""
        self.listings += [listing for listing in listings if listing not in self.listings]

    # Routes

    def resolved_route(
        self,
        agents: Iterable[AgentReference] | None,
        *,
        route: str | None = None,
        missing_ok: bool = False,
        guardrails: tuple[Guardrail | ToolPolicy, ...] = (),
        handlers_too: tuple[Guardrail | ToolPolicy, ...] = (),
        policy: EndpointPolicy | None = None,
        refusal: str | None = None,
    ) -> ResolvedRoute:
        """Resolve ``agents`` and ``guardrails``, those of ``route``; ``missing_ok`` leaves out removed agents.

        ``handlers_too`` are guardrails that judge nothing there by themselves, and that handlers may ask. ``policy`` is
        the endpoint's own, from which ``agents`` are; ``refusal`` says why its handler may not run.

        The same arguments give the same object until agents change. Then it is ``retired``, and has to be looked up
        again.
        """
        if isinstance(agents, str):
            raise ConfigurationError(f"AgentManager: agents={agents!r}, expected a list: [{agents!r}]")
        references = None if agents is None else tuple(agents)
        key = (references, route, missing_ok, guardrails, handlers_too, policy, refusal)
        resolved_route = self._resolved_routes.get(key)
        if resolved_route is None:
            with self._lock:
                found = self._route_agents(references, route, missing_ok)
                judges = self._route_judges(guardrails, found, route, missing_ok)
                known = dict.fromkeys(one for one in (*guardrails, *handlers_too) if isinstance(one, Guardrail))
                resolved_route = self._resolved_routes[key] = ResolvedRoute(
                    found, route, judges, tuple(known), policy=policy, refusal=refusal
                )
        return resolved_route

    def _route_agents(
        self, references: tuple[AgentReference, ...] | None, route: str | None, missing_ok: bool
    ) -> Sequence[RouteAgent]:
        if references is None:
            return [RouteAgent(guard, guard.config.fails, route) for guard in self.guards()]
        agents: list[RouteAgent] = []
        for reference in references:
            agent_id, given = (reference, None) if isinstance(reference, str) else reference
            if missing_ok and agent_id not in self._guards:
                continue
            guard = self.guard(agent_id)
            mode = guard.config.fails
            if given is not None:
                mode = as_failure_mode(f"AgentManager: agents contains ({agent_id!r}, {named(given)})", given)
            agents.append(RouteAgent(guard, mode, route))
        return agents

    def _route_judges(
        self,
        guardrails: Sequence[Guardrail | ToolPolicy],
        agents: Sequence[RouteAgent],
        route: str | None,
        missing_ok: bool,
    ) -> RouteJudges | None:
        """The guardrails in the failure modes that the route gives their agents, or in those of the agents."""
        by_id = {agent.guard.config.id: agent for agent in agents}
        judges = []
        policies = []
        for guardrail in guardrails:
            if isinstance(guardrail, ToolPolicy):
                policies.append(guardrail)
                continue
            agent = by_id.get(guardrail.agent_id)
            if agent is None:
                if missing_ok and guardrail.agent_id not in self._guards:
                    continue
                guard = self.guard(guardrail.agent_id)
                agent = RouteAgent(guard, guard.config.fails, route)
            judges.append(judge_of(guardrail, agent))
        return RouteJudges(judges, policies) if judges or policies else None

    def _retire_resolved_routes(self) -> None:
        with self._lock:
            for resolved_route in self._resolved_routes.values():
                resolved_route.retired = True
            self._retired = [
                resolved_route
                for resolved_route in (*self._retired, *self._resolved_routes.values())
                if resolved_route.connections
            ]
            self._resolved_routes = {}

    # Change while serving

    async def add(self, config: AgentConfig) -> None:
        """Add an agent, last in the order, and ask it to take its configuration."""
        with self._lock:
            if config.id in self._guards:
                raise ConfigurationError(
                    f"AgentManager: an agent has the id {config.id!r} already; replace_agent replaces it"
                )
            self._check_order(config)
            guard = self._make_guard(config)
            self._check_guardrails(guard)
            self._guards[config.id] = guard
            self._retire_resolved_routes()
        self.telemetry.metering.add(guard)
        try:
            await try_to_configure(guard)
        finally:
            self.lifecycle.watch(guard)

    async def replace(self, config: AgentConfig, drain_timeout: float) -> None:
        """Configure a new agent, put it in the place of the one with the same id, and close that once it is drained."""
        self.guard(config.id)
        self._check_order(config)
        turn = self._replacing.setdefault(config.id, SharedLimiter(1))
        await turn.acquire()
        try:
            old, new = await self._swap(config)
        finally:
            turn.release()
        self.telemetry.metering.discard(old)
        self.telemetry.metering.add(new)
        self.reports.forget(config.id)
        new.predecessor = old
        await self._retire(old, drain_timeout, then=partial(setattr, new, "predecessor", None))

    async def remove(self, agent_id: str, drain_timeout: float) -> None:
        """Remove an agent, also from the routes that name it, and close it once it is drained."""
        with self._lock:
            old = self.guard(agent_id)
            del self._guards[agent_id]
            self._replacing.pop(agent_id, None)
            self._retire_resolved_routes()
            self._leaving.append(old)
        self.reports.forget(agent_id)
        if any(guardrail.agent_id == agent_id for listing in self.listings for guardrail in listing.guardrails):
            logger.warning(
                "agent %r is removed: from now on the text that its Guardrail is for passes without it", agent_id
            )

        def then() -> None:
            self._leaving.remove(old)
            self.telemetry.metering.discard(old)

        await self._retire(old, drain_timeout, then=then)

    async def _swap(self, config: AgentConfig) -> tuple[Guard, Guard]:
        """Configure a new agent and put it in the place of the old one; returns old and new."""
        new = self._make_guard(config, self.guard(config.id).tally)
        # The caller of replace_agent gets the error: no log line.
        new.configuring.logged = False
        try:
            self._check_guardrails(new)
            await new.configuring.configure()
            with self._lock:
                old = self.guard(config.id)
                # Agents may have been added or removed meanwhile.
                self._check_order(config)
                self._guards[config.id] = new
                self._retire_resolved_routes()
        except BaseException as exc:
            with anyio.CancelScope(shield=True):
                await new.client.retire()
            if isinstance(exc, AgentError):
                raise type(exc)(f"agent {config.id!r} was not replaced, the old one stays: {exc}") from exc
            raise
        new.configuring.logged = True
        return old, new

    async def _retire(self, guard: Guard, timeout: float, *, then: Callable[[], object]) -> None:
        def needed() -> bool:
            return guard.busy or any(
                resolved_route.connections and guard in resolved_route.guards for resolved_route in self._retired
            )

        await self._retirements.retire(guard, needed, timeout, then)

    def _make_guard(self, config: AgentConfig, tally: Tally | None = None) -> Guard:
        warn_of(config)
        guard = Guard(config, clock=self._clock, telemetry=self.telemetry, tally=tally, debug=self._debug)
        guard.on_change = self._retire_resolved_routes
        guard.client.on_metrics_report = self._metrics_reported
        guard.client.on_config_update = self._on_config_update
        for watch in tuple(self.on_guard):
            watch(guard)
        return guard

    def _check_order(self, config: AgentConfig) -> None:
        """Raise ConfigurationError where ``config`` comes after agents that there are not, or after itself."""
        unknown = [agent_id for agent_id in config.after if agent_id not in self._guards]
        if unknown:
            known = ", ".join(self._guards) or "none"
            where = f"AgentConfig({config.id!r})"
            raise ConfigurationError(f"{where}: after contains {unknown[0]!r}, which is no agent; there are: {known}")
        after = {agent_id: tuple(guard.config.after) for agent_id, guard in self._guards.items()}
        cycle = find_cycle({**after, config.id: tuple(config.after)})
        if cycle is not None:
            names = " -> ".join([*cycle, cycle[0]])
            raise ConfigurationError(f"AgentConfig({config.id!r}): after makes a cycle, expected none: {names}")

    def _check_guardrails(self, guard: Guard) -> None:
        """Raise ConfigurationError where a route's guardrail asks for what the agent can't do."""
        for listing in self.listings:
            for guardrail in listing.guardrails:
                if guardrail.agent_id == guard.config.id:
                    check_guardrail(guardrail, guard)

    def _metrics_reported(self, agent_id: str, endpoint: str, report: MetricsReport) -> None:
        if agent_id in self._guards:
            self.reports.add(agent_id, endpoint, report, time.monotonic())
        if self._on_metrics_report is not None:
            self._on_metrics_report(agent_id, report)
