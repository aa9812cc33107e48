"""The base class of agents written in Python."""

import dis
import inspect
from types import CodeType

from .protocol import (
    AgentResponse,
    ConfigureEvent,
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

HOOKS: dict[EventType, str] = {event_type: f"on_{event_type.value}" for event_type in EventType}


class Agent:
    """Subclass it and override the hooks of the events that the agent is to hear.

    One instance serves every connection, concurrently; per-connection state is kept under ``event.correlation_id`` and
    dropped in :meth:`on_request_complete`. Returning None means allow. Whatever a hook raises is an agent error and
    follows the agent's failure mode. Events are shared between agents: don't change what is inside them.

    A hook runs on the event loop, and its deadline can only end it where it awaits: work that blocks belongs in
    ``anyio.to_thread.run_sync``.
    """

    async def on_configure(self, event: ConfigureEvent) -> AgentResponse | None:
        """The agent is being connected; ``event.config`` is its ``AgentConfig.config``. Raise to refuse it."""
        return None

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        """A request, or a websocket handshake, before the app sees it."""
        return None

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        """All of a request's body, or the next piece of it, before the app sees it."""
        return None

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        """The head of the app's response, before the client sees it."""
        return None

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        """All of a response's body, or the next piece of it, before the client sees it."""
        return None

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        """A websocket message, in either direction."""
        return None

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> AgentResponse | GuardrailResponse | None:
        """Content that a handler asks about. None means that nothing was found."""
        return None

    async def on_request_complete(self, event: RequestCompleteEvent) -> AgentResponse | None:
        """The last byte has left. The answer changes nothing any more."""
        return None

    @property
    def events(self) -> frozenset[EventType]:
        """The events that this agent hears: those whose hook it overrides."""
        return frozenset(
            event_type
            for event_type, hook in HOOKS.items()
            if getattr(getattr(self, hook), "__func__", None) is not getattr(Agent, hook)
        )


def may_suspend(hook: object) -> bool:
    """Whether calling this coroutine function can ever suspend.

    A coroutine only suspends at an ``await`` (or ``async for``, ``async with``), all of which compile to a SEND
    instruction. What can't suspend needs no deadline and no task of its own. Whatever is not a plain coroutine function
    counts as able to.
    """
    function = getattr(hook, "__func__", hook)
    code = getattr(function, "__code__", None)
    if type(code) is not CodeType or not code.co_flags & inspect.CO_COROUTINE:
        return True
    return any(instruction.opname == "SEND" for instruction in dis.get_instructions(code))
