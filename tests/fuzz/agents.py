"""Agents that do as they are told by the input, and remember what they were shown."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import anyio
from anyio.lowlevel import checkpoint
from msgspec import Struct

from asgi_agents import Agent, AgentConfig, AgentResponse, BodyMode, CircuitBreakerConfig, FailureMode
from asgi_agents.protocol import BodyMutation, Event, EventType, RequestBodyChunkEvent, ResponseBodyChunkEvent
from asgi_agents.protocol.stream import correlation_id_of

from .choices import Choices
from .reactions import Reaction, reaction

#: Virtual seconds. Much longer than a machine under load could lose within a call.
TIMEOUT: Final = 500.0


class Shown(Struct):
    """One event that an agent was shown, and whether it has answered."""

    event: Event
    reaction: Reaction
    done: bool = False


class Scripted(Agent):
    """Reacts as told, event by event, and consents from then on. Its hooks never suspend."""

    def __init__(self, events: frozenset[EventType], reactions: Sequence[Reaction], asyncio: bool) -> None:
        self._events = events
        self._reactions = list(reactions)
        self._asyncio = asyncio
        self.shown: list[Shown] = []

    @property
    def events(self) -> frozenset[EventType]:
        return self._events

    def of(self, correlation_id: str, event_type: EventType) -> list[Shown]:
        """What it was shown of one connection."""
        return [
            shown
            for shown in self.shown
            if shown.event.event_type is event_type and correlation_id_of(shown.event) == correlation_id
        ]

    def _begin(self, event: Event) -> Shown:
        shown = Shown(event, self._reactions.pop(0) if self._reactions else Reaction())
        self.shown.append(shown)
        return shown

    def _end(self, shown: Shown) -> Any:
        shown.done = True
        kind = shown.reaction.kind
        if kind == "raise":
            raise ValueError("the agent is at fault")
        if kind == "cancelled":
            raise asyncio.CancelledError if self._asyncio else KeyError("the agent is at fault")
        if kind in ("garbage", "hang"):
            return "allow"
        if kind in ("mutate", "drop"):
            return self._mutation(shown)
        if kind == "misfit":
            return self._misfit(shown)
        return shown.reaction.answer

    def _mutation(self, shown: Shown) -> AgentResponse:
        event, needs_more = shown.event, shown.reaction.needs_more
        if isinstance(event, RequestBodyChunkEvent):
            mutation = BodyMutation(shown.reaction.mutated(event.data), event.chunk_index)
            return AgentResponse.allow(request_body_mutation=mutation, needs_more=needs_more)
        if isinstance(event, ResponseBodyChunkEvent):
            mutation = BodyMutation(shown.reaction.mutated(event.data), event.chunk_index)
            return AgentResponse.allow(response_body_mutation=mutation, needs_more=needs_more)
        return AgentResponse.allow(needs_more=needs_more)

    def _misfit(self, shown: Shown) -> AgentResponse:
        """A change to a body that the event is not about."""
        mutation = BodyMutation(b"misfit")
        if isinstance(shown.event, ResponseBodyChunkEvent):
            return AgentResponse.allow(request_body_mutation=mutation)
        return AgentResponse.allow(response_body_mutation=mutation)

    async def on_request_headers(self, event: Any) -> Any:
        return self._end(self._begin(event))

    async def on_request_body_chunk(self, event: Any) -> Any:
        return self._end(self._begin(event))

    async def on_response_headers(self, event: Any) -> Any:
        return self._end(self._begin(event))

    async def on_response_body_chunk(self, event: Any) -> Any:
        return self._end(self._begin(event))

    async def on_websocket_frame(self, event: Any) -> Any:
        return self._end(self._begin(event))

    async def on_request_complete(self, event: Any) -> Any:
        return self._end(self._begin(event))


class Slow(Scripted):
    """The same, but its hooks can suspend."""

    async def _slowly(self, event: Event) -> Any:
        shown = self._begin(event)
        if isinstance(shown.reaction.suspends, float):
            await anyio.sleep(shown.reaction.suspends)
        else:
            for _ in range(shown.reaction.suspends):
                await checkpoint()
        if shown.reaction.kind == "hang":
            await anyio.sleep_forever()
        return self._end(shown)

    async def on_request_headers(self, event: Any) -> Any:
        return await self._slowly(event)

    async def on_request_body_chunk(self, event: Any) -> Any:
        return await self._slowly(event)

    async def on_response_headers(self, event: Any) -> Any:
        return await self._slowly(event)

    async def on_response_body_chunk(self, event: Any) -> Any:
        return await self._slowly(event)

    async def on_websocket_frame(self, event: Any) -> Any:
        return await self._slowly(event)

    async def on_request_complete(self, event: Any) -> Any:
        return await self._slowly(event)


class Hired(Struct):
    """An agent, how it is configured, and its failure mode on the route."""

    agent: Scripted
    config: AgentConfig
    failure_mode: FailureMode

    @property
    def closed(self) -> bool:
        """Whether nothing may pass that it has not seen."""
        return self.failure_mode is FailureMode.CLOSED and self.config.enforce

    @property
    def writes(self) -> bool:
        return self.config.body_access == "write"

    def hears(self, event_type: EventType) -> bool:
        return event_type in self.agent.events

    def outcome(self, shown: Shown) -> str:
        """``allow``, ``provisional``, ``deny`` or ``fail``."""
        outcome = shown.reaction.outcome(writes=self.writes, event_type=shown.event.event_type)
        return "provisional" if outcome == "deny" and shown.reaction.needs_more else outcome


_EVENTS: Final = tuple(sorted(frozenset(EventType) - {EventType.CONFIGURE, EventType.GUARDRAIL_INSPECT}))
_MODES: Final = (BodyMode.BUFFER, BodyMode.STREAM, BodyMode.hybrid(1), BodyMode.hybrid(6), BodyMode.hybrid(1000))
_BREAKERS: Final = (
    None,
    CircuitBreakerConfig(),
    CircuitBreakerConfig(failure_threshold=1, success_threshold=1, reset_timeout=1e6),
    CircuitBreakerConfig(failure_threshold=1, success_threshold=1, reset_timeout=1e-9),
)


def hire(choices: Choices, number: int, *, backend: str) -> Hired:
    """An agent of any kind."""
    mask = choices.byte()
    events = frozenset(event for bit, event in enumerate(_EVENTS) if not mask >> bit & 1)
    kind = choices.pick((Scripted, Slow))
    reactions = [reaction(choices) for _ in choices.times(8)]
    agent = kind(events, reactions, backend == "asyncio")
    failure_mode = choices.pick((FailureMode.CLOSED, FailureMode.OPEN))
    config = AgentConfig(
        f"agent-{number}",
        agent,
        failure_mode=failure_mode,
        timeout=TIMEOUT,
        chunk_timeout=TIMEOUT,
        max_concurrent_calls=choices.pick((100, 100, 1)),
        circuit_breaker=choices.pick(_BREAKERS),
        request_body_mode=choices.pick(_MODES),
        response_body_mode=choices.pick(_MODES),
        max_request_body_bytes=choices.pick((None, None, 3, 20)),
        max_response_body_bytes=choices.pick((None, None, 3, 20)),
        body_access="write" if choices.flag() else "read",
        enforce=not choices.one_in(4),
    )
    if choices.one_in(4):
        failure_mode = choices.pick((FailureMode.OPEN, FailureMode.CLOSED))
    return Hired(agent, config, failure_mode)
