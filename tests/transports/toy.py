"""A transport of somebody's own, all in one file: agents behind memory streams, over one connection that lasts."""

from contextlib import suppress
from typing import Any

import anyio

from asgi_agents import AgentConnectionError, AgentError, ConfigureEvent, EndpointStatistics, Event, EventType
from asgi_agents.transports import AgentClient

LISTENING: dict[str, tuple[frozenset[EventType], Any]] = {}  # by address: what the agent hears, and where it is sent


class ToyClient(AgentClient):
    kind, remote, configures_itself = "toy", True, True

    def __init__(self, address: str, agent_id: str, events: frozenset[EventType] | None, config: Any) -> None:
        self.address, self._agent_id, self._events, self._config = address, agent_id, events, config
        self.hears = frozenset(EventType) if events is None else events
        self._line: Any = None

    def statistics(self) -> tuple[list[EndpointStatistics], int]:
        return [EndpointStatistics(address=self.address, state="up", connections=1)] if self._line else [], 0

    async def connect(self) -> None:
        if self._line is None:
            if self.address not in LISTENING:
                raise AgentConnectionError("nobody listens there")
            said, line = LISTENING[self.address]
            self._line, self.hears = line.clone(), self._events or said
            await self.push_config(self._config)
            self.on_change(True)

    async def push_config(self, config: Any) -> None:
        answer = await self.call(ConfigureEvent(agent_id=self._agent_id, config=config))
        if answer is not None:
            raise AgentError("it refuses its configuration")
        self._config = config

    async def call(self, event: Event, deadline: float = 0) -> Any:
        await self.connect()
        reply, answer = anyio.create_memory_object_stream[Any](1)
        with reply, answer, suppress(anyio.BrokenResourceError, anyio.EndOfStream):
            await self._line.send((event, reply))
            return await answer.receive()
        await self.aclose()
        raise AgentConnectionError("the connection was lost")

    async def aclose(self) -> None:
        self._line = self._line and self._line.close()


class ToyTransport:
    kind, remote, events, carries, learns_events = "toy", True, None, frozenset(EventType), True

    def __init__(self, address: str) -> None:
        self.address = address

    def bind(self, agent_id: str, *, events: Any, config: Any, max_concurrent_calls: int) -> ToyClient:
        return ToyClient(self.address, agent_id, events, config)
