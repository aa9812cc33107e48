"""What the guard needs of a way to reach an agent."""

from typing import Protocol, runtime_checkable

from ..protocol import Answer, Event, EventType


@runtime_checkable
class Transport(Protocol):
    """Carries one event to an agent and brings its answer back.

    A transport knows nothing of deadlines, limits and breakers: the guard in front of it cancels a call that takes too
    long and never has more than the agent's ``max_concurrent_calls`` under way.

    It may have two more members. ``address`` is a str that says in the log where the agent is. ``async retire()`` is
    called instead of :meth:`aclose` when the agent is removed or replaced, and closes what belongs to any event loop.
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
        """The events that the agent hears, or None where only the configuration can tell."""
        ...

    @property
    def carries(self) -> frozenset[EventType]:
        """The events that this transport can deliver."""
        ...

    def may_suspend(self, event_type: EventType) -> bool:
        """Whether :meth:`call` can ever suspend for such an event. When in doubt, True."""
        ...

    async def call(self, event: Event) -> Answer | None:
        """Deliver ``event`` and return the agent's answer, None meaning allow.

        Raises :class:`~asgi_agents.errors.AgentError` for whatever goes wrong on the way; in-process agents may raise
        anything. Must be safe to cancel, leaving nothing behind.
        """
        ...

    async def aclose(self) -> None:
        """Close what belongs to the running event loop. A later call opens it again."""
        ...
