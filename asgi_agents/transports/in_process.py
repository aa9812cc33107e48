"""Agents in the same process: called directly, nothing is serialised or copied."""

import math
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from typing import Any

from ..agent import HOOKS, Agent, check_agent, may_suspend
from ..errors import AgentError
from ..protocol import Answer, Event, EventType
from .base import Hook
from .plain import PlainClient


class InProcessTransport:
    """Calls the hooks of an :class:`~asgi_agents.Agent`.

    A subclass may override :meth:`call`. It is then called for every event; otherwise the guard calls hooks that never
    suspend by itself.

    :raises ConfigurationError: for an agent without hooks, or with one that is misspelt or can't be awaited.
    """

    kind = "in_process"
    remote = False

    def __init__(self, agent: Agent) -> None:
        check_agent("InProcessTransport", agent)
        self.agent = agent
        self.events: frozenset[EventType] | None = agent.events
        self.carries = frozenset(EventType)
        #: What clients may not send: see ``AgentConfig.sets``.
        self.sets = agent.own_headers
        #: What the app gets of agents alone: see ``AgentConfig.replaces``.
        self.replaces = agent.replaced_headers
        hooks: Mapping[EventType, Hook] = {event_type: getattr(agent, hook) for event_type, hook in HOOKS.items()}
        #: The hooks that finish in their first step: nothing can happen beside them, nor cancel them.
        self.non_suspending_hooks = {event_type: hook for event_type, hook in hooks.items() if not may_suspend(hook)}
        #: All of them, each returning a coroutine.
        self.hooks: Mapping[EventType, Hook] = {
            event_type: hook if iscoroutinefunction(hook) else partial(_call, HOOKS[event_type], hook)
            for event_type, hook in hooks.items()
        }

    def bind(
        self, agent_id: str, *, events: frozenset[EventType] | None, config: Any, max_concurrent_calls: int
    ) -> "InProcessClient":
        """A client that calls the agent for ``events``; None: for all that it receives."""
        return InProcessClient(self, self.agent.events if events is None else events)

    def function(self, event_type: EventType) -> object:
        """The hook for such events."""
        return getattr(self.agent, HOOKS[event_type])

    def may_suspend(self, event_type: EventType) -> bool:
        return event_type not in self.non_suspending_hooks

    def call(self, event: Event) -> Coroutine[Any, Any, Answer | None]:
        return self.hooks[event.event_type](event)

    async def aclose(self) -> None:
        pass


class InProcessClient(PlainClient):
    """An agent in this process, whose hooks the guard may call itself."""

    def __init__(self, transport: InProcessTransport, events: frozenset[EventType]) -> None:
        super().__init__(transport, events)
        self.agent = transport.agent
        if type(transport).call is InProcessTransport.call:
            self.non_suspending_hooks = transport.non_suspending_hooks
            self._hooks = transport.hooks
        else:
            self._hooks = dict.fromkeys(EventType, transport.call)

    def function(self, event_type: EventType) -> object:
        return getattr(self.agent, HOOKS[event_type])

    def call(self, event: Event, deadline: float = math.inf) -> Coroutine[Any, Any, Answer | None]:
        return self._hooks[event.event_type](event)


async def _call(name: str, hook: Callable[[Any], object], event: Event) -> Answer | None:
    """Call what is no coroutine function, and may return anything."""
    returned = hook(event)
    if not isawaitable(returned):
        raise AgentError(f"{name} returned {type(returned).__name__}, expected an awaitable")
    answer: Answer | None = await returned
    return answer
