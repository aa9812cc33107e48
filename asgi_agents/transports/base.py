"""The contract between the guard and a way to reach an agent.

A :class:`Transport` is what the user configures: where an agent is. It may serve several agents. The guard of each
agent binds it once and gets an :class:`AgentClient`, which carries the calls to that agent and tells what is known of
it. The guard names no transport and tests for none: what one client can do and another can't are attributes of the
client, and :class:`AgentClient` has the defaults.

A transport that keeps nothing for an agent needs no client of its own: see :class:`PlainTransport`.
"""

import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, runtime_checkable

from ..agent import Agent
from ..errors import AgentConnectionError
from ..observability.endpoints import EndpointStatistics
from ..protocol import Answer, Event, EventType
from ..protocol.stream import AgentCapabilities, CancelReason, ConfigUpdateRequest, MetricsReport

Hook = Callable[[Any], Coroutine[Any, Any, Answer | None]]
MetricsCallback = Callable[[str, MetricsReport], object]
ConfigUpdateCallback = Callable[[str, ConfigUpdateRequest], object]

#: Tells, of a call that is being cancelled, why. Set by whoever cancels calls for a reason that the agent may know.
cancel_reason: ContextVar[Callable[[], CancelReason] | None] = ContextVar("asgi_agents.cancel_reason", default=None)


class NotConnectedError(AgentConnectionError):
    """No connection could be made. Nothing was sent."""


class Place(Protocol):
    """A place for one call on a lasting connection."""

    def call(self, event: Event, deadline: float) -> Awaitable[Answer | None]:
        """Deliver ``event`` as :meth:`AgentClient.call` does, and give the place back.

        Ends by itself at the ``deadline``, a moment on :func:`time.monotonic`, with :class:`AgentTimeoutError`.
        """
        ...


