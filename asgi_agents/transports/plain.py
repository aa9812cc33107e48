"""The client of transports that have none of their own."""

import math
from collections.abc import Callable, Coroutine
from typing import Any

from ..protocol import Answer, Event, EventType
from .base import AgentClient, PlainTransport


class PlainClient(AgentClient):
    """An agent behind a transport that keeps nothing for it, such as :class:`~asgi_agents.HttpTransport`.

    :param events: those to ask it about.
    """

    def __init__(self, transport: PlainTransport, events: frozenset[EventType]) -> None:
        self._transport = transport
        self.kind = transport.kind
        self.remote = transport.remote
        self.address = getattr(transport, "address", "")
        self.hears = events
        # As it is: a method of ours would be a call more for each call.
        self.may_suspend = transport.may_suspend  # type: ignore[method-assign]

    def function(self, event_type: EventType) -> object:
        return self._transport.call

    def call(self, event: Event, deadline: float = math.inf) -> Coroutine[Any, Any, Answer | None]:
        return self._transport.call(event)

    async def connect(self) -> None:
        connect: Callable[[], Coroutine[Any, Any, None]] | None = getattr(self._transport, "connect", None)
        if connect is not None:
            await connect()

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def retire(self) -> None:
        retire: Callable[[], Coroutine[Any, Any, None]] = getattr(self._transport, "retire", self._transport.aclose)
        await retire()
