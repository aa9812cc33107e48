"""The agents of a manager, for the package's own code: their guards, the routes that they are on, how they change.

Users have an :class:`~asgi_agents.AgentManager`, which shows what is documented. The middleware, the status page and
the metrics find the registry behind it with :func:`~asgi_agents.manager.registry_of`.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from threading import RLock
from typing import Final

from msgspec import Struct

from .advice import warn_of
from .concurrency.turns import Turns
from .config import AgentConfig
from .errors import AgentError, ConfigurationError, UnknownAgentError, reworded
from .evaluation.endpoint_policy import EndpointPolicy
from .evaluation.resolved_route import ResolvedRoute, begun_on
from .evaluation.route_agent import AgentReference, RouteAgent
from .evaluation.route_listings import RouteListings
from .evaluation.stages import check_order
from .evaluation.text_judges import RouteJudges, check_guardrail, judge_of
from .guard import Guard
from .guardrails import Guardrail, ToolPolicy
from .lifecycle import Handover, Lifecycle, try_to_configure
from .messages.naming import named
from .observability.instruments import Metered
from .observability.metrics import Tally
from .observability.reports import Reports
from .observability.sources import SourceStatus
from .observability.telemetry import Telemetry
from .observability.traffic import GuardedTraffic
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


class Change(Struct, frozen=True, kw_only=True):
    """What has become of the agents: their ids. Those that are in none of these have stayed as they were."""

    added: Sequence[str]
    replaced: Sequence[str]
    removed: Sequence[str]


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
        #: Monotonic seconds, for the breakers.
        self.clock = clock
        self._debug = debug
        self.telemetry = telemetry
        #: What agents behind the stream transport have reported of themselves.
        self.reports = Reports()
        #: The connections that were guarded, and how many of them were stopped.
        self.traffic = GuardedTraffic(self._begun)
        #: The file that the agents have come from; None: there is none.
        self.source: SourceStatus | None = None
        #: The routes, for the status page.
        self.listings = RouteListings()
        #: Called with each guard that is made, or put in a place again, from now on, before anything is asked of it.
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
        # Connections on those that nothing holds any more.
        self._begun_before = 0
        # The ids of agents that code has added since then.
        self._added: set[str] = set()
        # Agents that were removed and are not closed yet.
        self._leaving: list[Guard] = []
        # Of the calls that replace one agent.
        self._replacing = Turns()
        self._retirements = Retirements(lambda: self._retired)
        # Agents in whose place others were put for a while. Their connections are closed with those of all others.
        self._aside: list[Guard] = []
        self.lifecycle = Lifecycle(self.guards, self._retirements, aside=lambda: tuple(self._aside))
        for config in agents:
            if config.id in self._guards:
                raise ConfigurationError(
                    f"AgentManager: two agents have the id {config.id!r}, expected each to be unique"
                )
            self._guards[config.id] = self.make_guard(config)
        for guard in self._guards.values():
            check_order(guard.config, self._guards)
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
        return _find(self._guards, agent_id)

    def find(self, agent_id: str) -> Guard | None:
        """The guard of one agent; None where there is no such agent any more."""
        return self._guards.get(agent_id)

    @property
    def metered(self) -> Sequence[Metered]:
        """The agents whose metrics are exported: all there are, and those that were removed and are not closed yet."""
        return (*self.guards(), *self._leaving)

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
                    found,
                    route,
                    judges,
                    tuple(known),
                    policy=policy,
                    refusal=refusal,
                    lacks_guardrails=not all(one in guardrails for one in handlers_too),
                )
            self._retirements.look_if_used_here()
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
            known = (*self._retired, *self._resolved_routes.values())
            self._retired = [resolved_route for resolved_route in known if resolved_route.connections]
            self._resolved_routes = {}
            self._begun_before += begun_on(known) - begun_on(self._retired)

    def _begun(self) -> int:
        """How many guarded connections there were."""
        with self._lock:
            return self._begun_before + begun_on((*self._retired, *self._resolved_routes.values()))

    # Change while serving

    async def add(self, config: AgentConfig) -> None:
        """Add an agent, last in the order, and ask it to take its configuration."""
        self._check_addable(config)
        guard = self.make_guard(config)
        self.check_guardrails(guard)
        async with self.lifecycle.placing(guard):
            with self._lock:
                # Another may have been added meanwhile.
                self._check_addable(config)
                self._guards[config.id] = guard
                self._added.add(config.id)
                self._retire_resolved_routes()
        self.telemetry.metering.add(guard)
        try:
            async with self.lifecycle.connecting():
                await try_to_configure(guard)
        finally:
            self.lifecycle.watch(guard)

    def _check_addable(self, config: AgentConfig) -> None:
        if config.id in self._guards:
            raise ConfigurationError(
                f"AgentManager: an agent has the id {config.id!r} already; replace_agent replaces it"
            )
        check_order(config, self._guards)

    async def replace(self, config: AgentConfig, drain_timeout: float) -> None:
        """Configure a new agent, put it in the place of the one with the same id, and close that once it is drained."""
        self.guard(config.id)
        check_order(config, self._guards)
        async with self._replacing.turn(config.id) as check_turn:
            (*aside, old), new = await self._swap(config, check_turn)
        self.telemetry.metering.discard(old)
        self.telemetry.metering.add(new)
        self.reports.forget(config.id)
        new.predecessor = old
        self._retirements.retire_each(aside, drain_timeout)
        await self._retirements.retire(old, drain_timeout, partial(setattr, new, "predecessor", None)).wait()

    async def remove(self, agent_id: str, drain_timeout: float) -> None:
        """Remove an agent, also from the routes that name it, and close it once it is drained."""
        with self._lock:
            old = self.guard(agent_id)
            aside = self._take_aside([old])
            del self._guards[agent_id]
            self._added.discard(agent_id)
            self._replacing.void(agent_id)
            self._retire_resolved_routes()
            self._leaving.append(old)
        self.lifecycle.leave([*aside, old])
        self.reports.forget(agent_id)
        if any(guardrail.agent_id == agent_id for listing in self.listings for guardrail in listing.guardrails):
            logger.warning(
                "agent %r is removed: from now on the text that its Guardrail is for passes without it", agent_id
            )
        self._retirements.retire_each(aside, drain_timeout)
        await self._retirements.retire(old, drain_timeout, partial(self._left, old)).wait()

    async def change(
        self,
        configs: Sequence[AgentConfig],
        *,
        owned: Collection[str],
        kept: Collection[str],
        fatal: Callable[[str, AgentError], bool],
        routes: Callable[[Callable[[str], Guard]], Callable[[], object]],
        drain_timeout: float,
    ) -> Change:
        """Have the agents of ``configs`` in place of those that are ``owned``, with other routes, in one step.

        New agents are configured first. Those that are replaced or removed are closed in the background, once they are
        drained. Agents that are not ``owned`` stay, after all others.

        :param kept: ids of agents that stay as they are.
        :param fatal: whether an agent that does not take its configuration ends this. Else it is added all the same,
            and asked again.
        :param routes: checks routes with the function that finds an agent by its id, and returns what puts them in
            place. It is called before any agent is configured.

        Raises :class:`ConfigurationError` or :class:`AgentError`: all is as before then. Agents that may have lost
        their configuration to a new guard were given it again.
        """
        self._check_owned(configs, owned)
        before = self._guards
        old = {config.id: before[config.id] for config in configs if config.id in before}
        new = {
            config.id: self.make_guard(config, old[config.id].tally if config.id in old else None)
            for config in configs
            if config.id not in kept or config.id not in before
        }
        for guard in new.values():
            # What fails is raised here, or logged afterwards.
            guard.configuring.logged = False
        try:
            async with self.lifecycle.connecting(), Handover(new.values(), self.lifecycle) as handover:
                commit = routes(partial(_find, {**old, **new}))
                failures = await handover.configure(fatal)
                for agent_id, failure in failures.items():
                    if fatal(agent_id, failure):
                        raise reworded(failure, f"agent {agent_id!r}: {failure}") from failure
                with self._lock:
                    # Code may have added one meanwhile.
                    self._check_owned(configs, owned)
                    now = self._guards
                    guards = {
                        config.id: new[config.id] if config.id in new else _find(now, config.id) for config in configs
                    }
                    owned = frozenset(owned) - self._added
                    removed = [guard for agent_id, guard in now.items() if agent_id in owned and agent_id not in guards]
                    replaced = [(now[agent_id], guard) for agent_id, guard in new.items() if agent_id in now]
                    guards |= {
                        agent_id: guard for agent_id, guard in now.items() if agent_id not in (guards.keys() | owned)
                    }
                    aside = self._take_aside([*removed, *(previous for previous, _ in replaced)])
                    # First: who resolves a route meanwhile, in another thread, looks afterwards whether it holds still.
                    commit()
                    self._guards = guards
                    self._leaving += removed
                    for guard in removed:
                        self._replacing.void(guard.config.id)
                    self._retire_resolved_routes()
                handover.done((*aside, *removed, *(previous for previous, _ in replaced)))
        except UnknownAgentError as exc:
            raise ConfigurationError(str(exc)) from exc
        self._retirements.retire_each(aside, drain_timeout)
        self._changed(new.values(), removed, replaced, drain_timeout)
        for agent_id, failure in failures.items():
            logger.warning("agent %r: %s; it is treated by its failure mode and asked again", agent_id, failure)
        was = {previous.config.id for previous, _ in replaced}
        return Change(
            added=tuple(agent_id for agent_id in new if agent_id not in was),
            replaced=tuple(agent_id for agent_id in new if agent_id in was),
            removed=tuple(guard.config.id for guard in removed),
        )

    def _check_owned(self, configs: Iterable[AgentConfig], owned: Collection[str]) -> None:
        """Raise ConfigurationError where one would take the place of an agent that is not ``owned``."""
        for config in configs:
            if config.id in self._guards and (config.id in self._added or config.id not in owned):
                raise ConfigurationError(f"code has added an agent with the id {config.id!r}, expected another id")

    def _changed(
        self,
        new: Iterable[Guard],
        removed: Iterable[Guard],
        replaced: Iterable[tuple[Guard, Guard]],
        drain_timeout: float,
    ) -> None:
        """See to what :meth:`change` has put in place, and close what it has removed, in the background."""
        for previous, guard in replaced:
            self.telemetry.metering.discard(previous)
            guard.predecessor = previous
            self._retirements.retire(previous, drain_timeout, partial(setattr, guard, "predecessor", None))
        for guard in removed:
            self._retirements.retire(guard, drain_timeout, partial(self._left, guard))
        for guard in (*removed, *(previous for previous, _ in replaced)):
            self.reports.forget(guard.config.id)
        for guard in new:
            self.telemetry.metering.add(guard)
            guard.configuring.logged = True
            self.lifecycle.watch(guard)

    def _left(self, guard: Guard) -> None:
        self._leaving.remove(guard)
        self.telemetry.metering.discard(guard)

    def put(self, guard: Guard) -> None:
        """Put a guard in the place of the one with its id, at once and for a while: neither is configured or closed.

        For :mod:`asgi_agents.testing`. Connections that are open keep the guards that they have.
        """
        for watch in tuple(self.on_guard):
            watch(guard)
        with self._lock:
            old = self._guards.get(guard.config.id)
            self._guards[guard.config.id] = guard
            self._aside = [one for one in (*self._aside, old) if one is not None and one is not guard]
            self._retire_resolved_routes()
        if old is not None:
            self.telemetry.metering.discard(old)
        self.telemetry.metering.add(guard)

    def forget(self, guard: Guard) -> None:
        """A guard that was put in a place for a while is not put there again."""
        with self._lock:
            self._aside = [one for one in self._aside if one is not guard]

    def _take_aside(self, out: Sequence[Guard]) -> Sequence[Guard]:
        """The agents' own guards, where those that are ``out`` of their places for good only stand in for them."""
        ids = {guard.config.id for guard in out}
        aside = [guard for guard in self._aside if guard.config.id in ids and not guard.stands_in]
        self._aside = [guard for guard in self._aside if guard.config.id not in ids]
        return aside

    async def _swap(self, config: AgentConfig, check_turn: Callable[[], None]) -> tuple[Sequence[Guard], Guard]:
        """Configure a new agent and put it in the place of the old one; returns all that are out of it, and the new."""
        check_turn()
        new = self.make_guard(config, self.guard(config.id).tally)
        # The caller of replace_agent gets the error: no log line.
        new.configuring.logged = False
        try:
            async with self.lifecycle.connecting(), Handover([new], self.lifecycle) as handover:
                self.check_guardrails(new)
                failures = await handover.configure(lambda agent_id, failure: True)
                if failures:
                    raise failures[config.id]
                with self._lock:
                    check_turn()
                    old = self.guard(config.id)
                    # Agents may have been added or removed meanwhile.
                    check_order(config, self._guards)
                    aside = self._take_aside([old])
                    self._guards[config.id] = new
                    self._retire_resolved_routes()
                handover.done([*aside, old])
        except AgentError as exc:
            raise reworded(exc, f"agent {config.id!r} was not replaced, the old one stays: {exc}") from exc
        new.configuring.logged = True
        self.lifecycle.watch(new)
        return [*aside, old], new

    def make_guard(
        self, config: AgentConfig, tally: Tally | None = None, clock: Callable[[], float] | None = None
    ) -> Guard:
        """A guard that is in no place yet. ``clock``: for its breaker; None: that of the registry."""
        warn_of(config)
        clock = self.clock if clock is None else clock
        guard = Guard(config, clock=clock, telemetry=self.telemetry, tally=tally, debug=self._debug)
        guard.tally.history.on_turn = self.traffic.history.turn
        guard.on_change = self._retire_resolved_routes
        guard.client.on_metrics_report = self._metrics_reported
        guard.client.on_config_update = self._on_config_update
        for watch in tuple(self.on_guard):
            watch(guard)
        return guard

    def check_guardrails(self, guard: Guard) -> None:
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


def _find(guards: Mapping[str, Guard], agent_id: str) -> Guard:
    try:
        return guards[agent_id]
    except KeyError:
        raise UnknownAgentError(f"no agent has the id {agent_id!r}; there are: {', '.join(guards) or 'none'}") from None