class AgentClient:
    """One agent, as its guard calls it. Subclasses say what they can do and leave the rest as it is here.

    It knows nothing of permits and breakers: the guard never has more than the agent's ``max_concurrent_calls`` under
    way. It may be used on several event loops, each in a thread of its own.

    A client delivers calls in one of two ways. Either it has :meth:`call`, and the guard cancels that when the deadline
    has passed. Or it has lasting connections with places for so many calls at a time: then :attr:`reserves` is True, it
    has :meth:`reserve_now` and :meth:`reserve`, and the call is made at the place that these return. The guard counts
    the wait for a place apart from the call.

    :ivar kind: a low-cardinality name for telemetry, as of :class:`Transport`; ``remote`` likewise.
    :ivar address: where the agent is, for the log; empty where there is nothing to say.
    :ivar hears: the events to ask the agent about. It may change; :attr:`on_change` is called then.
    :ivar agent: the agent itself, where it is called directly: events don't leave the process.
    :ivar non_suspending_hooks: the hooks of such an agent that never suspend, which the guard calls without a deadline.
    :ivar reserves: calls need a place, which keeps the deadline.
    :ivar keeps_requests: :meth:`forget` has to be called when a connection of the app's is over.
    :ivar configures_itself: the client hands the agent its configuration whenever it connects. Otherwise the guard asks
        the agent to take it, before its first call.
    :ivar may_have_configured: whether it may have handed an agent a configuration, whatever has come of that; of
        clients that configure the agent.
    :ivar overwritten: how often another client may have given the agent another configuration. The guard counts it.
    :ivar capabilities: what instances of the agent have said of themselves, those first that are up.
    :ivar max_concurrency: how many calls at a time the agent has said that it takes; None: it has not said.
    :ivar max_body_size: how many bytes of a body it has said that it takes at a time; None: it has not said.
    :ivar timeout_multiplier: by how much deadlines are extended, because the agent has asked for it.
    :ivar on_change: to be called whenever :attr:`hears` or :attr:`max_concurrency` has changed, or the agent can be
        called again after it could not; with whether the last is so.
    :ivar on_metrics_report: to be called with the agent's id, the endpoint and the figures that it has sent.
    :ivar on_config_update: to be called with the agent's id and its request for another configuration.
    """

    kind: str
    remote: bool
    address: str = ""
    hears: frozenset[EventType]
    agent: Agent | None = None
    non_suspending_hooks: Mapping[EventType, Hook] = {}
    reserves: bool = False
    keeps_requests: bool = False
    configures_itself: bool = False
    may_have_configured: bool = True
    overwritten: int = 0
    capabilities: Sequence[AgentCapabilities] = ()
    max_concurrency: int | None = None
    max_body_size: int | None = None
    timeout_multiplier: float = 1.0
    on_change: Callable[[bool], object] = staticmethod(lambda came_up: None)
    on_metrics_report: Callable[[str, str, MetricsReport], object] | None = None
    on_config_update: ConfigUpdateCallback | None = None

    @property
    def connected(self) -> bool:
        """Whether there are connections left that further calls can go to, after one was lost."""
        return False

    def statistics(self) -> tuple[Sequence[EndpointStatistics], int]:
        """The endpoints, and how many calls wait for a place; of the running event loop."""
        return (), 0

    def function(self, event_type: EventType) -> object:
        """What is called for such an event, for messages that say where it has raised an exception."""
        return self.call

    # Calls

    def may_suspend(self, event_type: EventType) -> bool:
        """Whether a call can ever suspend for such an event. When in doubt, True."""
        return True

    async def call(self, event: Event, deadline: float = math.inf) -> Answer | None:
        """Deliver ``event`` and return the agent's answer, None meaning allow.

        It must be safe to cancel. ``deadline``, a moment on :func:`time.monotonic`, is when the guard cancels it.

        :raises AgentError: for whatever goes wrong on the way; agents in the process may raise anything.
        """
        place = self.reserve_now(event) or await self.reserve(event, hold=True)
        return await place.call(event, deadline)

    def reserve_now(self, event: Event) -> Place | None:
        """A place for ``event``, taken, or None where it has to wait for one."""
        return None

    async def reserve(self, event: Event, *, hold: bool) -> Place:
        """Wait for a place for ``event`` and take it. ``hold``: while the agent has paused, wait rather than fail.

        :raises AgentConnectionError: the agent can't be reached.
        :raises AgentUnavailableError: it has said that it takes no calls.
        """
        raise NotImplementedError

    def is_paused(self, event: Event) -> bool:
        """Whether the agent has asked that this has to wait."""
        return False

    def why_waiting(self, event: Event) -> str:
        """What a call that got no place has waited for; empty where the agent did nothing at all."""
        return ""

    def holds(self, event_type: EventType, correlation_id: str) -> bool:
        """Whether the agent keeps something of such a body that it has been shown, and that is to be passed on.

        Nothing can go on without the agent then: when it fails, it fails closed, whatever its failure mode.
        """
        return False

    def awaits_end(self, event_type: EventType, correlation_id: str) -> bool:
        """Whether the agent is to be told that such a body is over though there was none: it waits for that, or has not
        answered the head yet. Its provisional denial of the head stands for that answer.
        """
        return False

    def forget(self, correlation_id: str) -> None:
        """The app's connection of that id is over: nothing more is asked about it."""

    # Life

    async def connect(self) -> None:
        """Wait until the agent can be called and has its configuration, of clients that configure it themselves.

        Of others, see whether the agent can be connected to, as far as that can be seen without a call.

        :raises AgentError: it can't be reached now, or does not take its configuration.
        """

    async def push_config(self, config: Any) -> None:
        """Hand the agent another configuration, for connections to come as well; of clients that configure it.

        :raises AgentError: it does not take it. What it had before holds.
        """
        raise NotImplementedError

    async def give_again(self, config: Any) -> None:
        """Hand the agent its configuration once more, where it may have lost it; of clients that configure it.

        :raises AgentError: it does not take it.
        """
        await self.push_config(config)

    async def hold_config(self) -> None:
        """Have connections to come wait before they hand over the configuration, until :meth:`release_config`.

        Returns once :meth:`config_handed_over` does. Of clients that configure the agent.
        """

    async def config_handed_over(self) -> None:
        """Wait for the connections, on any event loop, with which the agent is being configured."""

    def release_config(self) -> None:
        """Undo :meth:`hold_config`, also where that was cancelled."""

    def adopt_config(self, config: Any) -> None:
        """Another client has given the agent this configuration: for connections to come; of clients that configure it.

        Those that say with each call what it is to be judged by keep theirs.
        """

    async def aclose(self) -> None:
        """Close what belongs to the running event loop. A later call opens it again."""

    async def retire(self) -> None:
        """Close what belongs to any event loop, for good: the agent was removed or replaced."""
        await self.aclose()


