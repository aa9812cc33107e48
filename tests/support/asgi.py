"""The server's side of a connection, made by hand, for tests in which it matters what happens when.

Nothing in here yields unless it is told to: like a server whose sockets are always ready.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from inspect import isawaitable
from typing import Any

import anyio
from anyio.lowlevel import checkpoint
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from trio.testing import MockClock

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    Event,
    EventType,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
)
from asgi_agents.manager import registry_of

# An event loop on which hours pass in no time, as soon as everybody waits.
VIRTUAL_TIME = ("trio", {"clock": MockClock(autojump_threshold=0)})

DISCONNECT: Message = {"type": "http.disconnect"}

Headers = Iterable[tuple[bytes, bytes]]
Answer = AgentResponse | None
Reaction = Answer | Callable[[Any], Answer | Awaitable[Answer]]


class Client:
    """One request, and what comes back.

    :param body: None for none; bytes are sent at once, with a content-length; a sequence of bytes in as many messages,
        chunked. What is not given here can be given later, see :meth:`give`.
    :param unfinished: there is more body to come than ``body``.
    :param lenient: take messages in any order, where a server would complain.
    """

    def __init__(
        self,
        method: str = "GET",
        path: str = "/",
        *,
        headers: Headers = (),
        body: bytes | Sequence[bytes] | None = None,
        unfinished: bool = False,
        http_version: str = "1.1",
        spec_version: str = "2.4",
        extensions: Mapping[str, Any] | None = None,
        lenient: bool = False,
    ) -> None:
        raw = list(headers)
        if isinstance(body, bytes):
            if not any(name.lower() == b"content-length" for name, _ in raw):
                raw.append((b"content-length", b"%d" % len(body)))
        elif body is not None or unfinished:
            raw.append((b"transfer-encoding", b"chunked"))
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": spec_version},
            "http_version": http_version,
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": raw,
            "client": ("192.0.2.7", 40000),
            "server": ("app.example", 80),
            "extensions": dict(extensions or {}),
            "state": {},
        }
        self.messages: list[Message] = []
        self.received = 0
        self.gone = False
        self._lenient = lenient
        self._raises_when_gone = spec_version >= "2.4"
        self._inbox: deque[Message] = deque()
        self._news: anyio.Event | None = None
        self._gate: anyio.Event | None = None
        self._receiving = False
        self.sending = 0
        pieces = [body or b""] if body is None or isinstance(body, bytes) else list(body)
        if body is not None or not unfinished:
            for index, piece in enumerate(pieces):
                self.give(piece, more=unfinished or index < len(pieces) - 1)

    # What the client does

    def give(self, data: bytes = b"", *, more: bool = False) -> None:
        """Send a piece of the request body."""
        self._inbox.append({"type": "http.request", "body": data, "more_body": more})
        self._notify()

    def leave(self) -> None:
        """Break the connection off; what was sent before is still there to be read."""
        self.gone = True
        self._notify()
        self.take_everything()

    def take_nothing(self) -> None:
        """Stop reading: every send blocks."""
        self._gate = anyio.Event()

    def take_everything(self) -> None:
        """Read on."""
        if self._gate is not None:
            self._gate.set()
            self._gate = None

    # What the client got

    @property
    def starts(self) -> list[Message]:
        return [message for message in self.messages if message["type"] == "http.response.start"]

    @property
    def status(self) -> int | None:
        return self.starts[0]["status"] if self.starts else None

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return list(self.starts[0].get("headers", ())) if self.starts else []

    def header(self, name: bytes) -> bytes | None:
        values = [value for key, value in self.headers if key.lower() == name]
        assert len(values) <= 1, f"{name!r} more than once"
        return values[0] if values else None

    @property
    def chunks(self) -> list[bytes]:
        return [message.get("body", b"") for message in self.messages if message["type"] == "http.response.body"]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def complete(self) -> bool:
        """Whether the response has ended as it should."""
        return any(
            message["type"] in ("http.response.body", "http.response.pathsend", "http.response.zerocopysend")
            and not message.get("more_body", False)
            for message in self.messages
        )

    @property
    def unread(self) -> int:
        """Messages that nobody has read."""
        return len(self._inbox)

    # What the server does

    async def call(self, app: ASGIApp) -> Any:
        """Serve the request with ``app``, in this task."""
        call: Callable[[Scope, Receive, Send], Awaitable[Any]] = app
        return await call(self.scope, self.receive, self.send)

    async def receive(self) -> Message:
        assert not self._receiving, "two readers of receive"
        self._receiving = True
        try:
            while not self._inbox and not self.gone and not self.complete:
                self._news = anyio.Event()
                await self._news.wait()
            self.received += 1
            return self._inbox.popleft() if self._inbox else DISCONNECT
        finally:
            self._receiving = False

    async def send(self, message: Message) -> None:
        self.sending += 1
        try:
            if self._gate is not None:
                await self._gate.wait()
        finally:
            self.sending -= 1
        if self.gone:
            if self._raises_when_gone:
                raise OSError("the client is gone")
            return
        if not self._lenient:
            self._check_order(message)
        self.messages.append(message)
        if self.complete:
            self._notify()

    def _check_order(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.body", "http.response.pathsend", "http.response.zerocopysend"):
            fits = bool(self.starts) and not self.complete
        elif kind == "http.response.start":
            fits = not self.starts
        else:
            fits = True
        if not fits:
            raise RuntimeError(f"Unexpected ASGI message {kind!r}")

    def _notify(self) -> None:
        if self._news is not None:
            self._news.set()


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: bytes = b"", *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


class App:
    """Reads the request and sends ``messages``, and remembers what it saw.

    :param read: whether to read the request body before anything else.
    """

    def __init__(self, *messages: Message, read: bool = True) -> None:
        self.messages = messages or (start(200, (b"content-type", b"text/plain")), body(b"hello"))
        self.read = read
        self.calls = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.extensions: dict[str, Any] | None = None
        self.received: list[Message] = []
        self.finished = False

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.received)

    @property
    def disconnected(self) -> bool:
        return bool(self.received) and self.received[-1]["type"] == "http.disconnect"

    def header(self, name: bytes) -> bytes | None:
        values = [value for key, value in self.headers if key.lower() == name]
        assert len(values) <= 1, f"{name!r} more than once"
        return values[0] if values else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        self.calls += 1
        self.headers = list(scope["headers"])
        self.extensions = scope.get("extensions")
        while self.read:
            message = await receive()
            self.received.append(message)
            if message["type"] != "http.request" or not message.get("more_body", False):
                break
        for message in self.messages:
            await send(message)
        self.finished = True
        return "returned by the app"


_NAMES = {
    EventType.REQUEST_HEADERS: "request_headers",
    EventType.REQUEST_BODY_CHUNK: "request_body",
    EventType.RESPONSE_HEADERS: "response_headers",
    EventType.RESPONSE_BODY_CHUNK: "response_body",
    EventType.REQUEST_COMPLETE: "complete",
}


class Probe(Agent):
    """Hears the events that it has a reaction to, and remembers them.

    Reactions are answers, or functions from an event to an answer. Its hooks never suspend.
    """

    def __init__(self, **reactions: Reaction) -> None:
        unknown = set(reactions) - set(_NAMES.values())
        assert not unknown, unknown
        self.heard: list[Event] = []
        self._reactions = reactions

    @property
    def events(self) -> frozenset[EventType]:
        return frozenset(event_type for event_type, name in _NAMES.items() if name in self._reactions)

    def of(self, name: str) -> list[Any]:
        """The events of that name that it heard."""
        return [event for event in self.heard if _NAMES[event.event_type] == name]

    @property
    def chunks(self) -> list[tuple[int, bytes, bool]]:
        """Index, data and finality of the body chunks it heard, in both directions."""
        return [
            (event.chunk_index, event.data, event.is_last)
            for event in self.heard
            if isinstance(event, RequestBodyChunkEvent | ResponseBodyChunkEvent)
        ]

    @property
    def complete(self) -> RequestCompleteEvent:
        """The one and only request_complete that it heard."""
        (event,) = self.of("complete")
        assert isinstance(event, RequestCompleteEvent)
        return event

    def _react(self, event: Event) -> Any:
        self.heard.append(event)
        reaction = self._reactions[_NAMES[event.event_type]]
        return reaction(event) if callable(reaction) else reaction

    async def on_request_headers(self, event: RequestHeadersEvent) -> Answer:
        answer: Answer = self._react(event)
        return answer

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> Answer:
        answer: Answer = self._react(event)
        return answer

    async def on_response_headers(self, event: ResponseHeadersEvent) -> Answer:
        answer: Answer = self._react(event)
        return answer

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> Answer:
        answer: Answer = self._react(event)
        return answer

    async def on_request_complete(self, event: RequestCompleteEvent) -> Answer:
        answer: Answer = self._react(event)
        return answer


class SlowProbe(Probe):
    """The same, but its hooks suspend: for a moment, or for as long as its asynchronous reactions do."""

    async def _react_slowly(self, event: Event) -> Answer:
        answer = self._react(event)
        if isawaitable(answer):
            answer = await answer
        else:
            await checkpoint()
        result: Answer = answer
        return result

    async def on_request_headers(self, event: RequestHeadersEvent) -> Answer:
        return await self._react_slowly(event)

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> Answer:
        return await self._react_slowly(event)

    async def on_response_headers(self, event: ResponseHeadersEvent) -> Answer:
        return await self._react_slowly(event)

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> Answer:
        return await self._react_slowly(event)

    async def on_request_complete(self, event: RequestCompleteEvent) -> Answer:
        return await self._react_slowly(event)


class Held:
    """A reaction that waits to be let go, and says when somebody waits.

    The events are made on first use, in the event loop that runs then.
    """

    def __init__(self, answer: Answer = None) -> None:
        self._answer = answer
        self._reached: anyio.Event | None = None
        self._let_go: anyio.Event | None = None
        self.calls = 0
        self.cancelled = 0

    @property
    def reached(self) -> anyio.Event:
        self._reached = self._reached or anyio.Event()
        return self._reached

    @property
    def gate(self) -> anyio.Event:
        self._let_go = self._let_go or anyio.Event()
        return self._let_go

    async def __call__(self, event: Event) -> Answer:
        self.calls += 1
        self.reached.set()
        try:
            await self.gate.wait()
        except BaseException:
            self.cancelled += 1
            raise
        return self._answer


def guarded(app: ASGIApp, *agents: AgentConfig, **options: Any) -> AgentMiddleware:
    """``app`` behind ``agents``."""
    return AgentMiddleware(app, agents=agents, **options)


def assert_nothing_left(manager: AgentManager) -> None:
    """No permit, no half-open slot is taken, nobody waits for one, and no agent is kept from being replaced."""
    assert [
        resolved_route.connections
        for resolved_route in registry_of(manager)._resolved_routes.values()
        if resolved_route.connections
    ] == []
    for agent_id, metrics in manager.metrics.items():
        assert metrics.in_flight == 0, f"{agent_id} still holds permits"
        assert metrics.waiting == 0, f"{agent_id} still has a queue"
        breaker = registry_of(manager).guard(agent_id).breaker
        assert breaker is None or breaker.trials == 0, f"{agent_id} still holds half-open slots"


async def pull(receive: Receive) -> Message:
    """Receive, as a task can."""
    return await receive()


async def push(send: Send, message: Message) -> None:
    """Send, as a task can."""
    await send(message)


async def settle() -> None:
    """Let everything that can run do so until it waits for something that doesn't come."""
    for _ in range(30):
        await checkpoint()


def connection(path: str, method: str = "GET", *, host: str = "a.example", root_path: str = "") -> Scope:
    """The scope of a connection from which routes are found. ``WS`` for a websocket handshake."""
    scope: Scope = {
        "type": "websocket" if method == "WS" else "http",
        "path": path,
        "root_path": root_path,
        "query_string": b"",
        "headers": [(b"host", host.encode())],
        "server": ("server", 80),
        "scheme": "http",
        "http_version": "1.1",
    }
    return {**scope, "subprotocols": []} if method == "WS" else {**scope, "method": method}
