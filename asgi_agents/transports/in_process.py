"""Agents in the same process: called directly, nothing is serialised or copied."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from typing import Any

from ..agent import HOOKS, Agent, check_agent, may_suspend
from ..errors import AgentError
from ..protocol import Answer, Event, EventType

Hook = Callable[[Any], Awaitable[Answer | None]]


class InProcessTransport:
    """Calls the hooks of an :class:`~asgi_agents.Agent`.

    :raises ConfigurationError: for an agent that hears nothing, or has a hook that is misspelt or can't be awaited.
    """

    kind = "in_process"
    remote = False

    def __init__(self, agent: Agent) -> None:
        check_agent("InProcessTransport", agent)
        self.agent = agent
        self.events: frozenset[EventType] | None = agent.events
        self.carries = frozenset(EventType)
        hooks: Mapping[EventType, Hook] = {event_type: getattr(agent, hook) for event_type, hook in HOOKS.items()}
        #: The hooks that finish in their first step: nothing can happen beside them, nor cancel them.
        self.non_suspending_hooks = {event_type: hook for event_type, hook in hooks.items() if not may_suspend(hook)}
        self._hooks: Mapping[EventType, Hook] = {
            event_type: hook if iscoroutinefunction(hook) else partial(_call, HOOKS[event_type], hook)
            for event_type, hook in hooks.items()
        }

    def may_suspend(self, event_type: EventType) -> bool:
        return event_type not in self.non_suspending_hooks

    async def call(self, event: Event) -> Answer | None:
        return await self._hooks[event.event_type](event)

    async def aclose(self) -> None:
        pass


async def _call(name: str, hook: Hook, event: Event) -> Answer | None:
    """Call what is no coroutine function, and may return anything."""
    returned: object = hook(event)
    if not isawaitable(returned):
        raise AgentError(f"{name} returned {type(returned).__name__}, expected an awaitable")
    answer: Answer | None = await returned
    return answer
