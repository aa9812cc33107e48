"""The agent that all of the processes run: stamps what it sees, and blocks poison.

Its environment says who it is. It is slow from ``SIGUSR1`` to ``SIGUSR2``.
"""

import os
import random
import signal
from types import FrameType

import anyio
from anyio.lowlevel import checkpoint

from asgi_agents import (
    Agent,
    AgentResponse,
    BodyMutation,
    Detection,
    GuardrailInspectEvent,
    GuardrailResponse,
    HeaderOp,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    TextSpan,
    WebSocketFrameEvent,
)
from asgi_agents.serve import agent_app

from .stamps import POISON, Seal
from .texts import SECRET as SECRET_TEXT
from .texts import replacement

#: Names in the environment of an agent's process.
AGENT, SECRET = "CHAOS_AGENT", "CHAOS_SECRET"
#: The code and the reason with which it closes websockets.
POISON_CLOSE = (1008, "poison")

# Seconds that a slow agent takes for an answer, at the most.
_SLOWEST = 1.5


def token_of(correlation_id: str) -> str:
    """The id that the client has given. The process of the app has added a suffix that no other has."""
    return correlation_id.partition("~")[0]


class Inspector(Agent):
    """Leaves a stamp on each head, and wraps each piece of a body."""

    def __init__(self) -> None:
        self._seal = Seal(os.environ[AGENT], bytes.fromhex(os.environ[SECRET]))
        self._slow = False
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._told)

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        await self._think()
        token, seal = token_of(event.correlation_id), self._seal
        if event.header("x-poison") is not None:
            return self._block(token)
        return AgentResponse.allow(
            request_headers=[HeaderOp.set(f"x-inspected-{seal.agent}", seal.stamp(token, "request"))],
            response_headers=[HeaderOp.set(f"x-accepted-{seal.agent}", seal.stamp(token, "accept"))],
        )

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        await self._think()
        if POISON in event.data:
            return self._block(token_of(event.correlation_id))
        if not event.data:
            return None
        wrapped = self._seal.wrap(token_of(event.correlation_id), "request", event.data)
        return AgentResponse.allow(request_body_mutation=BodyMutation(wrapped, event.chunk_index))

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse:
        await self._think()
        stamp = self._seal.stamp(token_of(event.correlation_id), "response", b"%d" % event.status)
        return AgentResponse.allow(response_headers=[HeaderOp.set(f"x-response-{self._seal.agent}", stamp)])

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        await self._think()
        if POISON in event.data:
            return self._block(token_of(event.correlation_id))
        if not event.data:
            return None
        wrapped = self._seal.wrap(token_of(event.correlation_id), "response", event.data)
        return AgentResponse.allow(response_body_mutation=BodyMutation(wrapped, event.chunk_index))

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        await self._think()
        return AgentResponse.websocket_close(*POISON_CLOSE) if POISON in event.data else None

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        await self._think()
        found = [
            Detection(
                category="secret",
                description="",
                span=TextSpan(*match.span()),
                replacement=replacement(self._seal, token_of(event.correlation_id), match[0]),
            )
            for match in SECRET_TEXT.finditer(event.content)
        ]
        return GuardrailResponse(detected=bool(found), detections=found)

    def _block(self, token: str) -> AgentResponse:
        headers = {f"x-blocked-{self._seal.agent}": self._seal.stamp(token, "blocked")}
        return AgentResponse.block(403, "poison", headers=headers)

    async def _think(self) -> None:
        if self._slow:
            await anyio.sleep(random.uniform(0, _SLOWEST))  # noqa: S311 - no secret
        else:
            await checkpoint()

    def _told(self, number: int, frame: FrameType | None) -> None:
        self._slow = number == signal.SIGUSR1


class Reader(Inspector):
    """Leaves a stamp on each head, and reads bodies. More can't be said over gRPC."""

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        await self._think()
        return self._block(token_of(event.correlation_id)) if POISON in event.data else None

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        await self._think()
        return self._block(token_of(event.correlation_id)) if POISON in event.data else None


if AGENT in os.environ:
    #: For the agent behind HTTP.
    app = agent_app(Inspector())
