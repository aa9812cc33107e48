"""Which agents hear an event, in parallel or in order, and what comes of it."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from threading import RLock
from types import TracebackType
from typing import Any, Self

import anyio
from msgspec.structs import replace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from .advice import warn_of
from .agent import Agent
from .concurrency.background import BackgroundTask
from .concurrency.event_loop import EventLoop
from .concurrency.shared_limiter import SharedLimiter
from .config import AgentConfig
from .decision import AgentDecision, Verdict, merge
from .errors import AgentError, ConfigurationError, GuardrailUnavailableError, UnknownAgentError
from .evaluation.resolved_route import (
    AgentReference,
    ResolvedRoute,
    RouteAgent,
    RouteListing,
    chain,
    check_body_size,
    evaluate,
    evaluate_head,
)
from .evaluation.stages import find_cycle
from .guard import Guard
from .messages.naming import named
from .observability.correlation import live_ids
from .observability.instruments import Metered
from .observability.metrics import AgentMetrics, AgentStatistics, Tally
from .observability.reports import Reports
from .observability.telemetry import Telemetry
from .policy import FailureMode, FailureModeName, as_failure_mode
from .protocol import (
    BodyChunkEvent,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    WebSocketFrameEvent,
)
from .protocol.stream import AgentCapabilities, MetricsReport
from .retirement import Retirements
from .transports.base import ConfigUpdateCallback, MetricsCallback


class AgentManager:
    """All agents of an application, each behind its own guard.

    An async context manager: entering connects and configures the agents, and retries in the background those that are
    down; leaving closes their connections. It can be entered again afterwards, and more than once at a time. Without it
    agents are configured before their first call.

    It may serve several event loops, each in a thread of its own. Limits, breakers and counts of an agent hold for all
    of them together; each has connections of its own, and is to enter and leave by itself.

    The ``process_*`` methods return the merged decision. Wherever they take ``agents``, None means all, in the order
    they were added, and a reference is an id or a pair of id and :class:`FailureMode`. They raise
    :class:`UnknownAgentError` for an unknown id.

    :param on_metrics_report: called with the agent's id and the :class:`MetricsReport` that an agent behind the stream
        transport has sent; ``on_config_update`` with its :class:`ConfigUpdateRequest`. Both run on the event loop and
        must not block. What they raise is logged.
    :param tracer_provider: where the spans go; None: to OpenTelemetry's global provider, if the application sets one.
        ``meter_provider`` likewise for metrics.
    :param clock: monotonic seconds, for the breakers.
    :param debug: when the log says that an agent in this process fails, add the traceback of what it has raised, and so
        what that says. It may show what requests carry: for development.
    """

    def __init__(
        self,
        agents: Iterable[AgentConfig] = (),
        *,
        on_metrics_report: MetricsCallback | None = None,
        on_config_update: ConfigUpdateCallback | None = None,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        clock: Callable[[], float] = time.monotonic,
        debug: bool = False,
    ) -> None:
        if not isinstance(debug, bool):
            raise ConfigurationError(f"AgentManager: debug={debug!r}, expected True or False")
        for name, callback in (("on_metrics_report", on_metrics_report), ("on_config_update", on_config_update)):
            if callback is not None and not callable(callback):
                raise ConfigurationError(f"AgentManager: {name}={named(callback)}, expected a callable")
        self._on_metrics_report = on_metrics_report
        self._on_config_update = on_config_update
        self._clock = clock
        self._debug = debug
        self.telemetry = Telemetry(tracer_provider, meter_provider)
        #: What agents behind the stream transport have reported of themselves.
        self.reports = Reports()
        #: Which agents hear which paths, as the middlewares that share this manager have it.
        self.listings: list[RouteListing] = []
        self._guards: dict[str, Guard] = {}
        # Held while the agents are changed, or resolved, on whichever event loop. Reentrant: a change of agents also
        # retires what was resolved.
        self._lock = RLock()
        self._resolved_routes: dict[tuple[tuple[AgentReference, ...] | None, str | None, bool], ResolvedRoute] = {}
        self._retired: list[ResolvedRoute] = []
        self._leaving: list[Guard] = []
        self._retirements = Retirements()
        # Whose turn it is to replace each agent.
        self._replacing: dict[str, SharedLimiter] = {}
        self._users: dict[EventLoop, int] = {}
        self._watchers: list[Callable[[Guard], None]] = []
        self._contexts: dict[int, list[AbstractAsyncContextManager[Callable[[], Awaitable[None]]]]] = {}
        if isinstance(agents, str) or not isinstance(agents, Iterable):
            raise ConfigurationError(f"AgentManager: agents={named(agents)}, expected a list of AgentConfig")
        for config in agents:
            _require_config("AgentManager: agents contains ", config)
            if config.id in self._guards:
                raise ConfigurationError(
                    f"AgentManager: two agents have the id {config.id!r}, expected each to be unique"
                )
            self._guards[config.id] = self._make_guard(config)
        for guard in self._guards.values():
            self._check_order(guard.config)
            self.telemetry.metering.add(guard)

    # What is there

    @property
    def agent_ids(self) -> Sequence[str]:
        """The ids, in the order the agents were added."""
        return tuple(self._guards)

    @property
    def live_correlation_ids(self) -> Set[str]:
        """Ids of the guarded connections that are open now in this process, also those of other managers."""
        return live_ids

    @property
    def metrics(self) -> Mapping[str, AgentMetrics]:
        """What each agent was asked and what it said, by id."""
        return {agent_id: guard.metrics() for agent_id, guard in tuple(self._guards.items())}

    def statistics(self) -> Mapping[str, AgentStatistics]:
        """How each agent is now, by id: calls under way and waiting, breaker, connections."""
        return {agent_id: guard.statistics() for agent_id, guard in tuple(self._guards.items())}

    @property
    def metered(self) -> Sequence[Metered]:
        """The agents, for those who export their metrics; also those that are on their way out."""
        return (*tuple(self._guards.values()), *self._leaving)

    def export_prometheus(self) -> str:
        """All metrics of all agents, and those that agents report, in the Prometheus text format.

        :raises ConfigurationError: the ``prometheus`` extra is missing.
        """
        from .prometheus import export

        return export(self)

    def agent_capabilities(self, agent_id: str) -> AgentCapabilities | None:
        """What an agent has said of itself in the handshake of the stream transport.

        None for one that hasn't, or has none to say it in. Of several instances it is the first that is up.
        """
        return next(iter(self.guard(agent_id).client.capabilities), None)

    def get_agents_for_event(self, event_type: EventType) -> Sequence[str]:
        """The ids of the agents that hear such events."""
        return tuple(agent.guard.config.id for agent in self.resolved_route(None).agents_for(event_type))

    def any_agent_handles_event(self, agents: Iterable[AgentReference] | None, event_type: EventType) -> bool:
        """Whether any of ``agents`` hears such events."""
        return bool(self.resolved_route(agents).agents_for(event_type))

    def guard(self, agent_id: str) -> Guard:
        """The guard of one agent."""
        try:
            return self._guards[agent_id]
        except KeyError:
            known = ", ".join(self._guards) or "none"
            raise UnknownAgentError(f"no agent has the id {agent_id!r}; there are: {known}") from None

    def resolved_route(
        self, agents: Iterable[AgentReference] | None, *, route: str | None = None, missing_ok: bool = False
    ) -> ResolvedRoute:
        """Resolve ``agents``, those of ``route``; ``missing_ok`` leaves out those that were removed."""
        if isinstance(agents, str):
            raise ConfigurationError(f"AgentManager: agents={agents!r}, expected a list: [{agents!r}]")
        references = None if agents is None else tuple(agents)
        resolved_route = self._resolved_routes.get((references, route, missing_ok))
        if resolved_route is None:
            with self._lock:
                resolved_route = self._resolved_routes[references, route, missing_ok] = self._resolve(
                    references, route, missing_ok
                )
        return resolved_route

    def list_routes(self, listings: Iterable[RouteListing]) -> None:
        """Have these routes shown, on the status page for one; a middleware tells its own."""
        self.listings += [listing for listing in listings if listing not in self.listings]

    # Events

    async def process_request_headers(
        self, event: RequestHeadersEvent, agents: Iterable[AgentReference] | None = None
    ) -> AgentDecision:
        """Show a request's head to its agents, stage by stage.

        None of them sees the headers that are for agents alone to set (``AgentConfig.sets``). Whoever passes the
        request on has to leave them out as well.
        """
        with self._held(agents) as resolved_route:
            if resolved_route.sets:
                event = replace(event, headers=event.headers.without(resolved_route.sets))
            return merge(await evaluate_head(resolved_route, event))

    async def process_response_headers(
        self, event: ResponseHeadersEvent, agents: Iterable[AgentReference] | None = None
    ) -> AgentDecision:
        """Show a response's head to its agents, all at once."""
        return await self._process_in_parallel(event, agents)

    async def process_request_complete(
        self, event: RequestCompleteEvent, agents: Iterable[AgentReference] | None = None
    ) -> AgentDecision:
        """Tell the agents how a request ended. Nothing depends on the answers."""
        with self._held(agents) as resolved_route:
            return merge(await evaluate(resolved_route.agents_for(event.event_type), event, everyone=True))

    async def process_request_body(
        self, event: RequestBodyChunkEvent, agents: Iterable[AgentReference] | None = None
    ) -> AgentDecision:
        """Pass a whole request body along the chain of its agents. Their body limits hold."""
        return await self._process_along_chain(event, agents, chunk=False)

    async def process_request_body_streaming(
        self, event: RequestBodyChunkEvent, agents: Iterable[AgentReference] | None = None
    ) -> AgentDecision:
        """Pass a piece of a request body along the chain of its agents, under their chunk deadline."""
        return await self._process_along_chain(event, agents, chunk=True)

    async def process_response_body_streaming(
        self, event: ResponseBodyChunkEvent, agents: Iterable[AgentReference] | None = None
    ) -> AgentDecision:
        """Pass a piece of a response body along the chain of its agents, under their chunk deadline."""
        return await self._process_along_chain(event, agents, chunk=True)

    async def process_websocket_frame(
        self, event: WebSocketFrameEvent, agents: Iterable[AgentReference] | None = None
    ) -> AgentDecision:
        """Pass a websocket message along the chain of its agents.

        What stops it is in ``websocket_decision``, or in ``close``.
        """
        return await self._process_in_parallel(event, agents)

    async def call_guardrail_agent(
        self, agent_id: str, event: GuardrailInspectEvent, failure_mode: FailureMode | FailureModeName | None = None
    ) -> GuardrailResponse:
        """Ask one agent about a piece of content.

        ``failure_mode`` is the agent's own where it is None. A fail-closed agent that gives no verdict raises
        :class:`GuardrailUnavailableError`; a fail-open one, and a shadow agent always, detects nothing.
        """
        verdict, response = await self.inspect_guardrail(agent_id, event, failure_mode)
        if verdict.fails_closed:
            raise unavailable(verdict)
        return response

    async def inspect_guardrail(
        self,
        agent_id: str,
        event: GuardrailInspectEvent,
        failure_mode: FailureMode | FailureModeName | None = None,
    ) -> tuple[Verdict, GuardrailResponse]:
        """:meth:`call_guardrail_agent`, with the verdict; one that fails closed is not raised."""
        guard = self.guard(agent_id)
        if EventType.GUARDRAIL_INSPECT not in guard.hears:
            raise UnknownAgentError(f"agent {agent_id!r} does not hear {EventType.GUARDRAIL_INSPECT.value}")
        if failure_mode is None:
            failure_mode = guard.config.fails
        elif not isinstance(failure_mode, FailureMode):
            failure_mode = as_failure_mode(f"call_guardrail_agent: failure_mode={named(failure_mode)}", failure_mode)
        verdict, response = await guard.inspect(event, failure_mode, route=event.route_id)
        if verdict.failure is not None or not verdict.enforced:
            return verdict, GuardrailResponse(detected=False)
        return verdict, response

    def forget_request(self, agent_id: str, correlation_id: str) -> None:
        """Nothing more will be asked of an agent about the connection of that id. The middleware sees to it itself."""
        guard = self._guards.get(agent_id)
        if guard is not None:
            guard.forget_request(correlation_id)

    # Life

    async def initialize(self) -> None:
        """Configure all agents, in parallel. One that is down stays to be configured later.

        Raises :class:`AgentError` when that is one with ``require_at_startup``.
        """
        async with anyio.create_task_group() as tasks:
            for guard in tuple(self._guards.values()):
                tasks.start_soon(_try_to_configure, guard)
        for guard in tuple(self._guards.values()):
            if guard.config.require_at_startup:
                try:
                    await guard.configure()
                except AgentError as exc:
                    raise type(exc)(f"agent {guard.config.id!r} is required at startup: {exc}") from exc

    async def shutdown(self) -> None:
        """Close the connections that belong to the running event loop. The manager can be used again afterwards.

        Agents that were replaced or removed on this event loop are not waited for any longer.
        """
        errors: list[Exception] = []
        # What an agent is configured with does not belong to one event loop.
        in_use = any(loop.alive and not loop.is_current for loop in tuple(self._users))

        async def close(guard: Guard) -> None:
            try:
                await guard.aclose()
            except Exception as exc:
                # The others are to be closed all the same.
                errors.append(exc)
            if not in_use:
                guard.forget()

        # At once: each may have to wait for calls under way.
        async with anyio.create_task_group() as tasks:
            for guard in tuple(self._guards.values()):
                tasks.start_soon(close, guard)
            tasks.start_soon(self._retirements.hasten)
        if errors:
            raise errors[0]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """:meth:`initialize` on entry, then retry whatever is down; :meth:`shutdown` when the last of its users leaves.

        Each event loop has users of its own.

        Yields a function to leave before the end of the block.
        """
        leave = await self.start()
        try:
            yield leave
        finally:
            await leave()

    async def start(self) -> Callable[[], Awaitable[None]]:
        """Enter without a block to leave: returns the function to leave with, for which a second call does nothing.

        Until then the agents that are down are retried by a task of the event loop.
        """
        loop = EventLoop()
        with self._lock:
            self._users[loop] = self._users.get(loop, 0) + 1
        retrying: BackgroundTask | None = None
        left = False

        async def leave() -> None:
            nonlocal left
            if left:
                return
            left = True
            with self._lock:
                self._users[loop] -= 1
                is_last = not self._users[loop]
                if is_last:
                    del self._users[loop]
            with anyio.CancelScope(shield=True):
                if retrying is not None:
                    retrying.cancel()
                    await retrying.wait()
                if is_last:
                    await self.shutdown()

        try:
            await self.initialize()
        except BaseException:
            await leave()
            raise
        retrying = BackgroundTask(self._keep_configuring)
        return leave

    async def __aenter__(self) -> Self:
        context = self.running()
        await context.__aenter__()
        self._contexts.setdefault(anyio.get_current_task().id, []).append(context)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        # Users may leave in any order, but each in the task that it came in.
        task = anyio.get_current_task().id
        context = self._contexts[task].pop()
        if not self._contexts[task]:
            del self._contexts[task]
        return await context.__aexit__(kind, exc, traceback)

    # Change while serving

    async def add_agent(self, config: AgentConfig) -> None:
        """Add an agent, last in the order, and ask it to take its configuration.

        It counts at once, for all connections that come from now on. Until it has taken its configuration it is treated
        by its failure mode, and asked again if it is down or refuses. It stays also where this call is cancelled.
        """
        _require_config("AgentManager.add_agent: config=", config)
        with self._lock:
            if config.id in self._guards:
                raise ConfigurationError(
                    f"AgentManager: an agent has the id {config.id!r} already; replace_agent replaces it"
                )
            self._check_order(config)
            guard = self._guards[config.id] = self._make_guard(config)
            self._retire_resolved_routes()
        self.telemetry.metering.add(guard)
        try:
            await _try_to_configure(guard)
        finally:
            self._watch(guard)

    async def replace_agent(self, config: AgentConfig, *, drain_timeout: float = 30.0) -> None:
        """Put a new agent in the place of the one with the same id, once it is configured.

        Connections that are open keep the old one, which is closed when the last of them ends, or after
        ``drain_timeout`` seconds. Returns then. Where this call is cancelled before the new one is configured, the old
        one stays; later, the old one is closed all the same. Of several calls for one id, each waits for the one before
        it to have put its agent in place, so that the last one's stays.

        Raises :class:`AgentError` when the new one can't be reached, or does not take its configuration: the old one
        stays. Raises :class:`UnknownAgentError`, also when the old one is removed meanwhile.
        """
        _require_config("AgentManager.replace_agent: config=", config)
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

    async def _swap(self, config: AgentConfig) -> tuple[Guard, Guard]:
        """Configure a new agent and put it in the place of the old one; returns both."""
        new = self._make_guard(config, self.guard(config.id).tally)
        # Whoever replaces the agent is told.
        new.configuring.logged = False
        try:
            await new.configure()
            with self._lock:
                old = self.guard(config.id)
                # Others may have come, or gone, meanwhile.
                self._check_order(config)
                self._guards[config.id] = new
                self._retire_resolved_routes()
        except BaseException as exc:
            with anyio.CancelScope(shield=True):
                await new.retire()
            if isinstance(exc, AgentError):
                raise type(exc)(f"agent {config.id!r} was not replaced, the old one stays: {exc}") from exc
            raise
        new.configuring.logged = True
        return old, new

    async def push_config(self, agent_id: str, config: Any) -> None:
        """Give an agent another ``AgentConfig.config`` while it runs, all its instances, and those that connect later.

        Raises :class:`AgentError` when it doesn't take it; what it had before then holds for those that did not get it.
        A stream agent is told over the connections of the running event loop; those of others keep what they have.
        """
        await self.guard(agent_id).push_config(config)

    async def remove_agent(self, agent_id: str, *, drain_timeout: float = 30.0) -> None:
        """Remove an agent, also from the routes that name it. Drains like :meth:`replace_agent`."""
        with self._lock:
            old = self.guard(agent_id)
            del self._guards[agent_id]
            self._replacing.pop(agent_id, None)
            self._retire_resolved_routes()
            self._leaving.append(old)
        self.reports.forget(agent_id)

        def then() -> None:
            self._leaving.remove(old)
            self.telemetry.metering.discard(old)

        await self._retire(old, drain_timeout, then=then)

    # How

    def _make_guard(self, config: AgentConfig, tally: Tally | None = None) -> Guard:
        warn_of(config)
        guard = Guard(config, clock=self._clock, telemetry=self.telemetry, tally=tally, debug=self._debug)
        guard.on_change = self._retire_resolved_routes
        guard.client.on_metrics_report = self._metrics_reported
        guard.client.on_config_update = self._on_config_update
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

    def _metrics_reported(self, agent_id: str, endpoint: str, report: MetricsReport) -> None:
        if agent_id in self._guards:
            self.reports.add(agent_id, endpoint, report, time.monotonic())
        if self._on_metrics_report is not None:
            self._on_metrics_report(agent_id, report)

    async def _process_in_parallel(
        self,
        event: ResponseHeadersEvent | WebSocketFrameEvent,
        agents: Iterable[AgentReference] | None,
    ) -> AgentDecision:
        with self._held(agents) as resolved_route:
            return merge(await evaluate(resolved_route.agents_for(event.event_type), event))

    async def _process_along_chain(
        self, event: BodyChunkEvent, agents: Iterable[AgentReference] | None, *, chunk: bool
    ) -> AgentDecision:
        with self._held(agents) as resolved_route:
            verdicts: list[Verdict] = []
            for group in chain(resolved_route.agents_for(event.event_type)):
                refusals = {} if chunk else {agent: check_body_size(agent, event) for agent in group}
                asked = [agent for agent in group if refusals.get(agent) is None]
                answers = await evaluate(asked, event, chunk=chunk, final=event.is_last)
                refused = [verdict for verdict in refusals.values() if verdict is not None]
                order = [agent.guard.config.id for agent in group]
                verdicts += sorted((*refused, *answers), key=lambda verdict: order.index(verdict.agent_id))
                decision = merge(verdicts, final=event.is_last)
                if not decision.is_allow:
                    return decision
                mutation = decision.mutation(event.event_type)
                if mutation is not None:
                    event = replace(event, data=mutation.data)
            return merge(verdicts, final=event.is_last)

    @contextmanager
    def _held(self, agents: Iterable[AgentReference] | None) -> Iterator[ResolvedRoute]:
        """The resolved route of ``agents``, none of which is closed meanwhile, as for a connection."""
        resolved_route = self.resolved_route(agents)
        resolved_route.connections += 1
        try:
            yield resolved_route
        finally:
            resolved_route.connections -= 1

    async def _keep_configuring(self) -> None:
        """Ask the agents that are down again and again, each in its own time, until cancelled."""

        async def retry(guard: Guard) -> None:
            while not guard.configured and self._guards.get(guard.config.id) is guard:
                await anyio.sleep(guard.configuring.delay)
                await _try_to_configure(guard)

        loop = EventLoop()
        async with anyio.create_task_group() as tasks:

            def watch_here(guard: Guard) -> None:
                if not guard.configured:
                    tasks.start_soon(retry, guard)

            async def watch_from_elsewhere(guard: Guard) -> None:
                # It may have ended since another thread has asked for it.
                if watch in self._watchers:
                    watch_here(guard)

            def watch(guard: Guard) -> None:
                if loop.is_current:
                    watch_here(guard)
                else:
                    loop.start_soon(partial(watch_from_elsewhere, guard))

            self._watchers.append(watch)
            try:
                for guard in tuple(self._guards.values()):
                    watch(guard)
                await anyio.sleep_forever()
            finally:
                self._watchers.remove(watch)

    def _watch(self, guard: Guard) -> None:
        for watch in tuple(self._watchers):
            watch(guard)

    def _resolve(
        self, references: tuple[AgentReference, ...] | None, route: str | None, missing_ok: bool
    ) -> ResolvedRoute:
        if references is None:
            return ResolvedRoute(
                [RouteAgent(guard, guard.config.fails, route) for guard in self._guards.values()], route
            )
        agents = []
        for reference in references:
            agent_id, given = (reference, None) if isinstance(reference, str) else reference
            if missing_ok and agent_id not in self._guards:
                continue
            guard = self.guard(agent_id)
            mode = guard.config.fails
            if given is not None:
                mode = as_failure_mode(f"AgentManager: agents contains ({agent_id!r}, {named(given)})", given)
            agents.append(RouteAgent(guard, mode, route))
        return ResolvedRoute(agents, route)

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

    async def _retire(self, guard: Guard, timeout: float, *, then: Callable[[], object]) -> None:
        def needed() -> bool:
            return guard.busy or any(
                resolved_route.connections and any(agent.guard is guard for agent in resolved_route.agents)
                for resolved_route in self._retired
            )

        await self._retirements.retire(guard, needed, timeout, then)


