import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing, suppress
from contextvars import ContextVar
from typing import Any, cast

import anyio
import pytest
from anyio.lowlevel import checkpoint
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentContext,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    AuditMetadata,
    AuditRecord,
    Block,
    BodyMode,
    CircuitBreakerConfig,
    ClosedByAgent,
    FailureMode,
    HeaderOp,
    Opcode,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseAborted,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    Route,
    WebSocketDrop,
    WebSocketFrameEvent,
    fastapi_error,
)
from asgi_agents.manager import registry_of
from tests.support.asgi import VIRTUAL_TIME, settle

BLOCK = AgentResponse.block()
DROP = AgentResponse.websocket_drop()
CLOSE = AgentResponse.websocket_close(4001, "enough")
DENIAL_EXTENSION: dict[str, Any] = {"websocket.http.response": {}}

# An app may return something.
AnyApp = Callable[[Scope, Receive, Send], Awaitable[object]]
# An answer, or an exception to raise.
Answer = AgentResponse | Exception | None


class Server:
    """The server's end of one session, about messages out of order as strict as uvicorn."""

    def __init__(self, *frames: str | bytes, then_leaves: bool = False) -> None:
        self.sent: list[Message] = []
        self.on_close: Callable[[], Awaitable[object]] | None = None
        self.complaint: Exception = OSError("the client is gone")
        self._incoming: deque[Message] = deque([{"type": "websocket.connect"}])
        self._arrived = anyio.Event()
        self._over = False
        self._client_gone = False
        for frame in frames:
            self.client_sends(frame)
        if then_leaves:
            self.client_leaves()

    def client_sends(self, frame: str | bytes) -> None:
        self.hands_on({"type": "websocket.receive", "text" if isinstance(frame, str) else "bytes": frame})

    def client_leaves(self) -> None:
        self.hands_on({"type": "websocket.disconnect", "code": 1001, "reason": "going away"})

    def hands_on(self, message: Message) -> None:
        self._incoming.append(message)
        self._arrived.set()

    async def receive(self) -> Message:
        while not self._incoming:
            self._arrived = anyio.Event()
            await self._arrived.wait()
        message = self._incoming.popleft()
        if message["type"] == "websocket.disconnect":
            self._client_gone = True
        return message

    async def send(self, message: Message) -> None:
        if self._over:
            raise RuntimeError(f"Unexpected ASGI message {message['type']!r}, after sending 'websocket.close'.")
        if self._client_gone:
            raise self.complaint
        self.sent.append(message)
        if message["type"] == "websocket.close":
            self._over = True
            self.hands_on({**message, "type": "websocket.disconnect"})
            if self.on_close is not None:
                await self.on_close()
        elif message["type"] == "websocket.http.response.body":
            self._over = not message.get("more_body", False)

    @property
    def types(self) -> list[str]:
        return [message["type"].removeprefix("websocket.") for message in self.sent]

    @property
    def frames(self) -> list[str | bytes]:
        """What the client got."""
        return [
            message["text"] if message.get("bytes") is None else message["bytes"]
            for message in self.sent
            if message["type"] == "websocket.send"
        ]

    @property
    def close(self) -> tuple[int, str] | None:
        for message in self.sent:
            if message["type"] == "websocket.close":
                return message["code"], message["reason"]
        return None


class App:
    """Accepts, sends what it is given, and collects what it gets until the end."""

    def __init__(self, *frames: str | bytes) -> None:
        self.frames = frames
        self.received: list[Message] = []
        self.headers: list[tuple[bytes, bytes]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers = scope["headers"]
        await accept(receive, send)
        for frame in self.frames:
            await send_frame(send, frame)
        while not self.received or self.received[-1]["type"] == "websocket.receive":
            self.received.append(await receive())

    @property
    def called(self) -> bool:
        return self.headers is not None

    @property
    def got(self) -> list[str | bytes]:
        """The frames that it was given."""
        return [
            message["text"] if message.get("bytes") is None else message["bytes"]
            for message in self.received
            if message["type"] == "websocket.receive"
        ]

    @property
    def disconnect(self) -> Message:
        assert self.received[-1]["type"] == "websocket.disconnect"
        return self.received[-1]


async def accept(receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})


async def send_frame(send: Send, frame: str | bytes) -> None:
    await send({"type": "websocket.send", "text" if isinstance(frame, str) else "bytes": frame})


async def send_close(send: Send) -> None:
    await send({"type": "websocket.close", "code": 1000, "reason": ""})


class Judge(Agent):
    """Answers frames by what is in them."""

    def __init__(self, answers: Mapping[bytes, Answer] | None = None) -> None:
        self.answers = answers or {}
        self.frames: list[WebSocketFrameEvent] = []

    @property
    def saw(self) -> list[bytes]:
        return [event.data for event in self.frames]

    def judge(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        self.frames.append(event)
        answer = self.answers.get(event.data)
        if isinstance(answer, Exception):
            raise answer
        return answer


class AtOnce(Judge):
    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        return self.judge(event)


class Suspending(Judge):
    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        await checkpoint()
        return self.judge(event)


class Held(Judge):
    """Keeps the frames in ``holds`` until their event is set."""

    def __init__(self, *holds: bytes, answers: Mapping[bytes, Answer] | None = None) -> None:
        super().__init__(answers)
        self.holds = {data: anyio.Event() for data in holds}

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        answer = self.judge(event)
        if event.data in self.holds:
            await self.holds[event.data].wait()
        return answer


class Stubborn(Held):
    """Does not let a call be cancelled while it holds a frame."""

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        answer = None
        with anyio.CancelScope(shield=True):
            answer = await super().on_websocket_frame(event)
        return answer


@pytest.fixture(params=[AtOnce, Suspending])
def judge(request: pytest.FixtureRequest) -> type[Judge]:
    """Agents that answer without suspending are taken another way than those that may."""
    kind: type[Judge] = request.param
    return kind


class Head(Agent):
    """Answers every handshake the same."""

    def __init__(self, answer: Answer = None) -> None:
        self.answer = answer
        self.heard: list[RequestHeadersEvent] = []

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        self.heard.append(event)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Completions(Agent):
    def __init__(self) -> None:
        self.heard: list[RequestCompleteEvent] = []

    async def on_request_complete(self, event: RequestCompleteEvent) -> None:
        self.heard.append(event)


def configured(agent: Agent, agent_id: str = "judge", **options: Any) -> AgentConfig:
    """With a deadline that no machine is too slow for."""
    return AgentConfig(agent_id, agent, **{"timeout": 30.0} | options)


def guarded(app: AnyApp, *agents: Agent | AgentConfig, **options: Any) -> AgentMiddleware:
    configs = [
        agent if isinstance(agent, AgentConfig) else configured(agent, f"agent-{index}")
        for index, agent in enumerate(agents)
    ]
    return AgentMiddleware(cast(ASGIApp, app), agents=configs, **options)


def websocket_scope(path: str = "/ws", **changes: Any) -> Scope:
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"example.com"), (b"upgrade", b"websocket")],
        "client": ("203.0.113.9", 4321),
        "server": ("192.0.2.1", 80),
        "subprotocols": [],
        "state": {},
        "extensions": {},
        **changes,
    }


async def run(middleware: ASGIApp, server: Server, path: str = "/ws", **changes: Any) -> Scope:
    """A whole session in this task; returns its scope."""
    scope = websocket_scope(path, **changes)
    with anyio.fail_after(10):
        await middleware(scope, server.receive, server.send)
    return scope


async def frame_event(data: bytes) -> WebSocketFrameEvent:
    return WebSocketFrameEvent(
        correlation_id="c-1", opcode=Opcode.TEXT, data=data, client_to_server=True, frame_index=0, client_ip=""
    )


def assert_idle(manager: AgentManager) -> None:
    """Nothing is held of any agent."""
    for agent_id, metrics in manager.metrics.items():
        assert (metrics.in_flight, metrics.waiting) == (0, 0), agent_id
        breaker = registry_of(manager).guard(agent_id).breaker
        assert breaker is None or breaker.trials == 0, agent_id


def tasks() -> set[int]:
    return {task.id for task in anyio.get_running_tasks()}


# The handshake


async def test_an_allowed_handshake_reaches_the_app() -> None:
    app, server, head = App(), Server(then_leaves=True), Head()
    await run(guarded(app, head), server)
    assert app.called
    assert server.types == ["accept"]
    assert len(head.heard) == 1


async def test_the_handshake_event_describes_the_upgrade_request() -> None:
    head = Head()
    await run(
        guarded(App(), head, routes=[Route("/chat/{room}", ["agent-0"])]),
        Server(then_leaves=True),
        "/chat/7",
        query_string=b"token=%20x",
        headers=[(b"host", b"example.com"), (b"x-request-id", b"req-1"), (b"cookie", b"a=\xff")],
    )
    (event,) = head.heard
    assert event.method == "GET"
    assert event.uri == "/chat/7?token=%20x"
    assert event.header("cookie") == "a=\xff"
    assert event.correlation_id == "req-1"
    assert (event.metadata.client_ip, event.metadata.client_port) == ("203.0.113.9", 4321)
    assert event.metadata.route_id == "/chat/{room}"
    assert event.metadata.server_name == "example.com"


