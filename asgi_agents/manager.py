"""The agents of an application, as the application sees them."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Self

from msgspec.structs import replace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from .agent import Agent
from .config import AgentConfig
from .decision import AgentDecision, merge
from .errors import ConfigurationError
from .evaluation.chain import evaluate_chunk, evaluate_frame
from .evaluation.evaluate import evaluate, evaluate_head
from .evaluation.guardrail import inspect_guardrail, unavailable
from .evaluation.resolved_route import ResolvedRoute
from .evaluation.route_agent import AgentReference
from .messages.naming import named
from .observability.metrics import AgentMetrics, AgentStatistics
from .observability.telemetry import Telemetry
from .policy import FailureMode, FailureModeName, as_failure_mode
from .protocol import (
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
from .protocol.stream import AgentCapabilities
from .registry import AgentRegistry
from .transports.base import ConfigUpdateCallback, MetricsCallback


class AgentManager:
    """All agents of an application, each behind its own guard.

    An async context manager: entering connects and configures the agents, and retries in the background those that are
    down; leaving closes their connections. It can be entered again afterwards, and more than once at a time. Without it
    agents are configured before their first call.

    It may serve several event loops, each in a thread of its own. Limits, breakers and counts of an agent hold for all
    of them together. Each event loop has connections of its own, and has to enter and leave the manager itself.

    The ``process_*`` methods return the merged decision. Wherever they take ``agents``, None means all, in the order
    they were added, and a reference is an id or a pair of id and :class:`FailureMode`. They raise
    :class:`UnknownAgentError` for an unknown id.

    Agents in other processes get a correlation id with a suffix of this process, so that no two processes name two
    connections alike: all events of a connection belong into one process. The id of an open connection of a middleware
    is what it is in the middleware's own events.

    :param on_metrics_report: called with the agent's id and the :class:`MetricsReport` that an agent behind the stream
        transport has sent; ``on_config_update`` with its :class:`ConfigUpdateRequest`. Both run on the event loop and
        must not block. What they raise is logged.
    :param tracer_provider: where the spans go; None: to OpenTelemetry's global provider, if the application sets one.
        ``meter_provider`` likewise for metrics.
    :param clock: monotonic seconds, for the breakers.
    :param debug: when the log says that an agent in this process fails, add the traceback of what it has raised. It may
        show what requests carry: for development.
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
        telemetry = Telemetry(tracer_provider, meter_provider)
        if isinstance(agents, str) or not isinstance(agents, Iterable):
            raise ConfigurationError(f"AgentManager: agents={named(agents)}, expected a list of AgentConfig")
        configs = tuple(agents)
        for config in configs:
            _require_config("AgentManager: agents contains ", config)
        self._registry = AgentRegistry(
            configs,
            on_metrics_report=on_metrics_report,
            on_config_update=on_config_update,
            telemetry=telemetry,
            clock=clock,
            debug=debug,
        )

    # What is there

    @property
    def agent_ids(self) -> Sequence[str]:
        """The ids, in the order the agents were added."""
        return self._registry.agent_ids

    @property
    def metrics(self) -> Mapping[str, AgentMetrics]:
        """What each agent was asked and what it said, by id."""
        return {guard.config.id: guard.metrics() for guard in self._registry.guards()}

    def statistics(self) -> Mapping[str, AgentStatistics]:
        """How each agent is now, by id: calls under way and waiting, breaker, connections."""
        return {guard.config.id: guard.statistics() for guard in self._registry.guards()}

    def export_prometheus(self) -> str:
        """All metrics of all agents, and those that agents report, in the Prometheus text format.

        :raises ConfigurationError: the ``prometheus`` extra is missing.
        """
        from .observability.prometheus import export

        return export(self._registry)

    def agent_capabilities(self, agent_id: str) -> AgentCapabilities | None:
        """What an agent has said of itself in the handshake of the stream transport.

        None for one that hasn't, or has none to say it in. Of several instances it is the first that is up.
        """
        return next(iter(self._registry.guard(agent_id).client.capabilities), None)

    def get_agents_for_event(self, event_type: EventType) -> Sequence[str]:
        """The ids of the agents that receive such events."""
        return tuple(agent.guard.config.id for agent in self._registry.resolved_route(None).agents_for(event_type))

    def any_agent_handles_event(self, agents: Iterable[AgentReference] | None, event_type: EventType) -> bool:
        """Whether any of ``agents`` receives such events."""
        return bool(self._registry.resolved_route(agents).agents_for(event_type))

    # Events

    async def process_request_headers(
        self, event: RequestHeadersEvent, agents: Iterable[AgentReference] | None = None
    ) -> AgentDecision:
        """Show a request's head to its agents, stage by stage.

        None of them sees the headers that only agents may set (``AgentConfig.sets``). Leave these out as well where you
        pass the request on, and those that agents replace (``AgentConfig.replaces``), before you apply the decision.
        """
        with self._held(agents) as resolved_route:
            if resolved_route.sets:
                event = replace(event, headers=event.headers.without(resolved_route.sets))
            return merge(await evaluate_head(resolved_route, event))

    async def process_response_headers(
        self, event: ResponseHeadersEvent, agents: Iterable[AgentReference] | None = None
    ) -> AgentDecision:
        """Show a response's head to its agents, in parallel."""
        with self._held(agents) as resolved_route:
            return merge(await evaluate(resolved_route.agents_for(event.event_type), event))

    async def process_request_complete(
        self, event: RequestCompleteEvent, agents: Iterable[AgentReference] | None = None
    ) -> AgentDecision:
        """Tell the agents how a request ended. Nothing depends on the answers."""
        with self._held(agents) as resolved_route:
            return merge(await evaluate(resolved_route.agents_for(event.event_type), event, everyone=True))

    async def process_request_body(
        self, event: RequestBodyChunkEvent, agents: Iterable[AgentReference] | None = None
    ) -> AgentDecision:
        """Pass a whole request body along the chain of its agents. It is not shown to agents whose limit it is over."""
        with self._held(agents) as resolved_route:
            return await evaluate_chunk(resolved_route.agents_for(event.event_type), event, whole=True)

    async def process_request_body_streaming(
        self, event: RequestBodyChunkEvent, agents: Iterable[AgentReference] | None = None
    ) -> AgentDecision:
        """Pass a piece of a request body along the chain of its agents, under their chunk deadline."""
        with self._held(agents) as resolved_route:
            return await evaluate_chunk(resolved_route.agents_for(event.event_type), event, whole=False)

    async def process_response_body_streaming(
        self, event: ResponseBodyChunkEvent, agents: Iterable[AgentReference] | None = None
    ) -> AgentDecision:
        """Pass a piece of a response body along the chain of its agents, under their chunk deadline."""
        with self._held(agents) as resolved_route:
            return await evaluate_chunk(resolved_route.agents_for(event.event_type), event, whole=False)

    async def process_websocket_frame(
        self, event: WebSocketFrameEvent, agents: Iterable[AgentReference] | None = None
    ) -> AgentDecision:
        """Pass a websocket message along the chain of its agents.

        Consecutive agents that only read are asked in parallel, one with ``body_access="write"`` by itself. Agents
        after one that stops the message are not asked. What stops it is in ``websocket_decision``, or in ``close``.
        """
        with self._held(agents) as resolved_route:
            return await evaluate_frame(resolved_route, event)

    async def call_guardrail_agent(
        self, agent_id: str, event: GuardrailInspectEvent, failure_mode: FailureMode | FailureModeName | None = None
    ) -> GuardrailResponse:
        """Ask one agent about a piece of content.

        ``failure_mode`` is the agent's own where it is None. A fail-closed agent that gives no verdict raises
        :class:`GuardrailUnavailableError`; a fail-open one, and a shadow agent always, detects nothing.
        """
        guard = self._registry.guard(agent_id)
        if failure_mode is not None and not isinstance(failure_mode, FailureMode):
            failure_mode = as_failure_mode(f"call_guardrail_agent: failure_mode={named(failure_mode)}", failure_mode)
        verdict, response = await inspect_guardrail(guard, event, failure_mode)
        if verdict.fails_closed:
            raise unavailable(verdict)
        return response

    def forget_request(self, agent_id: str, correlation_id: str) -> None:
        """Tell an agent that its calls about the connection of that id are over. The middleware does so itself."""
        guard = self._registry.find(agent_id)
        if guard is not None:
            guard.forget(correlation_id)

    # Lifecycle

    async def initialize(self) -> None:
        """Configure all agents, in parallel. One that is down stays to be configured later.

        Raises :class:`AgentError` when that is one with ``require_at_startup``.
        """
        await self._registry.lifecycle.initialize()

    async def shutdown(self) -> None:
        """Close the connections that belong to the running event loop. The manager can be used again afterwards.

        Agents that were replaced or removed are not waited for any longer, unless another event loop uses the manager.
        """
        await self._registry.lifecycle.shutdown()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """:meth:`initialize` on entry, then retry whatever is down; :meth:`shutdown` when the last of its users leaves.

        Each event loop has users of its own.

        Yields a function to leave before the end of the block.
        """
        leave = await self._registry.lifecycle.start()
        try:
            yield leave
        finally:
            await leave()

    async def __aenter__(self) -> Self:
        await self._registry.lifecycle.start_on_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._registry.lifecycle.stop_on_loop()

    # Change while serving

    async def add_agent(self, config: AgentConfig) -> None:
        """Add an agent, last in the order, and ask it to take its configuration.

        It counts at once, for all connections that come from now on. Until it has taken its configuration it is treated
        by its failure mode, and asked again if it is down or refuses. It stays also where this call is cancelled then.

        Where an agent that was removed leads to the same one, and is still being given a configuration, this waits for
        that first: until then there is no new agent, also where this call is cancelled.

        Raises :class:`ConfigurationError` where it can't do what a :class:`Guardrail` asks of it.
        """
        _require_config("AgentManager.add_agent: config=", config)
        await self._registry.add(config)

    async def replace_agent(self, config: AgentConfig, *, drain_timeout: float = 30.0) -> None:
        """Put a new agent in the place of the one with the same id, once it is configured.

        Connections that are open keep the old one, which is closed when the last of them ends, or after
        ``drain_timeout`` seconds. Returns then. Where this call is cancelled before the new one is configured, the old
        one stays; later, the old one is closed all the same. Of several calls for one id, each waits for the one before
        it to have put its agent in place, so that the last one's stays.

        Where both are one object, or at one address, that has one configuration. If it was asked to take the new one,
        and the old agent stays, it is given the old one again, or else treated by its failure mode.

        Raises :class:`AgentError` when the new one can't be reached, or does not take its configuration, and
        :class:`ConfigurationError` where it can't do what a :class:`Guardrail` asks of it: the old one stays. Raises
        :class:`UnknownAgentError`, also when the old one is removed meanwhile, and another one is added in its place.
        """
        _require_config("AgentManager.replace_agent: config=", config)
        await self._registry.replace(config, drain_timeout)

    async def push_config(self, agent_id: str, config: Any) -> None:
        """Give an agent another ``AgentConfig.config`` while it runs, all its instances, and those that connect later.

        It waits for what the agent is being asked to take. Raises :class:`AgentError` when it doesn't take it, or was
        replaced or removed meanwhile; what it had before then holds for those that did not get it.

        A stream agent gets it over the connections of the running event loop; those of others keep what they have.
        """
        await self._registry.lifecycle.push(self._registry.guard(agent_id), config)

    async def remove_agent(self, agent_id: str, *, drain_timeout: float = 30.0) -> None:
        """Remove an agent, also from the routes that name it. Drains like :meth:`replace_agent`.

        Endpoints whose own policy names it answer 503 from now on.
        """
        await self._registry.remove(agent_id, drain_timeout)

    # How

    @contextmanager
    def _held(self, agents: Iterable[AgentReference] | None) -> Iterator[ResolvedRoute]:
        """The resolved route of ``agents``, none of which is closed meanwhile, as for a connection."""
        resolved_route = self._registry.resolved_route(agents)
        resolved_route.held += 1
        try:
            yield resolved_route
        finally:
            resolved_route.held -= 1


def registry_of(manager: AgentManager) -> AgentRegistry:
    """The agents of ``manager``, for the package's own code."""
    return manager._registry


def _require_config(prefix: str, given: object) -> None:
    """Raise :class:`ConfigurationError` unless it is an AgentConfig. ``prefix`` begins its message."""
    if isinstance(given, AgentConfig):
        return
    right = "AgentConfig(id, transport)"
    if isinstance(given, Agent):
        name = type(given).__name__
        right = f"AgentConfig({name.lower()!r}, {name}(...))"
    raise ConfigurationError(f"{prefix}{named(given)}, expected {right}")


def require_manager(prefix: str, given: object) -> None:
    """Raise :class:`ConfigurationError` unless it is an AgentManager. ``prefix`` begins its message."""
    if isinstance(given, AgentManager):
        return
    right = "an AgentManager: manager = AgentManager([AgentConfig(...)])"
    if isinstance(getattr(given, "manager", None), AgentManager):
        right = "its AgentManager, which is in its attribute manager"
    raise ConfigurationError(f"{prefix}{named(given)}, expected {right}")
