"""Agents whose answers depend on what they are shown and on nothing else, and requests to show to them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from anyio.lowlevel import checkpoint

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentMiddleware,
    AgentResponse,
    AuditMetadata,
    BodyMutation,
    Detection,
    Event,
    EventType,
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
from asgi_agents.protocol.stream import correlation_id_of
from asgi_agents.recording.reading import RecordedExchange, Traffic
from tests.support.asgi import App, Client, body, start

#: What changes an answer: given an event, whether the agent answers it otherwise than before.
Changes = Callable[[Any], bool]
_HEADS: Final = (
    None,
    None,
    AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "ada"), HeaderOp.remove("x-forged")]),
    AgentResponse.allow(audit=AuditMetadata(tags=("odd",), confidence=0.25)),
    AgentResponse.block(403, "not like this", audit=AuditMetadata(rule_ids=("942100",))),
    AgentResponse.redirect("/elsewhere", 307),
)
_OTHER: Final = AgentResponse.block(418, "changed")
_OTHER_FRAME: Final = AgentResponse.websocket_close(4018, "changed")


def number_of(*parts: object) -> int:
    """A number that depends on the parts, and is the same in every process."""
    return crc32(repr(parts).encode())


class Judge(Agent):
    """Hears everything but ``configure``.

    :param changes: events that it answers otherwise than a Judge without.
    :param suspends: whether its hooks suspend.
    """

    def __init__(self, changes: Changes = lambda event: False, *, suspends: bool = False) -> None:
        self.heard: list[Event] = []
        self._changes = changes
        self._suspends = suspends

    @property
    def events(self) -> frozenset[EventType]:
        return frozenset(EventType) - {EventType.CONFIGURE}

    async def _begin(self, event: Event) -> bool:
        self.heard.append(event)
        # Of one connection longer than of another, so that one overtakes the other.
        for _ in range(1 + number_of(correlation_id_of(event)) % 5 if self._suspends else 0):
            await checkpoint()
        return self._changes(event)

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        changed = await self._begin(event)
        return _OTHER if changed else _HEADS[number_of(event.uri) % len(_HEADS)]

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        if await self._begin(event):
            return _OTHER
        if number_of(event.data) % 3 == 0:
            return AgentResponse.allow(request_body_mutation=BodyMutation(event.data.upper(), event.chunk_index))
        return None

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        if await self._begin(event):
            return _OTHER
        return AgentResponse.allow(response_headers=[HeaderOp.set("x-status", str(event.status))])

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        if await self._begin(event):
            return _OTHER
        return AgentResponse.block(502, "leak") if number_of(event.data) % 5 == 0 else None

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        if await self._begin(event):
            return _OTHER_FRAME
        return AgentResponse.websocket_drop() if number_of(event.data) % 4 == 0 else None

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        if await self._begin(event):
            return GuardrailResponse(detected=True, confidence=0.5)
        found = event.content.find("ada@example.com")
        if found < 0:
            return GuardrailResponse(detected=False)
        span = TextSpan(found, found + len("ada@example.com"))
        detection = Detection(category="email", description="an address", span=span, replacement="[email]")
        return GuardrailResponse(detected=True, confidence=0.9, detections=(detection,))

    async def on_request_complete(self, event: Any) -> None:
        await self._begin(event)


class Heads(Agent):
    """Does what it is told with the heads of requests."""

    def __init__(self, react: Callable[[RequestHeadersEvent], Any]) -> None:
        self._react = react

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        answer: AgentResponse | None = self._react(event)
        return answer


def fail(exc: BaseException) -> Any:
    """Raise it, where only an expression can stand."""
    raise exc


def answering(data: bytes = b"hello") -> App:
    """An app that answers each request so."""
    return App(start(200, (b"content-type", b"text/plain")), body(data))


def guarded(agent: Any, **settings: Any) -> AgentMiddleware:
    """An app that answers each request, behind an agent ``waf``."""
    return AgentMiddleware(answering(), agents=[AgentConfig("waf", agent, **settings)])


async def ask(middleware: AgentMiddleware, path: str, data: bytes | None = None, *headers: tuple[bytes, bytes]) -> int:
    """Send one request; the status of its response."""
    client = Client("GET" if data is None else "POST", path, body=data, headers=headers)
    await client.call(middleware)
    assert client.status is not None
    return client.status


async def ask_all(middleware: AgentMiddleware, count: int, *, named: bool = False) -> list[int]:
    """Send so many requests, no two alike, every other of them with a body; the statuses.

    ``named``: each says which correlation id it has, so that it has the same one in every run.
    """
    statuses = []
    for number in range(count):
        headers = [(b"x-request-id", b"r-%d" % number)] if named else []
        data = b"piece %d" % number if number % 2 else None
        statuses.append(await ask(middleware, f"/item/{number}", data, *headers))
    return statuses


def exchanges_in(path: Path) -> Sequence[RecordedExchange]:
    """All that was recorded, in the order in which the calls began."""
    with Traffic(path) as traffic:
        return list(traffic.exchanges())


def text_in(path: Path) -> str:
    """A whole file."""
    return path.read_text()