DENIALS = [
    pytest.param(
        AgentResponse.block(401, "no key", headers={"www-authenticate": "ApiKey"}),
        (401, b"no key", {b"www-authenticate": b"ApiKey", b"content-type": b"text/plain; charset=utf-8"}),
        (1008, "no key"),
        id="block",
    ),
    pytest.param(AgentResponse.block(), (403, b"Forbidden", {}), (1008, "Blocked"), id="block without a body"),
    pytest.param(
        AgentResponse.redirect("https://example.org/login", 307),
        (307, b"", {b"location": b"https://example.org/login"}),
        (1008, "Redirected"),
        id="redirect",
    ),
    pytest.param(
        AgentResponse.challenge("bearer", {"realm": "ws"}),
        (401, b"Unauthorized", {b"www-authenticate": b'Bearer realm="ws"'}),
        (1008, "Blocked"),
        id="challenge of an auth scheme",
    ),
    pytest.param(
        AgentResponse.challenge("captcha", {"site": "k"}),
        (403, b'{"challenge_type":"captcha","params":{"site":"k"}}', {b"content-type": b"application/json"}),
        (1008, "Blocked"),
        id="challenge of another type",
    ),
    pytest.param(
        AgentResponse.block(403, "wait", needs_more=True),
        (403, b"wait", {}),
        (1008, "wait"),
        id="provisional block, which nothing can turn around",
    ),
]


@pytest.mark.parametrize(("answer", "response", "close"), DENIALS)
async def test_a_denied_handshake_is_answered_with_a_response_where_the_server_can(
    answer: AgentResponse, response: tuple[int, bytes, dict[bytes, bytes]], close: tuple[int, str]
) -> None:
    app, server = App(), Server("too early")
    await run(guarded(app, Head(answer)), server, extensions=DENIAL_EXTENSION)
    assert not app.called
    start, body = server.sent
    status, content, headers = response
    assert start["type"] == "websocket.http.response.start"
    assert start["status"] == status
    assert dict(start["headers"]).items() >= headers.items()
    assert body["type"] == "websocket.http.response.body"
    assert body["body"] == content
    assert not body.get("more_body", False)


@pytest.mark.parametrize(("answer", "response", "close"), DENIALS)
@pytest.mark.parametrize("extensions", [{}, None, {"tls": {}}])
async def test_a_denied_handshake_is_closed_before_accept_elsewhere(
    answer: AgentResponse,
    response: tuple[int, bytes, dict[bytes, bytes]],
    close: tuple[int, str],
    extensions: dict[str, Any] | None,
) -> None:
    app, server = App(), Server("too early")
    await run(guarded(app, Head(answer)), server, extensions=extensions)
    assert not app.called
    assert server.types == ["close"]
    assert server.close == close


async def test_a_denied_handshake_of_a_scope_without_extensions_is_closed() -> None:
    app, server = App(), Server()
    scope = websocket_scope()
    del scope["extensions"]
    await guarded(app, Head(BLOCK))(scope, server.receive, server.send)
    assert not app.called
    assert server.types == ["close"]


@pytest.mark.parametrize("extensions", [{}, DENIAL_EXTENSION])
async def test_a_close_of_the_handshake_keeps_its_code(extensions: dict[str, Any]) -> None:
    app, server = App(), Server()
    await run(guarded(app, Head(CLOSE)), server, extensions=extensions)
    assert not app.called
    assert server.types == ["close"]
    assert server.close == (4001, "enough")


@pytest.mark.parametrize("extensions", [{}, DENIAL_EXTENSION])
@pytest.mark.parametrize(
    "answer",
    [DROP, AgentResponse(decision=Block(), websocket_decision=WebSocketDrop())],
    ids=["drop", "block and drop"],
)
async def test_a_drop_of_the_handshake_lets_nobody_in(answer: AgentResponse, extensions: dict[str, Any]) -> None:
    app, server = App(), Server()
    await run(guarded(app, Head(answer)), server, extensions=extensions)
    assert not app.called
    assert server.types == ["close"]
    assert server.close == (1008, "Blocked")


async def test_a_client_that_left_before_it_could_be_denied_is_sent_nothing() -> None:
    app, server = App(), Server()
    await server.receive()
    server.client_leaves()
    await run(guarded(app, Head(BLOCK)), server, extensions=DENIAL_EXTENSION)
    assert not app.called
    assert server.sent == []


async def test_the_first_agent_in_route_order_that_denies_decides_on_a_handshake() -> None:
    class Late(Head):
        async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
            await anyio.wait_all_tasks_blocked()
            return await super().on_request_headers(event)

    server = Server()
    middleware = guarded(
        App(), Head(), Late(AgentResponse.block(401, "late")), Head(AgentResponse.block(403, "early")), Head()
    )
    scope = await run(middleware, server, extensions=DENIAL_EXTENSION)
    assert server.sent[0]["status"] == 401
    assert scope["state"]["agents"].decision.decided_by == "agent-1"


async def test_request_header_operations_are_for_the_apps_eyes_only() -> None:
    seen: list[tuple[bytes, bytes]] = []
    given = [(b"host", b"example.com"), (b"Cookie", b"secret"), (b"x-user", b"forged")]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(scope["headers"])
        await accept(receive, send)

    answer = AgentResponse.allow(
        request_headers=[HeaderOp.set("X-User", "alice"), HeaderOp.remove("cookie"), HeaderOp.add("x-tag", "a")]
    )
    scope = await run(guarded(app, Head(answer)), Server(), headers=given)
    assert seen == [(b"host", b"example.com"), (b"x-user", b"alice"), (b"x-tag", b"a")]
    assert scope["headers"] is given
    assert given == [(b"host", b"example.com"), (b"Cookie", b"secret"), (b"x-user", b"forged")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({}, [(b"x-a", b"1")], id="without headers"),
        pytest.param({"headers": None}, [(b"x-a", b"1")], id="with None"),
        pytest.param(
            {"headers": [(b"X-A", b"0"), (b"x-b", b"2")], "subprotocol": "soap"},
            [(b"x-b", b"2"), (b"x-a", b"1")],
            id="with headers",
        ),
    ],
)
async def test_response_header_operations_on_the_handshake_are_applied_to_the_accept(
    given: dict[str, Any], expected: list[tuple[bytes, bytes]]
) -> None:
    message = {"type": "websocket.accept", **given}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(message)

    server = Server()
    await run(guarded(app, Head(AgentResponse.allow(response_headers=[HeaderOp.set("x-a", "1")]))), server)
    assert server.sent == [{**given, "type": "websocket.accept", "headers": expected}]
    assert message == {"type": "websocket.accept", **given}


async def test_a_denial_carries_the_response_headers_of_the_agent_that_decided() -> None:
    server = Server()
    await run(
        guarded(
            App(),
            Head(AgentResponse.allow(response_headers=[HeaderOp.set("x-of", "bystander")])),
            Head(AgentResponse.block(response_headers=[HeaderOp.set("x-by", "decider")])),
        ),
        server,
        extensions=DENIAL_EXTENSION,
    )
    headers = dict(server.sent[0]["headers"])
    assert headers[b"x-by"] == b"decider"
    assert b"x-of" not in headers


@pytest.mark.parametrize("extensions", [DENIAL_EXTENSION, {}])
async def test_what_an_agent_says_for_every_response_is_on_the_denial_of_a_handshake_and_on_no_close(
    extensions: dict[str, Any],
) -> None:
    for answer in (BLOCK, RuntimeError("broken")):
        server = Server()
        limiter = Head(AgentResponse.allow(response_headers=[HeaderOp.set("x-ratelimit-remaining", "7", always=True)]))
        await run(guarded(App(), limiter, Head(answer)), server, extensions=extensions)
        if extensions:
            assert dict(server.sent[0]["headers"])[b"x-ratelimit-remaining"] == b"7"
        else:
            assert set(server.sent[0]) == {"type", "code", "reason"}


async def test_a_denial_of_the_handshake_is_rendered_as_the_app_renders_errors() -> None:
    for answer, status, detail in (
        (AgentResponse.block(429, "slow down"), 429, "slow down"),
        (RuntimeError(), 503, "Agent unavailable"),
    ):
        server = Server()
        middleware = guarded(App(), Head(answer), render_error=fastapi_error)
        await run(middleware, server, extensions=DENIAL_EXTENSION)
        assert server.sent[0]["status"] == status
        assert (b"content-type", b"application/json") in server.sent[0]["headers"]
        assert json.loads(server.sent[1]["body"]) == {"detail": detail}


async def test_a_challenge_of_the_handshake_can_be_rendered_by_the_user() -> None:
    server = Server()
    middleware = guarded(
        App(),
        Head(AgentResponse.challenge("captcha")),
        challenge_renderer=lambda challenge, scope: PlainTextResponse(f"solve a {challenge.challenge_type}", 428),
    )
    await run(middleware, server, extensions=DENIAL_EXTENSION)
    assert server.sent[0]["status"] == 428
    assert server.sent[1]["body"] == b"solve a captcha"


@pytest.mark.parametrize("extensions", [{}, DENIAL_EXTENSION])
async def test_an_agent_that_fails_open_lets_the_handshake_pass(extensions: dict[str, Any]) -> None:
    app, server = App(), Server(then_leaves=True)
    agent = configured(Head(ValueError("bug")), failure_mode=FailureMode.OPEN)
    await run(guarded(app, agent), server, extensions=extensions)
    assert app.called
    assert server.types == ["accept"]


async def test_an_agent_that_fails_closed_on_the_handshake_denies_it() -> None:
    app = App()
    server = Server()
    await run(guarded(app, Head(ValueError("bug"))), server, extensions=DENIAL_EXTENSION)
    assert server.sent[0]["status"] == 503
    assert server.sent[1]["body"] == b"Agent unavailable"
    server = Server()
    await run(guarded(app, Head(ValueError("bug"))), server)
    assert server.close == (1011, "Agent error")
    assert not app.called


