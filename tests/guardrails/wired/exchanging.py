"""Guardrails, apps and exchanges for the tests of guardrails around an app."""

import random
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentMiddleware,
    AuditRecord,
    Detection,
    GuardrailInspectEvent,
    GuardrailResponse,
    TextSpan,
)
from asgi_agents.guardrails import Block, Decision, Flag, Guardrail, Redact, TextGuardrail, ToolPolicy, Window
from asgi_agents.guardrails.slots import KINDS
from tests.guardrails.detectors import CARD, EMAIL, HOLD, Detector, detector, settled
from tests.support.asgi import Client

ENTITY: Final = "alice.smith@example.com"
SSE: Final = "text/event-stream"
CHAT: Final = "/v1/chat/completions"
#: Where requests of each sample's dialect go.
PATHS: Final = {
    "chat": CHAT,
    "anthropic": "/v1/messages",
    "responses": "/v1/responses",
    "gemini": "/v1beta/models/gemini:streamGenerateContent",
    "gemini array": "/v1beta/models/gemini:streamGenerateContent",
    "ollama": "/api/chat",
    "ui message": "/ui",
    "lines": "/lines",
    "events": "/events",
    "text": "/text",
    "pointers": "/say",
    "mcp": "/mcp",
}
_EMAILS: Final = detector(EMAIL)


class Finder(TextGuardrail):
    """Does what a detector finds, without suspending. What it was shown is in ``windows``."""

    hold = HOLD

    def __init__(self, find: Detector = _EMAILS) -> None:
        self.find = find
        self.windows: list[Window] = []

    async def check(self, window: Window) -> Sequence[Decision]:
        self.windows.append(window)
        return self.find(window)


class SettlingFinder(Finder):
    """The same; it knows what is settled."""

    def settled(self, text: str) -> int:
        return settled(text)


class SlowFinder(Finder):
    """The same; it takes its time.

    :param seconds: returns how long.
    """

    def __init__(self, find: Detector = _EMAILS, seconds: Callable[[], float] = lambda: 0.01) -> None:
        super().__init__(find)
        self.seconds = seconds
        self.at_once = 0
        self.most_at_once = 0

    async def check(self, window: Window) -> Sequence[Decision]:
        self.windows.append(window)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await anyio.sleep(self.seconds())
        finally:
            self.at_once -= 1
        return self.find(window)


class Detecting(Agent):
    """An agent that knows no windows: it answers with detections of what a pattern finds."""

    def __init__(self, pattern: re.Pattern[str] = EMAIL, replacement: str | None = "[0]") -> None:
        self.pattern = pattern
        self.replacement = replacement
        self.events_heard: list[GuardrailInspectEvent] = []

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        self.events_heard.append(event)
        detections = [
            Detection(
                category="email",
                description="an address",
                span=TextSpan(match.start(), match.end()),
                replacement=self.replacement,
            )
            for match in self.pattern.finditer(event.content)
        ]
        return GuardrailResponse(detected=bool(detections), confidence=1.0, detections=detections)


class Rewriting(Agent):
    """An agent that says what the text should be, and not what it has found."""

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse:
        after = EMAIL.sub("[0]", event.content)
        found = after != event.content
        return GuardrailResponse(detected=found, confidence=1.0, redacted_content=after if found else None)


def blocking(*words: str, reason: str = "the policy says no") -> Detector:
    """Blocks a text with one of these in it."""

    def find(window: Window) -> list[Decision]:
        return [Block(reason)] if any(word in window.text for word in words) else []

    return find


def flagging(window: Window) -> list[Decision]:
    return [Flag(match.start(), match.end(), "email") for match in EMAIL.finditer(window.text, window.fresh)]


def failing(window: Window) -> list[Decision]:
    raise RuntimeError(f"this went wrong: {window.text}")


def redacting_app_text(window: Window) -> list[Decision]:
    return [Redact(match.start(), match.end(), "[card]") for match in CARD.finditer(window.text, window.fresh)]


class Sending:
    """An app that reads its request and answers with pieces of a body.

    :param pieces: of the body; a number is seconds that it waits.
    :param headers: beside the content-type.
    """

    def __init__(
        self,
        pieces: Iterable[bytes | float],
        media_type: str | None = SSE,
        *,
        status: int = 200,
        headers: Sequence[tuple[bytes, bytes]] = (),
        length: bool = False,
    ) -> None:
        self.pieces = list(pieces)
        self.status = status
        self.response_headers = list(headers)
        if media_type is not None:
            self.response_headers.append((b"content-type", media_type.encode()))
        if length:
            total = sum(len(piece) for piece in self.pieces if isinstance(piece, bytes))
            self.response_headers.append((b"content-length", b"%d" % total))
        self.calls = 0
        self.scope: Scope = {}
        self.received: list[Message] = []
        #: How many pieces it has sent, the one that it was stopped at included.
        self.sent = 0
        self.raised: BaseException | None = None
        self.finished = False

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.received)

    def header(self, name: bytes) -> bytes | None:
        values = [value for key, value in self.scope["headers"] if key.lower() == name]
        assert len(values) <= 1, f"{name!r} more than once"
        return values[0] if values else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        self.scope = scope
        try:
            while True:
                message = await receive()
                self.received.append(message)
                if message["type"] != "http.request" or not message.get("more_body", False):
                    break
            await send({"type": "http.response.start", "status": self.status, "headers": self.response_headers})
            for piece in self.pieces:
                if isinstance(piece, bytes):
                    self.sent += 1
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                else:
                    await anyio.sleep(piece)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            self.finished = True
        except BaseException as exc:
            self.raised = exc
            raise


class Guarded:
    """An app behind guardrails, and its audit records."""

    def __init__(
        self, app: ASGIApp, agents: Iterable[AgentConfig], guardrails: Iterable[Guardrail | ToolPolicy], **options: Any
    ) -> None:
        self.records: list[AuditRecord] = []
        self.middleware = AgentMiddleware(
            app, agents=list(agents), guardrails=list(guardrails), on_audit=self.records.append, **options
        )

    async def call(self, client: Client) -> Client:
        await client.call(self.middleware)
        return client

    @property
    def record(self) -> AuditRecord:
        (record,) = self.records
        return record


def one(app: ASGIApp, agent: Agent, on: Iterable[Any] = KINDS, **options: Any) -> Guarded:
    """``app`` behind one guardrail. Options are those of the guardrail, the agent or the middleware, by their names."""
    of_guardrail = {
        name: options.pop(name)
        for name in ("action", "window", "hold", "max_hold", "in_flight", "threshold", "categories", "when", "overlap")
        if name in options
    }
    of_agent = {
        name: options.pop(name) for name in ("failure_mode", "timeout", "enforce", "circuit_breaker") if name in options
    }
    return Guarded(app, [AgentConfig("g", agent, **of_agent)], [Guardrail("g", on=on, **of_guardrail)], **options)


def asking(path: str, body: bytes = b"", media_type: str | None = "application/json", **options: Any) -> Client:
    """A request."""
    headers = list(options.pop("headers", ()))
    if media_type is not None:
        headers.append((b"content-type", media_type.encode()))
    return Client("POST", path, headers=headers, body=body, **options)


def seeded(*parts: object) -> random.Random:
    return random.Random(" ".join(map(str, parts)))  # noqa: S311