@runtime_checkable
class Transport(Protocol):
    """A way to reach an agent: what the user configures.

    Beside these members it has those of :class:`BindableTransport`, or else those of :class:`PlainTransport`.

    It may have seven more. ``address`` is a str that says in the log where the agent is. ``default_events`` has the
    events that the agent receives where neither ``events`` nor the configuration names any. ``sets`` has the names of
    request headers that the agent sets: they are added to those of ``AgentConfig.sets``. ``replaces`` has those that it
    reads of the client besides, for ``AgentConfig.replaces``. ``finds`` has the categories of its detections, where
    they can have no others, and ``says_severity`` is False where they have no severity but the default: a
    :class:`~asgi_agents.guardrails.Guardrail` that would ignore all of them for that is refused. ``whole_bodies`` is
    True where it delivers bodies as a whole: the body modes of the configuration have to be ``buffer`` then.
    """

    @property
    def kind(self) -> str:
        """A low-cardinality name for telemetry: ``in_process``, ``http``, …"""
        ...

    @property
    def remote(self) -> bool:
        """Whether the agent lives in another process."""
        ...

    @property
    def events(self) -> frozenset[EventType] | None:
        """The events that the agent receives, or None where only the configuration, or the agent itself, can tell."""
        ...

    @property
    def carries(self) -> frozenset[EventType]:
        """The events that this transport can deliver."""
        ...


@runtime_checkable
class BindableTransport(Transport, Protocol):
    """A transport that makes a client for each agent, as one with lasting connections does.

    It may have one more member. ``learns_events`` is True where the agent names its events itself, once it is
    connected: ``AgentConfig.events`` may be None then.
    """

    def bind(
        self, agent_id: str, *, events: frozenset[EventType] | None, config: Any, max_concurrent_calls: int
    ) -> AgentClient:
        """A client for one agent. Called outside of any event loop, too: it is to connect later.

        :param agent_id: the agent's id.
        :param events: the events that the agent receives; None: those that it names.
        :param config: what to configure it with, for clients that do so themselves; None: nothing.
        :param max_concurrent_calls: how many calls there are at a time at most.
        """
        ...


@runtime_checkable
class PlainTransport(Transport, Protocol):
    """A transport without clients: it keeps nothing for an agent between two calls.

    It knows nothing of deadlines, limits and breakers: the guard in front of it cancels a call that takes too long and
    never has more than the agent's ``max_concurrent_calls`` under way.

    It may have two more members. ``async retire()`` is called instead of :meth:`aclose` when the agent is removed or
    replaced, and closes what belongs to any event loop. ``async connect()`` tries whether the agent can be connected
    to, without a call, and raises :class:`~asgi_agents.errors.AgentError` where it can't.
    """

    def may_suspend(self, event_type: EventType) -> bool:
        """Whether :meth:`call` can ever suspend for such an event. When in doubt, True."""
        ...

    def call(self, event: Event) -> Coroutine[Any, Any, Answer | None]:
        """Deliver ``event`` and return the agent's answer, None meaning allow.

        Raises :class:`~asgi_agents.errors.AgentError` for whatever goes wrong on the way; in-process agents may raise
        anything. Must be safe to cancel, leaving nothing behind.
        """
        ...

    async def aclose(self) -> None:
        """Close what belongs to the running event loop. A later call opens it again."""
        ...