async def test_a_shadow_agent_lets_handshake_and_frames_pass(judge: type[Judge]) -> None:
    app, server = App("out"), Server("in", then_leaves=True)
    watcher = judge({b"in": CLOSE, b"out": DROP})
    middleware = guarded(
        app, configured(Head(BLOCK), "head", enforce=False), configured(watcher, "frames", enforce=False)
    )
    scope = await run(middleware, server)
    assert server.frames == ["out"]
    assert app.got == ["in"]
    assert app.disconnect["code"] == 1001
    outcomes = {(v.agent_id, v.outcome, v.enforced) for v in scope["state"]["agents"].decision.verdicts}
    assert outcomes == {("head", "block", False), ("frames", "close", False), ("frames", "drop", False)}
    assert middleware.manager.metrics["frames"].shadowed == 2


def test_a_client_meets_a_denied_handshake_as_a_response(anyio_backend: str) -> None:
    app = guarded(Starlette(routes=[WebSocketRoute("/ws", never_called)]), Head(AgentResponse.block(401, "no key")))
    client = TestClient(app, backend=anyio_backend)  # type: ignore[arg-type]
    with pytest.raises(WebSocketDenialResponse) as denial, client.websocket_connect("/ws"):
        pass
    assert denial.value.status_code == 401
    assert denial.value.text == "no key"


async def never_called(websocket: WebSocket) -> None:
    raise AssertionError("the app was called")


# Frames


async def test_frames_of_both_directions_reach_the_agent_as_they_are(judge: type[Judge]) -> None:
    agent, app, server = judge(), App("out 0", b"out 1"), Server("in 0", b"in 1", "in 2", then_leaves=True)
    await run(
        guarded(app, agent, routes=[Route("/ws", ["agent-0"])]), server, headers=[(b"x-request-id", b"session-1")]
    )
    assert [(e.client_to_server, e.frame_index, e.opcode, e.data) for e in agent.frames] == [
        (False, 0, Opcode.TEXT, b"out 0"),
        (False, 1, Opcode.BINARY, b"out 1"),
        (True, 0, Opcode.TEXT, b"in 0"),
        (True, 1, Opcode.BINARY, b"in 1"),
        (True, 2, Opcode.TEXT, b"in 2"),
    ]
    for event in agent.frames:
        assert event.client_ip == "203.0.113.9"
        assert event.route_id == "/ws"
        assert event.correlation_id == "session-1"
        assert event.fin
    assert server.frames == ["out 0", b"out 1"]
    assert app.got == ["in 0", b"in 1", "in 2"]


@pytest.mark.parametrize("client", [None, ("", None), ("::1", 0)])
async def test_the_client_ip_is_what_the_server_tells(judge: type[Judge], client: Any) -> None:
    agent = judge()
    await run(guarded(App(), agent), Server("x", then_leaves=True), client=client)
    assert agent.frames[0].client_ip == ("" if client is None else client[0])


async def test_frames_without_a_route_have_no_route_id(judge: type[Judge]) -> None:
    agent = judge()
    await run(guarded(App(), agent), Server("x", then_leaves=True))
    assert agent.frames[0].route_id is None


async def test_handshake_and_frames_have_the_same_correlation_id(judge: type[Judge]) -> None:
    head, agent = Head(), judge()
    scope = await run(guarded(App("x"), head, agent), Server(then_leaves=True))
    assert agent.frames[0].correlation_id == head.heard[0].correlation_id == scope["state"]["agents"].correlation_id


async def test_empty_messages_are_judged_too(judge: type[Judge]) -> None:
    agent, app, server = judge({b"": DROP}), App("", b""), Server("", b"", then_leaves=True)
    await run(guarded(app, agent), server)
    assert [(e.client_to_server, e.opcode, e.data) for e in agent.frames] == [
        (False, Opcode.TEXT, b""),
        (False, Opcode.BINARY, b""),
        (True, Opcode.TEXT, b""),
        (True, Opcode.BINARY, b""),
    ]
    assert server.frames == []
    assert app.got == []


