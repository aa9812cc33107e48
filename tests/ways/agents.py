"""The agents that judge all cases, each by what its row says. A class for each kind."""

import re
from collections import defaultdict
from collections.abc import Sequence

import anyio

from asgi_agents import (
    Agent,
    AgentResponse,
    Event,
    EventType,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    WebSocketFrameEvent,
)
from asgi_agents.guardrails import Block, Decision, Redact, TextGuardrail, Window

from .case import Kind
from .table import BY_SLUG

Answer = AgentResponse | None
EMAIL = re.compile(r"\b\w{1,20}@\w{1,12}\.\w{1,6}")


class Judge(Agent):
    """Finds its case by the path, and keeps it for the other events of the exchange.

    :ivar heard: the events that it has received, by the value of the header ``x-run``.
    """

    def __init__(self) -> None:
        self.heard: defaultdict[str, set[EventType]] = defaultdict(set)
        self._open: dict[str, tuple[str, str]] = {}

    async def judge(self, event: Event) -> Answer:
        if isinstance(event, RequestHeadersEvent):
            slug, run = re.split("[/?]", event.uri)[1], event.header("x-run") or ""
            self._open[event.correlation_id] = slug, run
        else:
            slug, run = self._open[event.correlation_id]  # type: ignore[union-attr]
        self.heard[run].add(event.event_type)
        said = BY_SLUG[slug].answers.get(event.event_type)
        if said == "never":
            await anyio.sleep_forever()
        if isinstance(said, Exception):
            raise said
        return said(event) if callable(said) else said  # type: ignore[return-value]


class Heads(Judge):
    async def on_request_headers(self, event: RequestHeadersEvent) -> Answer:
        return await self.judge(event)


class _Followed(Heads):
    """Is told when an exchange is over."""

    async def on_request_complete(self, event: RequestCompleteEvent) -> Answer:
        answer = await self.judge(event)
        del self._open[event.correlation_id]
        return answer


class Bodies(_Followed):
    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> Answer:
        return await self.judge(event)


class Responses(_Followed):
    async def on_response_headers(self, event: ResponseHeadersEvent) -> Answer:
        return await self.judge(event)

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> Answer:
        return await self.judge(event)


class Messages(_Followed):
    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> Answer:
        return await self.judge(event)


class Texts(TextGuardrail):
    """Redacts addresses of mail, and blocks one word."""

    hold = 40

    def __init__(self) -> None:
        self.heard: defaultdict[str, set[EventType]] = defaultdict(set)

    async def check(self, window: Window) -> Sequence[Decision]:
        if "FORBIDDEN" in window.text:
            return [Block("forbidden")]
        return [Redact(*match.span(), "[email]") for match in EMAIL.finditer(window.text, window.fresh)]


def agent_of(kind: Kind) -> Judge | Texts:
    """A new agent of that kind."""
    made: Judge | Texts = globals()[kind.value]()
    return made
