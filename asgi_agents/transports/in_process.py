"""Agents in the same process: called directly, nothing is serialised or copied."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ..agent import HOOKS, Agent, may_suspend
from ..protocol import Answer, Event, EventType


class InProcessTransport:
    """Calls the hooks of an :class:`~asgi_agents.Agent`."""

    kind = "in_process"
    remote = False

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.events: frozenset[EventType] | None = agent.events
        self.carries = frozenset(EventType)
        self._hooks: Mapping[EventType, Callable[[Any], Awaitable[Answer | None]]] = {
            event_type: getattr(agent, hook) for event_type, hook in HOOKS.items()
        }
        #: The hooks that finish in their first step: nothing can happen beside them, nor cancel them.
        self.steady = {event_type: hook for event_type, hook in self._hooks.items() if not may_suspend(hook)}

    def may_suspend(self, event_type: EventType) -> bool:
        return event_type not in self.steady

    async def call(self, event: Event) -> Answer | None:
        return await self._hooks[event.event_type](event)

    async def aclose(self) -> None:
        pass