async def test_a_message_with_both_keys_is_of_the_kind_of_the_one_that_is_not_none(judge: type[Judge]) -> None:
    messages: list[Message] = [
        {"type": "websocket.receive", "bytes": None, "text": "text"},
        {"type": "websocket.receive", "bytes": b"bytes", "text": None},
    ]
    agent, app, server = judge(), App(), Server()
    for message in messages:
        server.hands_on(message)
    server.client_leaves()

    async def talkative(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_all(message: Message) -> None:
            await send(message)
            if message["type"] == "websocket.accept":
                for each in messages:
                    await send({**each, "type": "websocket.send"})

        await app(scope, receive, send_all)

    await run(guarded(talkative, agent), server)
    assert [(e.opcode, e.data) for e in agent.frames] == [(Opcode.TEXT, b"text"), (Opcode.BINARY, b"bytes")] * 2
    assert server.sent[1:] == [{**message, "type": "websocket.send"} for message in messages]
    assert app.received[:-1] == messages


@pytest.mark.parametrize("payload", [b"", b"harmless"])
async def test_a_message_with_two_payloads_takes_nothing_past_the_agents(judge: type[Judge], payload: bytes) -> None:
    """Servers differ in which of the two they send: of an empty and another one, Daphne sends the other."""
    agent, server = judge({b"evil": DROP}), Server()
    both = {"bytes": payload, "text": "evil"}
    received: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.send", **both})
        with anyio.move_on_after(0.01):
            received.append(await receive())

    server.hands_on({"type": "websocket.receive", **both})
    await run(guarded(app, agent), server)
    for message in (*received, *server.sent[1:]):
        for passed in (message.get("bytes"), message.get("text")):
            assert passed is None or (passed.encode() if isinstance(passed, str) else passed) in agent.saw
            assert passed != "evil"


async def test_text_that_is_not_utf_8_is_judged_as_it_is(judge: type[Judge]) -> None:
    agent, app, server = judge(), App("out \udcff"), Server("in \ud800", then_leaves=True)
    await run(guarded(app, agent), server)
    assert agent.saw == [b"out \xed\xb3\xbf", b"in \xed\xa0\x80"]
    assert server.frames == ["out \udcff"]
    assert app.got == ["in \ud800"]


@pytest.mark.parametrize("kind", [bytearray, memoryview])
async def test_agents_are_given_bytes_whatever_the_message_holds(judge: type[Judge], kind: type) -> None:
    agent, server = judge(), Server(then_leaves=True)
    await run(guarded(App(kind(b"data")), agent), server)
    assert agent.saw == [b"data"]
    assert type(agent.saw[0]) is bytes
    assert server.frames == [kind(b"data")]


async def test_frames_go_to_the_agents_of_the_route_only(judge: type[Judge]) -> None:
    everywhere, chat, posts = judge(), judge(), judge()
    middleware = guarded(
        App("x"),
        everywhere,
        chat,
        posts,
        routes=[
            Route("/chat", ["agent-2"], methods=["POST"]),
            Route("/chat", ["agent-1", "agent-0"], methods=["GET"]),
            Route("/quiet", []),
        ],
        default_agents=["agent-0"],
    )
    await run(middleware, Server(then_leaves=True), "/chat")
    assert (len(everywhere.saw), len(chat.saw), len(posts.saw)) == (1, 1, 0)
    await run(middleware, Server(then_leaves=True), "/other")
    assert (len(everywhere.saw), len(chat.saw), len(posts.saw)) == (2, 1, 0)
    await run(middleware, Server(then_leaves=True), "/quiet")
    assert (len(everywhere.saw), len(chat.saw), len(posts.saw)) == (2, 1, 0)


async def test_where_nothing_listens_the_app_gets_the_servers_own_receive_and_send() -> None:
    given: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> str:
        given.extend((scope, receive, send))
        return "returned"

    scope, server = websocket_scope("/quiet"), Server()
    receive, send = server.receive, server.send
    middleware: Any = guarded(app, AtOnce(), routes=[Route("/quiet", [])])
    assert await middleware(scope, receive, send) == "returned"
    assert given[0] is scope
    assert given[1] is receive
    assert given[2] is send


async def test_an_app_is_run_in_the_calling_task_and_its_return_value_returned(judge: type[Judge]) -> None:
    variable: ContextVar[str] = ContextVar("variable")

    async def app(scope: Scope, receive: Receive, send: Send) -> str:
        await accept(receive, send)
        await receive()
        variable.set("by the app")
        return "returned"

    server = Server("x")
    middleware: Any = guarded(app, judge())
    assert await middleware(websocket_scope(), server.receive, server.send) == "returned"
    assert variable.get() == "by the app"


async def test_a_message_that_is_judged_at_once_is_received_without_yielding() -> None:
    """As it is from the server itself: `receive` in a cancelled scope answers if there is something."""
    got: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        with anyio.CancelScope() as cancelled:
            cancelled.cancel()
            got.append(await receive())

    await run(guarded(app, AtOnce()), Server("in"))
    assert got == [{"type": "websocket.receive", "text": "in"}]


async def test_a_message_that_is_judged_at_once_is_sent_without_yielding() -> None:
    """As it is by the server itself: an app that is cancelled can say goodbye in its `finally`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        with anyio.CancelScope() as cancelled:
            cancelled.cancel()
            await send_frame(send, "out")

    server = Server()
    await run(guarded(app, AtOnce()), server)
    assert server.frames == ["out"]


async def test_messages_to_the_app_keep_their_order_however_long_each_is_judged() -> None:
    agent = Held(b"slow")
    app, server = App(), Server("slow", "quick", b"quicker", then_leaves=True)
    async with anyio.create_task_group() as group:
        group.start_soon(run, guarded(app, agent), server)
        await anyio.wait_all_tasks_blocked()
        assert app.got == []
        agent.holds[b"slow"].set()
    assert app.got == ["slow", "quick", b"quicker"]


async def test_messages_to_the_client_keep_their_order_however_long_each_is_judged() -> None:
    agent = Held(b"slow")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        async with anyio.create_task_group() as senders:
            for frame in ("slow", "quick", b"quicker"):
                senders.start_soon(send_frame, send, frame)
                await anyio.wait_all_tasks_blocked()
            assert server.frames == []
            agent.holds[b"slow"].set()

    server = Server()
    await run(guarded(app, agent), server)
    assert server.frames == ["slow", "quick", b"quicker"]


async def test_the_apps_close_does_not_overtake_a_message_that_is_being_judged() -> None:
    agent = Held(b"slow")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        async with anyio.create_task_group() as senders:
            senders.start_soon(send_frame, send, "slow")
            await anyio.wait_all_tasks_blocked()
            senders.start_soon(send_close, send)
            await anyio.wait_all_tasks_blocked()
            agent.holds[b"slow"].set()

    server = Server()
    await run(guarded(app, agent), server)
    assert server.types == ["accept", "send", "close"]


async def test_a_message_to_the_app_that_is_being_judged_holds_up_none_to_the_client() -> None:
    agent, server, got = Held(b"slow"), Server("slow"), []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)

        async def read() -> None:
            got.append(await receive())

        async with anyio.create_task_group() as readers:
            readers.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            await send_frame(send, "out")
            assert server.frames == ["out"]
            assert got == []
            agent.holds[b"slow"].set()

    await run(guarded(app, agent), server)
    assert got == [{"type": "websocket.receive", "text": "slow"}]


async def test_a_message_to_the_client_that_is_being_judged_holds_up_none_to_the_app() -> None:
    agent, server, got = Held(b"slow"), Server("in"), []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        async with anyio.create_task_group() as senders:
            senders.start_soon(send_frame, send, "slow")
            await anyio.wait_all_tasks_blocked()
            got.append(await receive())
            assert server.frames == []
            agent.holds[b"slow"].set()

    await run(guarded(app, agent), server)
    assert got == [{"type": "websocket.receive", "text": "in"}]
    assert server.frames == ["slow"]


async def test_a_receive_is_answered_while_a_send_is_blocked_by_the_server(judge: type[Judge]) -> None:
    server, got = Server("in"), []
    writable = anyio.Event()

    async def send(message: Message) -> None:
        if message["type"] == "websocket.send":
            await writable.wait()
        await server.send(message)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        async with anyio.create_task_group() as senders:
            senders.start_soon(send_frame, send, "out")
            await anyio.wait_all_tasks_blocked()
            got.append(await receive())
            writable.set()

    await guarded(app, judge())(websocket_scope(), server.receive, send)
    assert got == [{"type": "websocket.receive", "text": "in"}]
    assert server.frames == ["out"]


# Drop


async def test_a_dropped_message_is_swallowed_and_the_rest_goes_on(judge: type[Judge]) -> None:
    agent = judge({b"drop": DROP})
    app, server = App("1", "drop", "2"), Server("3", "drop", b"drop", "4", then_leaves=True)
    await run(guarded(app, agent), server)
    assert server.frames == ["1", "2"]
    assert app.got == ["3", "4"]
    assert [event.frame_index for event in agent.frames] == [0, 1, 2, 0, 1, 2, 3]


async def test_all_agents_hear_a_frame_and_the_first_in_route_order_that_denies_decides(judge: type[Judge]) -> None:
    drops, closes = judge({b"x": DROP}), judge({b"x": CLOSE})
    app, server = App(), Server("x", then_leaves=True)
    await run(guarded(app, drops, closes), server)
    assert server.close is None
    assert app.got == []
    server = Server("x", then_leaves=True)
    await run(guarded(App(), closes, drops), server)
    assert server.close == (4001, "enough")


@pytest.mark.parametrize("to_client", [False, True])
async def test_a_message_goes_along_the_chain_as_pieces_of_bodies_do(judge: type[Judge], to_client: bool) -> None:
    """Consecutive readers are asked together, a writer by itself, and none after one that stops it."""
    reader, writer, later = judge(), judge({b"stop": DROP}), judge()
    app = App(*(["stop", "pass"] if to_client else []))
    server = Server(*([] if to_client else ["stop", "pass"]), then_leaves=True)
    await run(guarded(app, reader, configured(writer, "writer", body_access="write"), later), server)
    assert reader.saw == writer.saw == [b"stop", b"pass"]
    assert later.saw == [b"pass"]
    assert (server.frames if to_client else app.got) == ["pass"]


async def test_readers_on_both_sides_of_a_writer_are_not_asked_in_parallel() -> None:
    first, last = Held(b"x"), Suspending()
    agents = [configured(first, "first"), configured(Suspending(), "writer", body_access="write"), configured(last)]
    app, server = App(), Server("x")
    async with anyio.create_task_group() as group:
        group.start_soon(run, guarded(app, *agents), server)
        await settle()
        assert first.saw == [b"x"]
        assert last.saw == []
        first.holds[b"x"].set()
        await settle()
        assert last.saw == [b"x"]
        server.client_leaves()
    assert app.got == ["x"]


async def test_a_drop_wins_over_the_failure_of_another_agent(judge: type[Judge]) -> None:
    app, server = App(), Server("x", then_leaves=True)
    await run(guarded(app, judge({b"x": ValueError("bug")}), judge({b"x": DROP})), server)
    assert app.got == []
    assert server.close is None


# Close


def cut(text: str) -> str:
    """At most 123 bytes of UTF-8, as long as possible."""
    while len(text.encode()) > 123:
        text = text[:-1]
    return text


@pytest.mark.parametrize("code", [1000, 1008, 1011, 3000, 4999])
async def test_a_close_reaches_both_sides_with_code_and_reason(judge: type[Judge], code: int) -> None:
    app, server = App(), Server("x")
    await run(guarded(app, judge({b"x": AgentResponse.websocket_close(code, "since")})), server)
    assert server.close == (code, "since")
    assert app.got == []
    assert app.disconnect == {"type": "websocket.disconnect", "code": code, "reason": "since"}


async def test_a_close_for_what_the_app_sends_reaches_both_sides(judge: type[Judge]) -> None:
    app, server = App("x"), Server()
    await run(guarded(app, judge({b"x": CLOSE})), server)
    assert server.types == ["accept", "close"]
    assert server.close == (4001, "enough")
    assert app.disconnect == {"type": "websocket.disconnect", "code": 4001, "reason": "enough"}


@pytest.mark.parametrize(
    "reason",
    [
        "",
        "a" * 123,
        "a" * 124,
        "a" * 122 + "é",
        "a" * 121 + "é",
        "a" * 121 + "€",
        "a" * 120 + "😀",
        "😀" * 100,
        "\u0301" * 62,
    ],
    ids=lambda reason: f"{len(reason)} characters, {len(reason.encode())} bytes",
)
async def test_a_reason_is_cut_to_what_a_close_frame_holds(judge: type[Judge], reason: str) -> None:
    app, server = App(), Server("x")
    await run(guarded(app, judge({b"x": AgentResponse.websocket_close(4000, reason)})), server)
    assert server.close == (4000, cut(reason))
    assert app.disconnect["reason"] == cut(reason)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (AgentResponse.block(), "Blocked"),
        (AgentResponse.block(429, "slow down"), "slow down"),
        (AgentResponse.block(400, "b" * 200), "b" * 123),
        (AgentResponse.block(200, "not so bad"), "not so bad"),
        (AgentResponse.block(needs_more=True), "Blocked"),
        (AgentResponse.redirect("https://example.org/"), "Redirected"),
        (AgentResponse.challenge("bearer"), "Blocked"),
        (AgentResponse.challenge("captcha"), "Blocked"),
        (AgentResponse(decision=Block(), websocket_decision=WebSocketDrop()), "Blocked"),
    ],
)
@pytest.mark.parametrize("outbound", [False, True], ids=["to the app", "to the client"])
async def test_an_http_decision_on_a_frame_closes_as_a_policy_violation(
    judge: type[Judge], answer: AgentResponse, reason: str, outbound: bool
) -> None:
    app = App("evil") if outbound else App()
    server = Server() if outbound else Server("evil")
    await run(guarded(app, judge({b"evil": answer})), server)
    assert server.frames == []
    assert app.got == []
    assert server.close == (1008, reason)
    assert app.disconnect["code"] == 1008


async def test_an_agent_with_an_unsendable_close_has_failed(judge: type[Judge]) -> None:
    for answer in (
        AgentResponse.websocket_close(1005),
        AgentResponse.websocket_close(1006),
        AgentResponse.websocket_close(999),
        AgentResponse.websocket_close(4000, "\ud800"),
    ):
        server = Server("x")
        await run(guarded(App(), judge({b"x": answer})), server)
        assert server.close == (1011, "Agent error")


async def test_after_a_close_nothing_of_what_the_client_sent_reaches_the_app(judge: type[Judge]) -> None:
    agent = judge({b"x": CLOSE})
    received: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        received.extend([await receive() for _ in range(4)])

    await run(guarded(app, agent), Server("x", "y", b"z", then_leaves=True))
    assert received == [{"type": "websocket.disconnect", "code": 4001, "reason": "enough"}] * 4
    assert agent.saw == [b"x"]


async def test_a_frame_that_is_being_judged_when_the_session_is_closed_does_not_reach_the_app() -> None:
    agent, received = Held(b"in", answers={b"out": CLOSE}), list[Message]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        with anyio.move_on_after(0.01):
            received.append(await receive())
        await send_frame(send, "out")
        agent.holds[b"in"].set()
        await anyio.wait_all_tasks_blocked()
        for _ in range(2):
            received.append(await receive())

    await run(guarded(app, agent), Server("in"))
    assert [message["type"] for message in received] == ["websocket.disconnect"] * 2


async def test_a_close_wakes_an_app_that_waits_for_messages() -> None:
    """The server would only tell it once the client has answered the close."""
    server, received = Server(), list[Message]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)

        async def read() -> None:
            received.append(await receive())

        async with anyio.create_task_group() as readers:
            readers.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            await send_frame(send, "out")

    async def receive() -> Message:
        message = await server.receive()
        if message["type"] == "websocket.disconnect":
            await anyio.sleep_forever()
        return message

    with anyio.fail_after(10):
        await guarded(app, Suspending({b"out": CLOSE}))(websocket_scope(), receive, server.send)
    assert received == [{"type": "websocket.disconnect", "code": 4001, "reason": "enough"}]


@pytest.mark.parametrize("outbound", [False, True], ids=["to the app", "to the client"])
async def test_the_app_hears_of_a_close_before_the_client_has_answered_it(judge: type[Judge], outbound: bool) -> None:
    """A server may wait for the client's half of the closing handshake, which a hostile one never sends."""
    server, received, heard = Server() if outbound else Server("x"), list[Message](), list[Message]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        async with anyio.create_task_group() as senders:
            if outbound:
                senders.start_soon(send_frame, send, "x")
            received.append(await receive())

    async def answer_late() -> None:
        await anyio.wait_all_tasks_blocked()
        heard.extend(received)

    server.on_close = answer_late
    await run(guarded(app, judge({b"x": CLOSE})), server)
    assert heard == [{"type": "websocket.disconnect", "code": 4001, "reason": "enough"}]


async def test_the_apps_own_close_after_an_agents_is_swallowed(judge: type[Judge]) -> None:
    server = Server("x")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        assert (await receive())["type"] == "websocket.disconnect"
        await send({"type": "websocket.close", "code": 1000})
        await send({"type": "websocket.close"})

    await run(guarded(app, judge({b"x": CLOSE})), server)
    assert server.types == ["accept", "close"]
    assert server.close == (4001, "enough")


async def test_an_agents_close_after_the_apps_own_is_not_sent(judge: type[Judge]) -> None:
    """A server still hands out what had arrived before the app closed, and raises on a second close."""
    server = Server("first", "evil")
    received: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        received.append(await receive())
        await send({"type": "websocket.close", "code": 1000, "reason": "done"})
        while received[-1]["type"] != "websocket.disconnect":
            received.append(await receive())

    await run(guarded(app, judge({b"evil": CLOSE})), server)
    assert [message.get("text") for message in received] == ["first", None]
    assert server.types == ["accept", "close"]
    assert server.close == (1000, "done")


@pytest.mark.parametrize("complaint", [OSError("gone"), RuntimeError("after sending 'websocket.close'")])
async def test_an_agents_close_after_the_client_has_left_disturbs_nobody(complaint: Exception) -> None:
    """Servers differ in what they raise."""
    agent, received = Held(b"slow", answers={b"slow": CLOSE}), list[Message]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        async with anyio.create_task_group() as senders:
            senders.start_soon(send_frame, send, "slow")
            await anyio.wait_all_tasks_blocked()
            received.append(await receive())
            agent.holds[b"slow"].set()

    server = Server(then_leaves=True)
    server.complaint = complaint
    await run(guarded(app, agent), server)
    assert received == [{"type": "websocket.disconnect", "code": 1001, "reason": "going away"}]
    assert server.types == ["accept"]


async def test_a_send_that_finds_the_client_gone_once_it_is_judged_raises_what_the_server_does() -> None:
    agent, errors = Held(b"slow"), list[Exception]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)

        async def say() -> None:
            with pytest.raises(OSError, match="the client is gone") as caught:
                await send_frame(send, "slow")
            errors.append(caught.value)

        async with anyio.create_task_group() as senders:
            senders.start_soon(say)
            await anyio.wait_all_tasks_blocked()
            assert (await receive())["type"] == "websocket.disconnect"
            agent.holds[b"slow"].set()

    middleware = guarded(app, agent)
    await run(middleware, Server(then_leaves=True))
    assert [type(error) for error in errors] == [OSError]
    assert_idle(middleware.manager)