def _require_config(shown: str, given: object) -> None:
    """Raise :class:`ConfigurationError` unless it is an AgentConfig. ``shown`` begins its message."""
    if isinstance(given, AgentConfig):
        return
    right = "AgentConfig(id, transport)"
    if isinstance(given, Agent):
        name = type(given).__name__
        right = f"AgentConfig({name.lower()!r}, {name}(...))"
    raise ConfigurationError(f"{shown}{named(given)}, expected {right}")


def require_manager(shown: str, given: object) -> None:
    """Raise :class:`ConfigurationError` unless it is an AgentManager. ``shown`` begins its message."""
    if isinstance(given, AgentManager):
        return
    right = "an AgentManager: manager = AgentManager([AgentConfig(...)])"
    if isinstance(getattr(given, "manager", None), AgentManager):
        right = "its AgentManager, which is in its attribute manager"
    raise ConfigurationError(f"{shown}{named(given)}, expected {right}")


def unavailable(verdict: Verdict) -> GuardrailUnavailableError:
    """The error that tells a handler of a verdict that fails closed."""
    assert verdict.failure is not None
    block = verdict.failure.block
    headers = None if block.headers is None else dict(block.headers)
    return GuardrailUnavailableError(block.status, block.body or "", verdict.failure.message, headers)


async def _try_to_configure(guard: Guard) -> None:
    # The guard has logged it, and asks again.
    with suppress(AgentError):
        await guard.configure()