@pytest.mark.parametrize("frame", ["x", b"x", ""])
async def test_a_send_after_an_agents_close_raises_oserror(judge: type[Judge], frame: str | bytes) -> None:
    server, errors = Server("evil"), list[Exception]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await receive()
        for _ in range(2):
            with pytest.raises(OSError) as caught:  # noqa: PT011 - the ASGI spec asks for no more than that
                await send_frame(send, frame)
            errors.append(caught.value)

    await run(guarded(app, judge({b"evil": CLOSE})), server)
    assert [type(error) for error in errors] == [ClosedByAgent] * 2
    assert server.frames == []


async def test_messages_that_wait_behind_one_that_is_closed_for_raise_oserror() -> None:
    agent, server, outcomes = Held(b"evil", answers={b"evil": CLOSE}), Server(), list[str]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)

        async def say(frame: str) -> None:
            try:
                await send_frame(send, frame)
            except OSError:
                outcomes.append(frame)

        async with anyio.create_task_group() as senders:
            for frame in ("evil", "good", "better"):
                senders.start_soon(say, frame)
                await anyio.wait_all_tasks_blocked()
            agent.holds[b"evil"].set()

    await run(guarded(app, agent), server)
    assert outcomes == ["good", "better"]
    assert server.types == ["accept", "close"]


@pytest.mark.parametrize("answer", [None, DROP, CLOSE])
async def test_a_message_that_is_being_judged_when_the_session_is_closed_does_not_reach_the_client(
    answer: AgentResponse | None,
) -> None:
    agent, server, errors = Held(b"out", answers={b"evil": CLOSE, b"out": answer}), Server("evil"), list[Exception]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)

        async def say() -> None:
            try:
                await send_frame(send, "out")
            except OSError as exc:
                errors.append(exc)

        async with anyio.create_task_group() as senders:
            senders.start_soon(say)
            await anyio.wait_all_tasks_blocked()
            assert (await receive())["type"] == "websocket.disconnect"
            agent.holds[b"out"].set()

    await run(guarded(app, agent), server)
    assert [type(error) for error in errors] == [ClosedByAgent]
    assert server.types == ["accept", "close"]


async def test_an_app_that_only_sends_ends_with_the_session(judge: type[Judge]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        for count in range(1000):
            await send_frame(send, str(count))

    server = Server()
    await run(guarded(app, judge({b"3": CLOSE})), server)
    assert server.frames == ["0", "1", "2"]
    assert server.types[-1] == "close"


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], ids=["virtual time"])
@pytest.mark.parametrize(
    ("notices", "grace", "seconds"),
    [("nothing", 1.0, 1), ("nothing", 0, 0), ("nothing", 3, 3), ("receives", 1.0, 9), ("sends", 1.0, 9)],
)
async def test_an_app_that_does_not_notice_the_end_of_its_session_is_cancelled_after_the_grace(
    notices: str, grace: float, seconds: float, anyio_backend: object
) -> None:
    lasted: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        began = anyio.current_time()
        try:
            await send_frame(send, "evil")
            if notices == "receives":
                assert (await receive())["type"] == "websocket.disconnect"
            elif notices == "sends":
                with pytest.raises(OSError, match="closed this websocket"):
                    await send_frame(send, "more")
            await anyio.sleep(9)
        finally:
            lasted.append(anyio.current_time() - began)

    server = Server()
    await run(guarded(app, AtOnce({b"evil": CLOSE}), stop_grace=grace), server)
    assert lasted == [pytest.approx(seconds)]
    assert server.types == ["accept", "close"]


async def test_an_app_that_goes_on_sending_after_the_end_of_its_session_lets_others_run(judge: type[Judge]) -> None:
    others = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def other() -> None:
            nonlocal others
            while others < 10:
                others += 1
                await checkpoint()
            group.cancel_scope.cancel()

        await accept(receive, send)
        await send_frame(send, "evil")
        async with anyio.create_task_group() as group:
            group.start_soon(other)
            while True:
                with suppress(OSError):
                    await send_frame(send, "more")

    server = Server()
    with anyio.fail_after(5):
        await run(guarded(app, judge({b"evil": CLOSE})), server)
    assert others == 10


async def send_only(websocket: WebSocket) -> None:
    await websocket.accept()
    while True:
        await websocket.send_text("tick")


async def receive_only(websocket: WebSocket) -> None:
    await websocket.accept()
    while True:
        await websocket.receive_text()


async def read_and_write(websocket: WebSocket) -> None:
    await websocket.accept()

    async def write() -> None:
        for _ in range(2):
            await websocket.send_text("tock")
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(write)
        while True:
            await websocket.receive_text()


@pytest.mark.parametrize(
    ("endpoint", "evil"),
    [(receive_only, b"evil"), (send_only, b"tick"), (read_and_write, b"evil"), (read_and_write, b"tock")],
    ids=["receiving", "sending", "receiving in a task group", "sending in a task group"],
)
async def test_an_endpoint_that_leaves_the_end_of_the_session_unhandled_has_not_failed(
    judge: type[Judge], endpoint: Callable[[WebSocket], Awaitable[None]], evil: bytes
) -> None:
    server = Server("evil")
    await run(guarded(Starlette(routes=[WebSocketRoute("/ws", endpoint)]), judge({evil: CLOSE})), server)
    assert server.close == (4001, "enough")


def test_a_fastapi_endpoint_sees_the_disconnect_and_the_client_the_close(
    anyio_backend: str, judge: type[Judge]
) -> None:
    app, seen = FastAPI(), list[tuple[int, str]]()

    @app.websocket("/ws")
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                await websocket.send_text("re: " + await websocket.receive_text())
        except WebSocketDisconnect as exc:
            seen.append((exc.code, exc.reason))

    app.add_middleware(AgentMiddleware, agents=[configured(judge({b"evil": CLOSE, b"re: hush": DROP}))])
    client = TestClient(app, backend=anyio_backend)  # type: ignore[arg-type]
    with client.websocket_connect("/ws") as websocket:
        for text in ("good", "hush", "fine"):
            websocket.send_text(text)
        assert [websocket.receive_text() for _ in range(2)] == ["re: good", "re: fine"]
        websocket.send_text("evil")
        with pytest.raises(WebSocketDisconnect) as closed:
            websocket.receive_text()
    assert (closed.value.code, closed.value.reason) == (4001, "enough")
    assert seen == [(4001, "enough")]


async def test_what_goes_wrong_with_sending_a_close_is_not_wrapped(judge: type[Judge]) -> None:
    """In a middleware around this one, say."""
    server = Server("x")

    async def send(message: Message) -> None:
        if message["type"] == "websocket.close":
            raise ValueError("of a middleware")
        await server.send(message)

    with anyio.fail_after(10), pytest.raises(ValueError, match="of a middleware"):
        await guarded(App(), judge({b"x": CLOSE}))(websocket_scope(), server.receive, send)


async def test_an_agents_close_that_finds_the_client_gone_is_no_error(judge: type[Judge]) -> None:
    server = Server("x")

    async def send(message: Message) -> None:
        if message["type"] == "websocket.close":
            raise OSError("connection reset")
        await server.send(message)

    app = App()
    with anyio.fail_after(10):
        await guarded(app, judge({b"x": CLOSE}))(websocket_scope(), server.receive, send)
    assert app.disconnect["code"] == 4001


async def test_the_decision_that_closed_the_session_is_there_to_read(judge: type[Judge]) -> None:
    audit = AuditMetadata(rule_ids=("r-1",))
    answer = AgentResponse.websocket_close(4001, "enough", audit=audit)
    scope = await run(guarded(App(), judge(), judge({b"x": answer})), Server("x"))
    context: AgentContext = scope["state"]["agents"]
    assert context.decision.decided_by == "agent-1"
    assert context.decision.close.code == 4001
    assert context.audit == [("agent-1", audit)]


# The app itself refuses


class ResponseJudge(Agent):
    def __init__(self, head: Answer = None, body: Answer = None) -> None:
        self.head, self.body = head, body
        self.heads: list[ResponseHeadersEvent] = []
        self.bodies: list[ResponseBodyChunkEvent] = []

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        self.heads.append(event)
        assert not isinstance(self.head, Exception)
        return self.head

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        self.bodies.append(event)
        if isinstance(self.body, Exception):
            raise self.body
        return self.body


def refusing(*chunks: bytes) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        websocket = WebSocket(scope, receive, send)
        await websocket.receive()
        if len(chunks) == 1:
            await websocket.send_denial_response(PlainTextResponse(chunks[0], 418))
        else:

            async def content() -> Any:
                for chunk in chunks:
                    yield chunk

            async with aclosing(content()) as stream:
                await websocket.send_denial_response(StreamingResponse(stream, 418))

    return app


async def test_a_response_with_which_the_app_refuses_is_inspected() -> None:
    agent, server = ResponseJudge(AgentResponse.allow(response_headers=[HeaderOp.set("x-seen", "1")])), Server()
    await run(guarded(refusing(b"teapot"), agent), server, extensions=DENIAL_EXTENSION)
    assert agent.heads[0].status == 418
    assert [(event.data, event.is_last) for event in agent.bodies] == [(b"teapot", True)]
    assert server.types == ["http.response.start", "http.response.body"]
    assert (b"x-seen", b"1") in server.sent[0]["headers"]
    assert server.sent[1]["body"] == b"teapot"


@pytest.mark.parametrize(
    "agent", [ResponseJudge(head=BLOCK), ResponseJudge(body=BLOCK)], ids=["by its head", "by its body"]
)
@pytest.mark.parametrize("chunks", [(b"secret",), (b"sec", b"ret", b"s")], ids=["at once", "streamed"])
async def test_a_response_with_which_the_app_refuses_can_be_replaced(
    agent: ResponseJudge, chunks: tuple[bytes, ...]
) -> None:
    server = Server()
    await run(guarded(refusing(*chunks), agent), server, extensions=DENIAL_EXTENSION)
    assert server.types == ["http.response.start", "http.response.body"]
    assert server.sent[0]["status"] == 403
    assert server.sent[1]["body"] == b"Forbidden"


@pytest.mark.parametrize("body_mode", [BodyMode.STREAM, BodyMode.hybrid(1)])
async def test_a_refusal_that_is_stopped_after_it_has_begun_does_not_look_complete(body_mode: BodyMode) -> None:
    class Last(Agent):
        async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
            return BLOCK if event.data == b"evil" else None

    server = Server()
    with pytest.raises(ResponseAborted):
        await run(
            guarded(refusing(b"good", b"evil", b"more"), configured(Last(), response_body_mode=body_mode)),
            server,
            extensions=DENIAL_EXTENSION,
        )
    assert [message.get("body") for message in server.sent] == [None, b"good"]
    assert server.sent[-1]["more_body"]


async def test_a_close_with_which_the_app_refuses_is_passed_on(judge: type[Judge]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close", "code": 1000, "reason": "no"})

    server = Server()
    await run(guarded(app, judge(), ResponseJudge(BLOCK)), server)
    assert server.sent == [{"type": "websocket.close", "code": 1000, "reason": "no"}]


# When an agent fails


class Broken:
    """One way in which an agent gives no verdict on a frame ``x``."""

    reason: str
    options: Mapping[str, Any] = {}

    def agent(self) -> Judge:
        raise NotImplementedError

    async def prepare(self, manager: AgentManager) -> None:
        pass

    def clean_up(self) -> None:
        pass


class Raises(Broken):
    reason = "Agent error"

    def __init__(self, kind: type[Judge]) -> None:
        self.kind = kind

    def agent(self) -> Judge:
        return self.kind({b"x": ValueError("secret")})


class AnswersNonsense(Broken):
    reason = "Agent error"

    def agent(self) -> Judge:
        nonsense: Any = object()
        return AtOnce({b"x": nonsense})


class AnswersTooLate(Broken):
    reason = "Gateway timeout"
    options: Mapping[str, Any] = {"timeout": 0.02}

    def agent(self) -> Judge:
        return Held(b"x")


class HasOpenBreaker(Broken):
    reason = "Service unavailable"
    options: Mapping[str, Any] = {"circuit_breaker": CircuitBreakerConfig(failure_threshold=1, reset_timeout=3600.0)}

    def agent(self) -> Judge:
        return AtOnce({b"once": ValueError("bug")})

    async def prepare(self, manager: AgentManager) -> None:
        await manager.process_websocket_frame(await frame_event(b"once"))


class HasNoPermit(Broken):
    reason = "Service unavailable"
    options: Mapping[str, Any] = {"timeout": 0.02, "max_concurrent_calls": 1}

    def agent(self) -> Judge:
        self.stubborn = Stubborn(b"occupy")
        return self.stubborn

    async def prepare(self, manager: AgentManager) -> None:
        # It takes longer than it may, which is not to count among what is passed open.
        await manager.process_websocket_frame(await frame_event(b"occupy"), [("judge", FailureMode.CLOSED)])

    def clean_up(self) -> None:
        self.stubborn.holds[b"occupy"].set()


BROKEN = [
    pytest.param(lambda: Raises(AtOnce), id="raises at once"),
    pytest.param(lambda: Raises(Suspending), id="raises"),
    pytest.param(AnswersNonsense, id="answers nonsense"),
    pytest.param(AnswersTooLate, id="answers too late"),
    pytest.param(HasOpenBreaker, id="has an open breaker"),
    pytest.param(HasNoPermit, id="has no permit"),
]


@pytest.mark.parametrize("make", BROKEN)
@pytest.mark.parametrize("outbound", [False, True], ids=["to the app", "to the client"])
@pytest.mark.parametrize("by_route", [False, True], ids=["by the agent's mode", "by the route's mode"])
@pytest.mark.parametrize("mode", FailureMode)
async def test_an_agent_that_gives_no_verdict_on_a_frame_is_treated_by_its_failure_mode(
    make: Callable[[], Broken], outbound: bool, by_route: bool, mode: FailureMode
) -> None:
    broken = make()
    other = FailureMode.OPEN if mode is FailureMode.CLOSED else FailureMode.CLOSED
    app = App("x") if outbound else App()
    server = Server(then_leaves=True) if outbound else Server("x", then_leaves=True)
    middleware = guarded(
        app,
        configured(broken.agent(), failure_mode=other if by_route else mode, **broken.options),
        routes=[Route("/ws", [("judge", mode)])] if by_route else None,
    )
    async with anyio.create_task_group() as group:
        group.start_soon(broken.prepare, middleware.manager)
        await anyio.wait_all_tasks_blocked()
        before = middleware.manager.metrics["judge"]
        scope = await run(middleware, server)
        broken.clean_up()
    if mode is FailureMode.CLOSED:
        assert server.close == (1011, broken.reason)
        assert server.frames == []
        assert app.got == []
        assert app.disconnect == {"type": "websocket.disconnect", "code": 1011, "reason": broken.reason}
        assert scope["state"]["agents"].decision.decided_by == "judge"
    else:
        assert server.close is None
        assert server.frames == (["x"] if outbound else [])
        assert app.got == ([] if outbound else ["x"])
        assert scope["state"]["agents"].decision.verdicts[0].failure is not None
        assert middleware.manager.metrics["judge"].passed_open - before.passed_open == 1
    assert_idle(middleware.manager)


async def test_the_failure_of_one_agent_does_not_hide_the_block_of_another(judge: type[Judge]) -> None:
    server = Server("x")
    await run(guarded(App(), judge({b"x": ValueError("bug")}), judge({b"x": BLOCK})), server)
    assert server.close == (1008, "Blocked")


async def test_failures_of_one_session_open_the_breaker_for_the_next(judge: type[Judge]) -> None:
    breaker = CircuitBreakerConfig(failure_threshold=1, reset_timeout=3600.0)
    manager = AgentManager([configured(judge({b"x": ValueError("bug")}), circuit_breaker=breaker)])
    closes = []
    for _ in range(2):
        server = Server("x")
        await run(AgentMiddleware(App(), manager=manager), server)
        closes.append(server.close)
    assert closes == [(1011, "Agent error"), (1011, "Service unavailable")]


# Cancellation


async def move_on(receive: Receive) -> None:
    with anyio.move_on_after(0.01) as scope:
        await receive()
    assert scope.cancelled_caught


async def poll(receive: Receive) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await receive()
    assert scope.cancelled_caught


async def wait_for(receive: Receive) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(receive(), 0.01)


async def gives_up_receive(give_up: Callable[[Receive], Coroutine[Any, Any, None]]) -> None:
    agent, server, received = Held(b"slow"), Server("slow", "quick", then_leaves=True), list[Message]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        for _ in range(3):
            await give_up(receive)
        assert agent.saw == [b"slow"]
        agent.holds[b"slow"].set()
        for _ in range(3):
            received.append(await receive())

    await run(guarded(app, agent), server)
    assert received == [
        {"type": "websocket.receive", "text": "slow"},
        {"type": "websocket.receive", "text": "quick"},
        {"type": "websocket.disconnect", "code": 1001, "reason": "going away"},
    ]
    assert agent.saw == [b"slow", b"quick"]


@pytest.mark.parametrize("give_up", [move_on, poll])
async def test_a_frame_is_judged_once_and_not_lost_when_the_app_gives_up_receiving(
    give_up: Callable[[Receive], Coroutine[Any, Any, None]],
) -> None:
    await gives_up_receive(give_up)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_frame_is_judged_once_and_not_lost_when_asyncios_wait_for_gives_up_receiving() -> None:
    await gives_up_receive(wait_for)


async def test_a_frame_that_was_judged_meanwhile_is_handed_on_without_yielding() -> None:
    agent, server, received = Held(b"slow"), Server("slow"), list[Message]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await move_on(receive)
        agent.holds[b"slow"].set()
        await anyio.wait_all_tasks_blocked()
        with anyio.CancelScope() as scope_:
            scope_.cancel()
            received.append(await receive())

    await run(guarded(app, agent), server)
    assert received == [{"type": "websocket.receive", "text": "slow"}]


async def test_a_frame_is_not_lost_when_the_app_gives_up_before_there_is_one(judge: type[Judge]) -> None:
    server, received = Server(), list[Message]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await move_on(receive)
        server.client_sends("late")
        received.append(await receive())

    await run(guarded(app, judge()), server)
    assert received == [{"type": "websocket.receive", "text": "late"}]


async def test_a_dropped_frame_is_dropped_also_when_the_app_gave_up_receiving() -> None:
    agent, received = Held(b"slow", answers={b"slow": DROP}), list[Message]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await move_on(receive)
        agent.holds[b"slow"].set()
        received.append(await receive())

    await run(guarded(app, agent), Server("slow", "next"))
    assert received == [{"type": "websocket.receive", "text": "next"}]


async def test_a_close_is_carried_out_also_when_the_app_gave_up_receiving() -> None:
    agent, server, closed = Held(b"slow", answers={b"slow": CLOSE}), Server("slow"), list[object]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await move_on(receive)
        agent.holds[b"slow"].set()
        await anyio.wait_all_tasks_blocked()
        closed.append(server.close)
        with pytest.raises(ClosedByAgent):
            await send_frame(send, "too late")

    await run(guarded(app, agent), server)
    assert closed == [(4001, "enough")]


async def test_a_frame_is_not_lost_when_the_agents_permits_ran_out_only_after_the_session_had_begun() -> None:
    """An agent that answers frames without suspending makes them wait all the same once its permits are taken."""

    class Busy(AtOnce):
        leaving = anyio.Event()

        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            if event.uri == "/busy":
                await self.leaving.wait()

    agent, server, received = Busy(), Server("x"), list[Message]()
    agent.leaving = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        if scope["path"] == "/busy":
            return
        async with anyio.create_task_group() as group:
            group.start_soon(run, middleware, Server(), "/busy")
            await anyio.wait_all_tasks_blocked()
            await move_on(receive)
            agent.leaving.set()
        with anyio.move_on_after(0.05):
            received.append(await receive())

    middleware = guarded(app, configured(agent, max_concurrent_calls=1))
    await run(middleware, server)
    assert received == [{"type": "websocket.receive", "text": "x"}]
    assert agent.saw == [b"x"]


async def test_a_send_that_the_app_gives_up_is_not_sent_and_holds_up_nothing() -> None:
    agent, server = Held(b"slow"), Server()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        with anyio.move_on_after(0.01) as given_up:
            await send_frame(send, "slow")
        assert given_up.cancelled_caught
        agent.holds[b"slow"].set()
        await send_frame(send, "next")

    middleware = guarded(app, agent)
    await run(middleware, server)
    assert server.frames == ["next"]
    assert_idle(middleware.manager)


async def in_vain(scope: Scope, receive: Receive, send: Send) -> None:
    await accept(receive, send)
    await receive()


async def say_in_vain(scope: Scope, receive: Receive, send: Send) -> None:
    await accept(receive, send)
    await send_frame(send, "x")


async def give_up_and_stay(scope: Scope, receive: Receive, send: Send) -> None:
    await accept(receive, send)
    await move_on(receive)
    await anyio.sleep_forever()


@pytest.mark.parametrize("app", [in_vain, say_in_vain, give_up_and_stay])
@pytest.mark.parametrize("options", [{}, {"max_concurrent_calls": 1}], ids=["being judged", "waiting for a permit"])
async def test_a_session_that_is_cancelled_while_a_frame_is_judged_leaves_nothing_behind(
    app: ASGIApp, options: dict[str, Any]
) -> None:
    agent = Held(b"x", b"occupy")
    middleware = guarded(app, configured(agent, **options))
    before = tasks()
    async with anyio.create_task_group() as group:
        if options:
            group.start_soon(middleware.manager.process_websocket_frame, await frame_event(b"occupy"))
            await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as session:
            session.start_soon(run, middleware, Server("x"))
            await anyio.sleep(0.02)
            await anyio.wait_all_tasks_blocked()
            metrics = middleware.manager.metrics["judge"]
            assert (metrics.in_flight, metrics.waiting) == ((1, 1) if options else (1, 0))
            session.cancel_scope.cancel()
        agent.holds[b"occupy"].set()
    assert tasks() == before
    assert_idle(middleware.manager)


@pytest.mark.parametrize("app", [in_vain, say_in_vain, give_up_and_stay])
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_session_whose_task_the_server_cancels_leaves_nothing_behind(app: ASGIApp) -> None:
    middleware, server = guarded(app, Held(b"x")), Server("x")
    before = tasks()
    task = asyncio.ensure_future(middleware(websocket_scope(), server.receive, server.send))
    await anyio.sleep(0.02)
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tasks() == before
    assert_idle(middleware.manager)


@pytest.mark.parametrize("app", [in_vain, say_in_vain])
async def test_a_cancelled_session_gives_its_trial_call_back_to_the_breaker(app: ASGIApp) -> None:
    now = 0.0
    agent = Held(b"x", answers={b"fail": ValueError("bug")})
    breaker = CircuitBreakerConfig(failure_threshold=1, success_threshold=1, reset_timeout=10.0)
    manager = AgentManager([configured(agent, circuit_breaker=breaker)], clock=lambda: now)
    await manager.process_websocket_frame(await frame_event(b"fail"))
    now = 11.0
    async with anyio.create_task_group() as session:
        session.start_soon(run, AgentMiddleware(app, manager=manager), Server("x"))
        await anyio.wait_all_tasks_blocked()
        guard = registry_of(manager).guard("judge")
        assert guard.breaker is not None
        assert guard.breaker.trials == 1
        session.cancel_scope.cancel()
    assert_idle(manager)
    assert (await manager.process_websocket_frame(await frame_event(b"fine"))).is_allow


async def test_an_app_that_ends_while_a_frame_is_judged_is_not_kept_waiting() -> None:
    agent, ended = Held(b"x"), list[bool]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await move_on(receive)
        ended.append(True)

    middleware = guarded(app, agent)
    before = tasks()
    await run(middleware, Server("x"))
    assert ended
    assert tasks() == before
    assert_idle(middleware.manager)


async def test_a_client_that_leaves_while_its_message_is_judged_is_told_of_after_it() -> None:
    agent, app, server = Held(b"x"), App(), Server("x")
    middleware = guarded(app, agent)
    async with anyio.create_task_group() as group:
        group.start_soon(run, middleware, server)
        await anyio.wait_all_tasks_blocked()
        server.client_leaves()
        await anyio.wait_all_tasks_blocked()
        agent.holds[b"x"].set()
    assert app.got == ["x"]
    assert app.disconnect["code"] == 1001
    assert_idle(middleware.manager)


# Errors of the app


class Stop(BaseException):
    """As ``SystemExit`` or what ``pytest.fail`` raises."""


@pytest.mark.parametrize("error", [ValueError("of the app"), OSError("of the app"), Stop(), WebSocketDisconnect(1001)])
@pytest.mark.parametrize("while_judging", [False, True], ids=["idle", "while a frame is judged"])
async def test_what_the_app_raises_comes_out_as_it_is(
    judge: type[Judge], error: BaseException, while_judging: bool
) -> None:
    agent = Held(b"x") if while_judging else judge()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        if while_judging:
            await move_on(receive)
        raise error

    middleware = guarded(app, agent)
    with pytest.raises(type(error)) as caught:
        await run(middleware, Server("x"))
    assert caught.value is error
    assert_idle(middleware.manager)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_what_the_app_raises_is_not_lost_when_the_server_cancels_meanwhile(judge: type[Judge]) -> None:
    """As a client does that leaves while the app fails."""
    task: asyncio.Future[None]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        task.cancel()
        raise ValueError("of the app")

    server = Server("x")
    task = asyncio.ensure_future(guarded(app, judge())(websocket_scope(), server.receive, server.send))
    with pytest.raises(ValueError, match="of the app"):
        await task


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_cancellation_that_is_not_the_sessions_own_comes_out_as_it_is(judge: type[Judge]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        other = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(other.cancel)
        await other

    with pytest.raises(asyncio.CancelledError):
        await run(guarded(app, judge()), Server("x"))


async def test_errors_of_the_app_after_an_agents_close_are_still_errors(judge: type[Judge]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        assert (await receive())["type"] == "websocket.disconnect"
        raise ValueError("of the app")

    with pytest.raises(ValueError, match="of the app"):
        await run(guarded(app, judge({b"x": CLOSE})), Server("x"))


async def test_an_error_of_the_server_reaches_the_app(judge: type[Judge]) -> None:
    server, errors = Server(), list[Exception]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.close", "code": 1000, "reason": ""})
        with pytest.raises(RuntimeError) as caught:
            await send_frame(send, "too late")
        errors.append(caught.value)

    await run(guarded(app, judge()), server)
    assert len(errors) == 1


# The end of the session


async def test_the_end_of_a_session_is_told_with_what_went_over_it(judge: type[Judge]) -> None:
    told = Completions()
    await run(
        guarded(App("four", b"bytes"), judge(), told),
        Server("é", b"123", then_leaves=True),
        headers=[(b"x-request-id", b"session-1")],
    )
    (event,) = told.heard
    assert event.correlation_id == "session-1"
    assert event.status == 101
    assert (event.request_body_size, event.response_body_size) == (5, 9)
    assert event.upstream_attempts == 1
    assert event.error is None
    assert event.duration_ms >= 0


async def test_bytes_are_counted_also_where_nobody_hears_frames() -> None:
    told = Completions()
    app, server = App("four"), Server("é", then_leaves=True)
    await run(guarded(app, told), server)
    assert app.got == ["é"]
    assert server.frames == ["four"]
    assert (told.heard[0].request_body_size, told.heard[0].response_body_size) == (2, 4)


async def closes(receive: Receive, send: Send) -> None:
    await send({"type": "websocket.close", "code": 1000, "reason": ""})


async def closes_and_reads(receive: Receive, send: Send) -> None:
    await closes(receive, send)
    assert (await receive())["type"] == "websocket.disconnect"


async def accepts(receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept"})


async def raises(receive: Receive, send: Send) -> None:
    raise WebSocketDisconnect(1001)


async def refuses(receive: Receive, send: Send) -> None:
    await send({"type": "websocket.http.response.start", "status": 429, "headers": []})
    await send({"type": "websocket.http.response.body", "body": b""})


async def returns(receive: Receive, send: Send) -> None:
    """It has nothing to say."""


@pytest.mark.parametrize(
    ("then", "leaves", "status", "sent"),
    [
        (returns, True, 499, []),
        (closes, True, 499, []),
        (raises, True, 499, []),
        # The server says that nobody is there.
        (accepts, True, 499, []),
        (refuses, True, 499, []),
        (returns, False, 403, []),
        (closes, False, 403, ["close"]),
        (closes_and_reads, False, 403, ["close"]),
        (raises, False, 500, []),
        (accepts, False, 101, ["accept"]),
        (refuses, False, 429, ["http.response.start", "http.response.body"]),
    ],
)
@pytest.mark.parametrize("with_frames", [True, False])
async def test_a_client_that_leaves_before_the_handshake_is_answered_was_not_refused(
    then: Callable[[Receive, Send], Awaitable[None]], leaves: bool, status: int, sent: list[str], with_frames: bool
) -> None:
    """The event and the audit record tell alike what the client got: of one that left, that is nothing."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "websocket.connect"
        if leaves:
            assert (await receive())["type"] == "websocket.disconnect"
        await then(receive, send)

    told, server, records = Completions(), Server(then_leaves=leaves), list[AuditRecord]()
    judges = [AtOnce()] if with_frames else []
    with suppress(WebSocketDisconnect, OSError):
        await run(guarded(app, *judges, told, on_audit=records.append), server, extensions=DENIAL_EXTENSION)
    assert (told.heard[0].status, server.types) == (status, sent)
    assert records[0].status == (status if sent else None)


@pytest.mark.parametrize("with_frames", [True, False])
async def test_of_a_client_that_left_before_its_session_was_accepted_that_is_told(with_frames: bool) -> None:
    """The app has not heard of it before the server tells it."""
    told, server, records = Completions(), Server(), list[AuditRecord]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        server.client_leaves()
        await server.receive()
        await send({"type": "websocket.accept"})

    judges = [AtOnce()] if with_frames else []
    with pytest.raises(OSError, match="gone"):
        await run(guarded(app, *judges, told, on_audit=records.append), server)
    assert (told.heard[0].status, server.sent, records[0].status) == (499, [], None)


async def test_of_a_client_that_left_before_it_could_be_denied_that_is_told() -> None:
    told, server = Completions(), Server()
    await server.receive()
    server.client_leaves()
    await run(guarded(App(), Head(BLOCK), told), server)
    assert (told.heard[0].status, server.sent) == (499, [])


@pytest.mark.parametrize("extensions", [{}, DENIAL_EXTENSION])
async def test_the_end_of_a_denied_handshake_is_told(extensions: dict[str, Any]) -> None:
    told = Completions()
    await run(guarded(App(), Head(AgentResponse.block(401, "no")), told), Server(), extensions=extensions)
    (event,) = told.heard
    assert event.status == (401 if extensions else 403)
    assert event.response_body_size == (2 if extensions else 0)
    assert event.upstream_attempts == 0


async def test_the_end_of_a_session_that_an_agent_closed_is_told(judge: type[Judge]) -> None:
    told = Completions()
    await run(guarded(App(), judge({b"x": CLOSE}), told), Server("x"))
    (event,) = told.heard
    assert event.status == 101
    assert event.upstream_attempts == 1
    assert event.error is None


async def test_the_end_of_a_session_that_the_app_refused_is_told() -> None:
    told = Completions()
    await run(guarded(refusing(b"teapot"), told), Server(), extensions=DENIAL_EXTENSION)
    assert (told.heard[0].status, told.heard[0].response_body_size) == (418, 6)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close"})

    await run(guarded(app, told), Server())
    assert told.heard[1].status == 403


async def test_the_end_of_a_session_that_failed_is_told_and_the_error_comes_out() -> None:
    told = Completions()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("of the app")

    with pytest.raises(ValueError, match="of the app"):
        await run(guarded(app, told), Server())
    assert (told.heard[0].status, told.heard[0].error) == (500, "ValueError")


async def test_the_end_of_a_cancelled_session_is_told(judge: type[Judge]) -> None:
    told = Completions()
    async with anyio.create_task_group() as session:
        session.start_soon(run, guarded(App(), judge(), told), Server("x"))
        await anyio.wait_all_tasks_blocked()
        session.cancel_scope.cancel()
    (event,) = told.heard
    assert event.status == 101
    assert event.error is not None


async def test_telling_of_the_end_is_bounded_by_the_agents_deadline() -> None:
    class Stalls(Agent):
        async def on_request_complete(self, event: RequestCompleteEvent) -> None:
            await anyio.sleep_forever()

    with anyio.fail_after(10):
        await run(guarded(App(), configured(Stalls(), timeout=0.02)), Server(then_leaves=True))


async def test_a_session_of_any_length_remembers_only_so_many_verdicts(judge: type[Judge]) -> None:
    frames: Iterable[str] = (f"{number}" for number in range(1500))
    tagging = judge(
        {str(number).encode(): AgentResponse.allow(audit=AuditMetadata(tags=("t",))) for number in range(1500)}
    )
    app = App()
    scope = await run(guarded(app, tagging), Server(*frames, then_leaves=True))
    assert len(app.got) == 1500
    assert 0 < len(scope["state"]["agents"].audit) <= 1000


async def test_messages_of_other_types_are_left_alone(judge: type[Judge]) -> None:
    """Whatever the spec comes to have."""
    server = Server()
    server.hands_on({"type": "websocket.news", "x": 1})
    received: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        received.append(await receive())
        with suppress(RuntimeError):
            await send({"type": "websocket.ping"})

    await run(guarded(app, judge()), server)
    assert received == [{"type": "websocket.news", "x": 1}]
    assert server.types == ["accept", "ping"]
