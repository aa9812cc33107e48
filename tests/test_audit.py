"""The record that each guarded connection leaves behind."""

import json
import logging
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import suppress
from datetime import datetime
from enum import StrEnum
from typing import Any

import anyio
import msgspec
import pytest
from opentelemetry.sdk.trace import TracerProvider
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    AuditMetadata,
    AuditRecord,
    BodyMode,
    ConfigurationError,
    FailureMode,
    GuardrailInspectEvent,
    HeaderOp,
    ResponseAborted,
    Route,
    WebSocketFrameEvent,
    current_correlation_id,
)
from asgi_agents.observability.correlation import live_ids
from tests.support.asgi import (
    VIRTUAL_TIME,
    App,
    Client,
    Held,
    Probe,
    SlowProbe,
    body,
    guarded,
    settle,
    start,
)
from tests.support.examples import the_first_is_short

LOGGER = logging.getLogger("asgi_agents.audit")
DENIED = AgentResponse.block(403, "denied")
CLOSE = AgentResponse.websocket_close(4001, "enough")
DROP = AgentResponse.websocket_drop()
STREAM = BodyMode.STREAM
DENIAL_EXTENSION: dict[str, Any] = {"websocket.http.response": {}}
# What must never be seen again.
SECRET = "Zq9XsecretZq9X"
TAGGED = AgentResponse.allow(audit=AuditMetadata(tags=["seen"]))
SSE = (b"content-type", b"text/event-stream")


class Lines(logging.Handler):
    """What a log file would have in it, and which records could not be written into it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.lost: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.lines.append(self.format(record))
        except Exception:
            self.lost.append(record)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """The audit log."""
    handler = Lines()
    before = LOGGER.level
    # Without those of pytest, which let what fails in them through; it finds loggers that don't propagate.
    monkeypatch.setattr(LOGGER, "parent", None)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    yield handler
    LOGGER.setLevel(before)
    LOGGER.removeHandler(handler)


class Audited:
    """``app`` behind ``agents``, and the records of that."""

    def __init__(self, app: ASGIApp, *agents: Agent | AgentConfig, **options: Any) -> None:
        self.records: list[AuditRecord] = []
        configs = [agent if isinstance(agent, AgentConfig) else AgentConfig("a", agent) for agent in agents]
        self.middleware = guarded(app, *configs, **{"on_audit": self.records.append} | options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        return await self.middleware(scope, receive, send)

    @property
    def record(self) -> AuditRecord:
        """The one and only."""
        (record,) = self.records
        return record


class Frames(Agent):
    """Answers frames."""

    def __init__(self, answers: dict[bytes, AgentResponse] | AgentResponse | Exception | None = None) -> None:
        self.answers = answers
        self.heard = 0

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        self.heard += 1
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers.get(event.data) if isinstance(self.answers, dict) else self.answers


class Session:
    """The server's side of a websocket."""

    def __init__(self, *frames: str, leaves: bool = True, extensions: Any = None, path: str = "/") -> None:
        self.sent: list[Message] = []
        self.scope: Scope = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"q=" + SECRET.encode(),
            "root_path": "",
            "headers": [(b"host", b"app.example")],
            "client": ("192.0.2.7", 40000),
            "server": ("app.example", 80),
            "subprotocols": [],
            "extensions": extensions or {},
        }
        self._incoming: list[Message] = [{"type": "websocket.connect"}]
        self._incoming += [{"type": "websocket.receive", "text": frame} for frame in frames]
        if leaves:
            self._incoming.append({"type": "websocket.disconnect", "code": 1001, "reason": SECRET})

    async def receive(self) -> Message:
        if not self._incoming:
            if any(message["type"] == "websocket.close" for message in self.sent):
                return {"type": "websocket.disconnect", "code": 1000, "reason": ""}
            await anyio.sleep_forever()
        return self._incoming.pop(0)

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def call(self, app: ASGIApp) -> Any:
        call: Callable[[Scope, Receive, Send], Awaitable[Any]] = app
        return await call(self.scope, self.receive, self.send)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Accepts, and sends everything back until the client leaves."""
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        await send({"type": "websocket.send", "text": message["text"]})


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    pass


def dictionary(record: AuditRecord) -> Any:
    """The fields as they are, with nothing but lists, dictionaries and scalars in them."""
    return json.loads(json.dumps(msgspec.to_builtins(record)))


# One record per connection


async def test_a_request_leaves_one_line_of_json_in_the_log_and_one_record_at_the_hook(
    caplog: pytest.LogCaptureFixture,
) -> None:
    audited = Audited(App(), Probe(request_headers=None))
    with caplog.at_level(logging.INFO, logger="asgi_agents"):
        await Client(headers=[(b"x-request-id", b"the-id")]).call(audited)
    (line,) = caplog.records
    assert (line.name, line.levelno) == ("asgi_agents.audit", logging.INFO)
    assert line.audit is audited.record  # type: ignore[attr-defined]
    assert line.correlation_id == "the-id"  # type: ignore[attr-defined]
    assert line.getMessage() == str(audited.record)
    assert "\n" not in line.getMessage()
    assert json.loads(line.getMessage())["correlation_id"] == "the-id"


async def test_the_record_is_what_it_says_as_json() -> None:
    shadow = AgentConfig("shadow", Probe(request_headers=DENIED), enforce=False)
    fails = AgentConfig("fails", Probe(request_headers=_raise), failure_mode=FailureMode.OPEN)
    notes = AuditMetadata(tags=["t", "ü"], rule_ids=["r"], reason_codes=['"quoted"\\'], confidence=0.25)
    says = AgentConfig("says", Probe(request_headers=AgentResponse.block(audit=notes), request_body=None))
    audited = Audited(App(), shadow, fails, says, audit_headers=["user-agent"])
    await Client(headers=[(b"user-agent", "käse".encode("latin-1"))]).call(audited)
    assert json.loads(str(audited.record)) == dictionary(audited.record)
    assert set(json.loads(str(audited.record))) == set(AuditRecord.__struct_fields__)


async def test_the_record_says_who_asked_for_what_and_when() -> None:
    audited = Audited(App(), Probe(request_headers=None), routes=[Route("/items/{id}", ["a"], methods=["POST"])])
    client = Client("POST", "/items/7", headers=[(b"x-request-id", b"the-id")])
    await client.call(audited)
    record = audited.record
    assert (record.type, record.method, record.path, record.route) == ("http", "POST", "/items/7", "/items/{id}")
    assert (record.client, record.correlation_id, record.error) == ("192.0.2.7", "the-id", None)
    assert (record.status, record.complete, record.close_code) == (200, True, None)
    assert (record.decision, record.decided_by, record.trace_id) == ("allow", None, None)
    began = datetime.fromisoformat(record.time)
    assert began.utcoffset() is not None
    assert abs((datetime.now(began.tzinfo) - began).total_seconds()) < 3600
    assert record.seconds >= record.agents[0].seconds >= 0


async def test_the_record_names_the_trace() -> None:
    audited = Audited(App(), Probe(request_headers=None))
    with TracerProvider().get_tracer("test").start_as_current_span("server") as span:
        await Client().call(audited)
    assert audited.record.trace_id == f"{span.get_span_context().trace_id:032x}"


async def test_a_missing_client_and_missing_headers_are_no_matter() -> None:
    audited = Audited(App(), Probe(request_headers=None), audit_headers=["user-agent"])
    client = Client()
    for key in ("client", "headers", "extensions", "state"):
        del client.scope[key]
    client.scope["headers"] = []
    await client.call(audited)
    assert (audited.record.client, audited.record.headers) == ("", {})


async def test_an_app_that_raises_leaves_one_record(probe: type[Probe]) -> None:
    async def raises(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError(SECRET)

    audited = Audited(raises, probe(request_headers=None, request_body=None, response_body=None, complete=None))
    with pytest.raises(ValueError, match=SECRET):
        await Client().call(audited)
    record = audited.record
    assert (record.status, record.complete, record.error) == (None, False, "ValueError")
    assert (record.decision, record.decided_by) == ("allow", None)
    assert SECRET not in str(record)


async def test_an_app_that_raises_after_the_start_leaves_what_the_client_has() -> None:
    async def raises(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(201))
        await send(body(b"part", more=True))
        raise ValueError("late")

    audited = Audited(raises, Probe(request_headers=None, response_headers=None))
    with pytest.raises(ValueError, match="late"):
        await Client().call(audited)
    assert (audited.record.status, audited.record.complete, audited.record.error) == (201, False, "ValueError")


async def test_a_client_that_leaves_leaves_one_record(probe: type[Probe]) -> None:
    client = Client()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        client.leave()
        await send(body(b"hello"))

    audited = Audited(slow, probe(request_headers=None, response_body=None, complete=None))
    with suppress(OSError, ResponseAborted):
        await client.call(audited)
    assert audited.record.complete is False
    assert client.complete is False
    assert audited.record.status == client.status


async def test_a_cancelled_task_leaves_one_record(probe: type[Probe]) -> None:
    audited = Audited(_forever, probe(request_headers=None, request_body=None, response_body=None, complete=None))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Client().call, audited)
        await settle()
        assert audited.records == []
        tasks.cancel_scope.cancel()
    assert (audited.record.status, audited.record.complete) == (None, False)
    assert audited.record.error in ("CancelledError", "Cancelled")


async def test_a_request_cancelled_at_its_agent_leaves_one_record() -> None:
    held = Held()
    audited = Audited(App(), SlowProbe(request_headers=held))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Client().call, audited)
        await held.reached.wait()
        tasks.cancel_scope.cancel()
    assert (audited.record.status, audited.record.error) in ((None, "CancelledError"), (None, "Cancelled"))


def test_a_coroutine_that_is_thrown_away_leaves_one_record() -> None:
    audited = Audited(_suspends_for_good, Probe(request_headers=None))
    call = Client().call(audited)
    assert call.send(None) == "suspended"
    call.close()
    assert audited.record.error == "GeneratorExit"
    assert current_correlation_id() == ""


async def test_a_body_that_is_cut_off_leaves_one_record(probe: type[Probe]) -> None:
    app, client = App(), Client("POST", body=[b"part"], unfinished=True)
    client.leave()
    audited = Audited(app, probe(request_headers=None, request_body=None))
    await client.call(audited)
    assert app.calls == 0
    assert (audited.record.status, audited.record.complete) == (None, False)


@pytest.mark.parametrize(
    ("answer", "status", "word"),
    [
        (AgentResponse.block(418), 418, "block"),
        (AgentResponse.redirect("/login"), 302, "redirect"),
        (AgentResponse.challenge("basic"), 401, "challenge"),
        (AgentResponse.websocket_close(4000), 403, "close"),
    ],
)
async def test_a_denied_request_leaves_one_record(
    answer: AgentResponse, status: int, word: str, probe: type[Probe]
) -> None:
    client, audited = Client(), Audited(App(), probe(request_headers=answer))
    await client.call(audited)
    record = audited.record
    assert client.status == status
    assert (record.status, record.complete, record.decision, record.decided_by) == (status, True, word, "a")
    assert [(answer.decision, answer.failure) for answer in record.answers] == [(word, None)]


async def test_a_denial_while_the_app_runs_leaves_one_record(probe: type[Probe]) -> None:
    client = Client("POST", body=[b"fine", b"evil"])
    agent = probe(request_body=lambda event: DENIED if event.data == b"evil" else None, complete=None)
    audited = Audited(App(), AgentConfig("a", agent, request_body_mode=STREAM))
    await client.call(audited)
    record = audited.record
    assert client.status == 403
    assert (record.status, record.complete, record.decision, record.decided_by) == (403, True, "block", "a")
    assert [(answer.event, answer.decision) for answer in record.answers] == [("request_body_chunk", "block")]
    assert record.agents[0].calls == 3


async def test_a_response_that_is_broken_off_leaves_one_record(probe: type[Probe]) -> None:
    app = App(start(), body(b"fine", more=True), body(b"evil", more=True), body())
    agent = probe(response_body=lambda event: DENIED if event.data == b"evil" else None)
    client, audited = Client(), Audited(app, AgentConfig("a", agent, response_body_mode=STREAM))
    with pytest.raises(ResponseAborted):
        await client.call(audited)
    record = audited.record
    assert (record.status, record.complete, record.error) == (200, False, "ResponseAborted")
    assert (record.decision, record.decided_by) == ("block", "a")


async def test_an_event_stream_that_is_ended_early_is_complete() -> None:
    app = App(start(200, SSE), body(b"data: 1\n\n", more=True), body(b"evil\n\n", more=True))
    agent = Probe(response_body=lambda event: DENIED if b"evil" in event.data else None)
    client, audited = Client(), Audited(app, AgentConfig("a", agent, response_body_mode=STREAM))
    await client.call(audited)
    assert client.complete
    assert (audited.record.status, audited.record.complete, audited.record.decision) == (200, True, "block")


async def test_a_replaced_response_is_recorded_as_the_client_got_it(probe: type[Probe]) -> None:
    client = Client()
    audited = Audited(App(start(200), body(b"evil")), probe(response_body=AgentResponse.block(502)))
    await client.call(audited)
    assert client.status == audited.record.status == 502
    assert audited.record.complete is True


@pytest.mark.parametrize(
    ("messages", "complete"),
    [
        ([start(204), body()], True),
        ([start(), body(b"x", more=True)], False),
        ([start(), {"type": "http.response.body"}], True),
        ([start(), {"type": "http.response.pathsend", "path": "/dev/null"}], True),
        ([start(), {"type": "http.response.zerocopysend", "file": 0, "more_body": True}], False),
        ([start(), {"type": "http.response.zerocopysend", "file": 0}], True),
        ([start()], False),
        ([], False),
    ],
)
async def test_a_response_is_complete_with_its_last_byte(messages: list[Message], complete: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    audited = Audited(app, Probe(request_headers=None))
    await Client().call(audited)
    assert audited.record.complete is complete
    assert audited.record.status == (messages[0]["status"] if messages else None)


async def test_a_response_that_lacks_the_trailers_it_promised_is_not_complete() -> None:
    trailers: Message = {"type": "http.response.trailers", "headers": [], "more_trailers": False}
    promising = App({**start(), "trailers": True}, body(b"x"))
    keeping = App({**start(), "trailers": True}, body(b"x"), trailers)
    audited = [Audited(app, Probe(request_headers=None)) for app in (promising, keeping)]
    for one in audited:
        await Client().call(one)
    assert [one.record.complete for one in audited] == [False, True]


async def test_nothing_is_recorded_where_no_agent_is_on_the_route(log: Lines) -> None:
    audited = Audited(
        App(),
        Probe(request_headers=None),
        routes=[Route("/healthz", []), Route("/api", ["a"])],
        expose_correlation_id=True,
    )
    for path in ("/healthz", "/elsewhere"):
        await Client(path=path).call(audited)
        await Session(path=path).call(guarded(echo, routes=[Route(path, [])], on_audit=audited.records.append))
    assert audited.records == []
    await Client(path="/api").call(audited)
    assert audited.record.path == "/api"
    assert len(log.lines) == 1


async def test_nothing_is_recorded_of_the_lifespan(log: Lines) -> None:
    messages: list[Message] = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message["type"])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})

    audited = Audited(app, Probe(request_headers=None))
    await audited({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert (audited.records, log.lines, log.lost) == ([], [], [])


async def test_an_agent_that_hears_nothing_of_it_is_on_the_route_all_the_same() -> None:
    audited = Audited(App(), Frames())
    await Client().call(audited)
    assert (audited.record.agents, audited.record.answers, audited.record.status) == ([], [], 200)


async def test_nested_guarded_apps_record_the_connection_once_each() -> None:
    inner = Audited(App(), AgentConfig("inner", Probe(request_headers=None)))
    outer = Audited(inner, AgentConfig("outer", Probe(request_headers=None)))
    await Client().call(outer)
    assert [agent.agent for agent in outer.record.agents] == ["outer"]
    assert [agent.agent for agent in inner.record.agents] == ["inner"]


async def test_concurrent_connections_have_records_of_their_own() -> None:
    audited = Audited(App(), SlowProbe(request_headers=lambda event: DENIED if event.uri == "/3" else None))
    async with anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(Client(path=f"/{number}").call, audited)
    assert sorted((record.path, record.status) for record in audited.records) == [
        (f"/{number}", 403 if number == 3 else 200) for number in range(6)
    ]
    assert len({record.correlation_id for record in audited.records}) == 6


# Websockets


async def test_a_session_that_the_client_ends_leaves_one_record() -> None:
    audited = Audited(echo, Frames())
    await Session("one", "two").call(audited)
    record = audited.record
    assert (record.type, record.method, record.status) == ("websocket", "GET", 101)
    assert (record.close_code, record.complete, record.decision) == (None, False, "allow")
    assert (record.agents[0].calls, record.answers) == (4, [])


async def test_a_session_that_the_app_ends_has_its_close_code() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 3000})

    audited = Audited(app, Frames())
    await Session(leaves=False).call(audited)
    assert (audited.record.status, audited.record.close_code, audited.record.complete) == (101, 3000, True)


@pytest.mark.parametrize(
    ("answer", "code", "word"),
    [
        (CLOSE, 4001, "close"),
        (AgentResponse.block(403, SECRET), 1008, "block"),
        (ValueError(SECRET), 1011, "error"),
    ],
)
async def test_a_session_that_an_agent_ends_leaves_one_record(
    answer: AgentResponse | Exception, code: int, word: str
) -> None:
    audited = Audited(echo, Frames(answer))
    session = Session(SECRET, leaves=False)
    with anyio.fail_after(10):
        await session.call(audited)
    record = audited.record
    assert (record.status, record.close_code, record.complete) == (101, code, True)
    assert (record.decision, record.decided_by) == (word, "a")
    assert session.sent[-1]["code"] == code
    assert SECRET not in str(record)


async def test_a_dropped_frame_is_no_word_on_the_session() -> None:
    audited = Audited(echo, Frames({b"bad": DROP}))
    await Session("bad", "good").call(audited)
    record = audited.record
    assert (record.decision, record.decided_by) == ("allow", None)
    assert [answer.decision for answer in record.answers] == ["drop"]
    assert record.agents[0].calls == 3


@pytest.mark.parametrize(("extensions", "status"), [(DENIAL_EXTENSION, 418), ({}, 403)])
async def test_a_denied_handshake_leaves_one_record(extensions: Any, status: int, probe: type[Probe]) -> None:
    audited = Audited(echo, probe(request_headers=AgentResponse.block(418)))
    session = Session(leaves=False, extensions=extensions)
    await session.call(audited)
    record = audited.record
    assert (record.status, record.complete, record.decision, record.decided_by) == (status, True, "block", "a")
    assert record.close_code == (None if extensions else 1008)


async def test_a_handshake_that_the_app_denies_has_its_status() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 429, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b"later"})

    audited = Audited(app, Frames())
    await Session(leaves=False, extensions=DENIAL_EXTENSION).call(audited)
    assert (audited.record.status, audited.record.close_code, audited.record.complete) == (429, None, True)


async def test_a_websocket_app_that_raises_leaves_one_record() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        raise ValueError(SECRET)

    audited = Audited(app, Frames())
    with pytest.raises(ValueError, match=SECRET):
        await Session(leaves=False).call(audited)
    assert (audited.record.status, audited.record.complete, audited.record.error) == (101, False, "ValueError")
    assert SECRET not in str(audited.record)


async def test_a_cancelled_session_leaves_one_record() -> None:
    audited = Audited(echo, Frames())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Session("one", leaves=False).call, audited)
        await settle()
        tasks.cancel_scope.cancel()
    assert (audited.record.status, audited.record.close_code, audited.record.complete) == (101, None, False)


# What agents said


async def test_every_answer_is_recorded_with_what_the_agent_said_of_it(probe: type[Probe]) -> None:
    notes = AuditMetadata(tags=["t1", "t2"], rule_ids=["r"], reason_codes=["c"], confidence=0.75)
    first = AgentConfig("first", probe(request_headers=AgentResponse.allow(audit=notes), response_headers=None))
    second = AgentConfig("second", probe(response_headers=AgentResponse.block(audit=notes)))
    audited = Audited(App(), first, second)
    await Client().call(audited)
    record = audited.record
    assert [(answer.agent, answer.event, answer.decision) for answer in record.answers] == [
        ("first", "request_headers", "allow"),
        ("first", "response_headers", "allow"),
        ("second", "response_headers", "block"),
    ]
    assert (record.decision, record.decided_by) == ("block", "second")
    for answer in (record.answers[0], record.answers[2]):
        assert (list(answer.tags), list(answer.rule_ids), list(answer.reason_codes)) == (["t1", "t2"], ["r"], ["c"])
        assert answer.confidence == 0.75
    silent = record.answers[1]
    assert (list(silent.tags), silent.confidence, silent.failure, silent.enforced) == ([], None, None, True)
    assert [(agent.agent, agent.calls) for agent in record.agents] == [("first", 2), ("second", 1)]


async def test_a_shadow_agent_is_recorded_with_what_it_would_have_done(probe: type[Probe]) -> None:
    app = App()
    configs = [
        AgentConfig("denies", probe(request_headers=DENIED), enforce=False),
        AgentConfig("fails", probe(request_headers=_raise), enforce=False),
        AgentConfig("allows", probe(request_headers=None), enforce=False),
        AgentConfig("enforced", probe(request_headers=None)),
    ]
    audited = Audited(app, *configs)
    await Client().call(audited)
    record = audited.record
    assert app.calls == 1
    assert (record.decision, record.decided_by, record.status) == ("allow", None, 200)
    assert record.would_stop == ["denies", "fails"]
    assert record.passed_open == []
    assert [(answer.agent, answer.decision, answer.failure, answer.enforced) for answer in record.answers] == [
        ("denies", "block", None, False),
        ("fails", None, "error", False),
        ("allows", "allow", None, False),
        ("enforced", "allow", None, True),
    ]


async def test_who_failed_and_was_gone_on_without_is_recorded(probe: type[Probe]) -> None:
    agent = probe(request_headers=_raise, request_body=None)
    limited = AgentConfig("limited", probe(request_body=None), failure_mode=FailureMode.OPEN, max_request_body_bytes=2)
    audited = Audited(App(), AgentConfig("open", agent, failure_mode=FailureMode.OPEN), limited)
    await Client("POST", body=b"xxx").call(audited)
    record = audited.record
    assert (record.decision, record.status) == ("allow", 200)
    assert record.passed_open == ["open", "limited"]
    failures = [answer for answer in record.answers if answer.failure is not None]
    assert [(answer.agent, answer.failure, answer.failure_mode, answer.decision) for answer in failures] == [
        ("open", "error", "open", None),
        ("limited", "request_too_large", "open", None),
    ]


async def test_the_failure_that_stopped_it_is_recorded_in_the_mode_of_the_route() -> None:
    config = AgentConfig("a", Probe(request_headers=_raise), failure_mode=FailureMode.OPEN)
    client = Client()
    audited = Audited(App(), config, routes=[Route("/", [("a", FailureMode.CLOSED)])])
    await client.call(audited)
    record = audited.record
    assert client.status == record.status == 503
    assert (record.decision, record.decided_by, record.passed_open) == ("error", "a", [])
    assert [(answer.failure, answer.failure_mode) for answer in record.answers] == [("error", "closed")]


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME])
async def test_a_timeout_and_the_time_it_took_are_recorded(anyio_backend: Any) -> None:
    agent = SlowProbe(request_headers=Held())
    audited = Audited(App(), AgentConfig("a", agent, timeout=5.0))
    await Client().call(audited)
    assert (audited.record.decision, audited.record.status) == ("timeout", 504)
    assert audited.record.answers[0].failure == "timeout"


async def test_an_answer_that_comes_after_the_decision_is_in_the_record(probe: type[Probe]) -> None:
    audited = Audited(App(), probe(request_headers=DENIED, complete=TAGGED))
    await Client().call(audited)
    record = audited.record
    assert [(answer.event, answer.decision) for answer in record.answers] == [
        ("request_headers", "block"),
        ("request_complete", "allow"),
    ]
    assert list(record.answers[-1].tags) == ["seen"]
    assert record.answers_left_out == 0


async def test_a_failure_after_the_decision_is_in_the_record() -> None:
    first = AgentConfig("first", Probe(request_headers=DENIED))
    last = AgentConfig("last", Probe(complete=_raise), failure_mode=FailureMode.OPEN)
    audited = Audited(App(), first, last)
    await Client().call(audited)
    assert audited.record.passed_open == ["last"]
    assert audited.record.answers_left_out == 0


async def test_a_guardrail_that_a_handler_asked_is_in_the_record() -> None:
    class Guardrail(Agent):
        async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> AgentResponse:
            return AgentResponse.block(audit=AuditMetadata(reason_codes=["injection"]))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await scope["state"]["agents"].inspect_guardrail("aside", SECRET, inspection_type="prompt_injection")
        await App()(scope, receive, send)

    manager = AgentManager([AgentConfig("a", Probe(request_headers=None)), AgentConfig("aside", Guardrail())])
    records: list[AuditRecord] = []
    await Client().call(AgentMiddleware(app, manager=manager, routes=[Route("/", ["a"])], on_audit=records.append))
    (record,) = records
    assert (record.decision, record.status) == ("allow", 200)
    assert [(answer.agent, answer.event, answer.decision) for answer in record.answers] == [
        ("a", "request_headers", "allow"),
        ("aside", "guardrail_inspect", "block"),
    ]
    assert list(record.answers[1].reason_codes) == ["injection"]
    assert SECRET not in str(record)


# Long sessions


@pytest.mark.parametrize("count", the_first_is_short([101, 99, 100, 250, 1000, 1001, 2500]))
async def test_a_long_session_has_its_newest_hundred_answers(count: int) -> None:
    async def on_frame(event: Any) -> AgentResponse:
        return AgentResponse.allow(audit=AuditMetadata(tags=[str(event.frame_index)]))

    class Tagging(Agent):
        async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
            return await on_frame(event) if event.client_to_server else None

    audited = Audited(echo, Tagging())
    await Session(*["x"] * count).call(audited)
    record = audited.record
    assert [answer.tags[0] for answer in record.answers] == [str(n) for n in range(max(0, count - 100), count)]
    assert record.answers_left_out == max(0, count - 100)
    assert record.agents[0].calls == 2 * count


async def test_a_session_that_says_nothing_worth_noting_has_calls_but_no_answers() -> None:
    audited = Audited(echo, Frames())
    await Session(*["x"] * 1500).call(audited)
    assert (audited.record.answers, audited.record.answers_left_out) == ([], 0)
    assert audited.record.agents[0].calls == 3000
    assert audited.record.agents[0].seconds > 0


async def test_chunks_that_are_consented_to_are_counted() -> None:
    agent = Probe(request_body=None, response_body=None)
    app = App(start(), *[body(b"x", more=True)] * 20, body(b"x"))
    config = AgentConfig("a", agent, request_body_mode=STREAM, response_body_mode=STREAM)
    audited = Audited(app, config)
    await Client("POST", body=[b"y"] * 10).call(audited)
    assert audited.record.agents[0].calls == len(agent.chunks) == 31
    assert (audited.record.answers, audited.record.answers_left_out) == ([], 0)


async def test_a_long_session_does_not_forget_who_would_have_stopped_it() -> None:
    shadow = AgentConfig("shadow", Frames({b"first": CLOSE}), enforce=False)
    audited = Audited(echo, shadow, AgentConfig("drops", Frames({b"x": DROP})))
    await Session("first", *["x"] * 1500).call(audited)
    assert audited.record.would_stop == ["shadow"]


async def test_a_long_session_does_not_forget_who_was_gone_on_without() -> None:
    class FailsAtFirst(Agent):
        async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
            if event.data == b"first":
                raise ValueError
            return None

    fails = AgentConfig("fails", FailsAtFirst(), failure_mode=FailureMode.OPEN)
    audited = Audited(echo, fails, AgentConfig("drops", Frames({b"x": DROP})))
    await Session("first", *["x"] * 1500).call(audited)
    assert audited.record.passed_open == ["fails"]


async def test_no_answer_is_lost_that_comes_while_an_agent_closes_the_session() -> None:
    audited = Audited(echo, AgentConfig("closes", Frames({b"last": CLOSE})), AgentConfig("a", Probe(complete=TAGGED)))
    with anyio.fail_after(10):
        await Session("one", "last", leaves=False).call(audited)
    assert [(answer.agent, answer.decision) for answer in audited.record.answers] == [
        ("closes", "close"),
        ("a", "allow"),
    ]
    assert audited.record.answers_left_out == 0


# Who listens


@pytest.mark.parametrize("why", ["level", "disabled", "disabled for all"])
async def test_where_nobody_listens_nothing_is_built_and_the_app_has_the_send_of_the_server(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "level":
        monkeypatch.setattr(LOGGER, "level", logging.WARNING)
        LOGGER.manager._clear_cache()  # type: ignore[attr-defined]
    elif why == "disabled":
        monkeypatch.setattr(LOGGER, "disabled", True)
    else:
        logging.disable(logging.INFO)
    redacted: list[str] = []
    seen: list[Send] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(send)
        await App()(scope, receive, send)

    def note(text: str) -> str:
        redacted.append(text)
        return text

    client = Client(headers=[(b"user-agent", b"me")])
    middleware: Any = guarded(
        app, AgentConfig("a", Probe(request_headers=None)), audit_headers=["user-agent"], audit_redact=note
    )
    send = client.send
    try:
        await middleware(client.scope, client.receive, send)
    finally:
        logging.disable(logging.NOTSET)
    assert len(seen) == 1
    assert seen[0] is send
    assert redacted == []


async def test_the_hook_has_the_record_where_nobody_reads_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOGGER, "disabled", True)
    audited = Audited(App(), Probe(request_headers=None))
    await Client().call(audited)
    assert audited.record.status == 200


async def test_the_log_has_the_record_where_there_is_no_hook(log: Lines) -> None:
    await Client().call(guarded(App(), AgentConfig("a", Probe(request_headers=None))))
    (line,) = log.lines
    assert json.loads(line)["status"] == 200


async def test_a_hook_that_raises_is_logged_and_nothing_else(log: Lines, caplog: pytest.LogCaptureFixture) -> None:
    def hook(record: AuditRecord) -> None:
        raise ValueError("the hook's own fault")

    client = Client()
    assert await client.call(Audited(App(), Probe(request_headers=None), on_audit=hook)) == "returned by the app"
    assert client.status == 200
    assert len(log.lines) == 1
    (complaint,) = caplog.records
    assert (complaint.name, complaint.levelno) == ("asgi_agents", logging.ERROR)
    assert "hook" in complaint.getMessage()
    assert current_correlation_id() == ""


async def test_a_hook_that_raises_does_not_hide_what_the_app_raised() -> None:
    def hook(record: AuditRecord) -> None:
        raise KeyError

    async def raises(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("the app's")

    with pytest.raises(ValueError, match="the app's"):
        await Client().call(Audited(raises, Probe(request_headers=None), on_audit=hook))


async def test_a_hook_that_always_raises_is_not_a_line_for_each_request(caplog: pytest.LogCaptureFixture) -> None:
    def hook(record: AuditRecord) -> None:
        raise ValueError

    audited = Audited(App(), Probe(request_headers=None), on_audit=hook)
    for _ in range(20):
        await Client().call(audited)
    assert 1 <= len([line for line in caplog.records if line.name == "asgi_agents"]) < 5


def test_a_hook_that_would_never_run_is_refused() -> None:
    async def hook(record: AuditRecord) -> None: ...

    with pytest.raises(ConfigurationError, match="on_audit"):
        Audited(App(), Probe(request_headers=None), on_audit=hook)


async def test_the_hook_runs_within_the_connection() -> None:
    seen: list[tuple[str, str]] = []

    def hook(record: AuditRecord) -> None:
        seen.append((record.correlation_id, current_correlation_id()))

    await Client().call(Audited(App(), Probe(request_headers=None), on_audit=hook))
    assert seen[0][0] == seen[0][1]


async def test_log_records_that_have_a_correlation_id_already_are_no_obstacle(log: Lines) -> None:
    made = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = made(*args, **kwargs)
        # As many applications do that have one of their own.
        record.correlation_id = "-"
        return record

    client, audited = Client(), Audited(App(), Probe(request_headers=None))
    logging.setLogRecordFactory(factory)
    try:
        await client.call(audited)
    finally:
        logging.setLogRecordFactory(made)
    assert client.complete
    assert audited.record.status == 200
    assert len(log.lines) == 1


async def test_a_log_filter_that_raises_does_not_harm_the_connection(log: Lines) -> None:
    def fails(record: logging.LogRecord) -> bool:
        raise ValueError("a fault of the logging set-up")

    client, audited = Client(), Audited(App(), Probe(request_headers=None))
    LOGGER.addFilter(fails)
    try:
        assert await client.call(audited) == "returned by the app"
    finally:
        LOGGER.removeFilter(fails)
    assert audited.record.status == 200
    assert current_correlation_id() == ""


# What is left out


async def test_no_body_no_query_and_no_header_value_is_in_a_record(log: Lines, probe: type[Probe]) -> None:
    secret = SECRET.encode()
    app = App(start(200, (b"x-answer", secret)), body(secret))
    client = Client("POST", headers=[(b"cookie", secret), (b"x-some", secret), (b"referer", secret)], body=secret)
    client.scope["query_string"] = b"q=" + secret
    client.scope["raw_path"] = b"/?q=" + secret
    custom = AuditMetadata(custom={"text": SECRET})
    answer = AgentResponse.allow(audit=custom, routing_metadata={"pool": SECRET})
    audited = Audited(
        app,
        AgentConfig("denies", probe(request_headers=AgentResponse.block(403, SECRET)), enforce=False),
        AgentConfig("fails", probe(request_body=_raise), enforce=False),
        probe(request_headers=answer, request_body=None, response_headers=None, response_body=None),
    )
    await client.call(audited)
    assert audited.record.status == 200
    assert SECRET not in str(audited.record)
    assert SECRET not in repr(audited.record)
    assert SECRET not in "".join(log.lines)


async def test_no_frame_is_in_a_record() -> None:
    audited = Audited(echo, Frames({SECRET.encode(): AgentResponse.websocket_close(4000, SECRET)}))
    with anyio.fail_after(10):
        await Session(SECRET, leaves=False).call(audited)
    assert audited.record.close_code == 4000
    assert SECRET not in str(audited.record)


async def test_what_an_agent_answers_in_words_is_not_in_a_record() -> None:
    answer = AgentResponse.block(403, SECRET, headers={"x-why": SECRET})
    audited = Audited(App(), Probe(request_headers=answer))
    await Client().call(audited)
    assert SECRET not in str(audited.record)


async def test_headers_are_recorded_where_they_are_named_whatever_their_case() -> None:
    audited = Audited(App(), Probe(request_headers=None), audit_headers=["User-Agent", "x-none", "ACCEPT"])
    headers = [(b"User-Agent", b"me"), (b"accept", b"a/b"), (b"Accept", b"c/d"), (b"x-other", b"no")]
    await Client(headers=headers).call(audited)
    assert audited.record.headers == {"user-agent": "me", "accept": "a/b, c/d"}


async def test_headers_are_recorded_as_the_client_sent_them_not_as_agents_changed_them() -> None:
    change = AgentResponse.allow(request_headers=[HeaderOp.set("user-agent", "other")])
    audited = Audited(App(), Probe(request_headers=change), audit_headers=["user-agent"])
    await Client(headers=[(b"user-agent", b"me")]).call(audited)
    assert audited.record.headers == {"user-agent": "me"}


async def test_headers_that_are_taken_out_of_the_request_are_recorded_all_the_same() -> None:
    records: list[AuditRecord] = []
    config = AgentConfig("a", Probe(request_headers=None), sets={"x-user"})
    app = App()
    middleware = guarded(app, config, audit_headers=["x-user"], on_audit=records.append)
    await Client(headers=[(b"x-user", b"mallory")]).call(middleware)
    assert records[0].headers == {"x-user": "mallory"}
    assert app.headers == []


CREDENTIALS = ["authorization", "Cookie", "x-api-key", "x-auth-token", "x-client-secret", "x-password", "x-apikey"]


@pytest.mark.parametrize("name", CREDENTIALS)
async def test_credentials_are_redacted_also_where_their_header_is_named(name: str) -> None:
    audited = Audited(App(), Probe(request_headers=None), audit_headers=[name])
    await Client(headers=[(name.encode(), SECRET.encode())] * 2).call(audited)
    assert audited.record.headers == {name.lower(): "[redacted], [redacted]"}


@pytest.mark.parametrize("name", CREDENTIALS)
async def test_without_redaction_headers_that_are_named_are_recorded_as_they_are(name: str) -> None:
    audited = Audited(App(), Probe(request_headers=None), audit_headers=[name], audit_redact=None)
    await Client(headers=[(name.encode(), b"Bearer abcdefgh")]).call(audited)
    assert audited.record.headers == {name.lower(): "Bearer abcdefgh"}


async def test_credentials_are_redacted_also_with_a_redaction_of_ones_own() -> None:
    audited = Audited(App(), Probe(request_headers=None), audit_headers=["cookie"], audit_redact=str)
    await Client(headers=[(b"cookie", SECRET.encode())]).call(audited)
    assert audited.record.headers == {"cookie": "[redacted]"}


LEAK = f"Bearer {SECRET}"


async def test_secrets_are_redacted_wherever_text_comes_from_outside(log: Lines) -> None:
    notes = AuditMetadata(tags=[LEAK, "fine"], rule_ids=[f"password={SECRET}"], reason_codes=[f"ghp_{SECRET}aaaaaaa"])
    shadow = AgentConfig("shadow", Probe(request_headers=AgentResponse.block(audit=notes)), enforce=False)
    own = Probe(request_headers=AgentResponse.allow(audit=notes))
    audited = Audited(App(), shadow, own, audit_headers=["x-note"])
    client = Client(path=f"/reset/password={SECRET}/x", headers=[(b"x-note", LEAK.encode())])
    await client.call(audited)
    record = audited.record
    assert SECRET not in str(record)
    assert SECRET not in "".join(log.lines)
    assert record.path == "/reset/password=[redacted]"
    assert record.headers == {"x-note": "Bearer [redacted]"}
    for answer in record.answers:
        assert list(answer.tags) == ["Bearer [redacted]", "fine"]
        assert list(answer.rule_ids) == ["password=[redacted]"]
        assert list(answer.reason_codes) == ["[redacted]"]


async def test_without_redaction_text_is_recorded_as_it_is() -> None:
    answer = AgentResponse.allow(audit=AuditMetadata(tags=["password=x"]))
    audited = Audited(App(), Probe(request_headers=answer), audit_redact=None)
    await Client(path="/password=x").call(audited)
    assert audited.record.path == "/password=x"
    assert list(audited.record.answers[0].tags) == ["password=x"]


async def test_a_redaction_of_ones_own_is_given_every_text_from_outside() -> None:
    answer = AgentResponse.allow(audit=AuditMetadata(tags=["tag"], rule_ids=["rule"], reason_codes=["code"]))
    audited = Audited(
        App(), Probe(request_headers=answer), audit_headers=["user-agent"], audit_redact=lambda text: f"<{text}>"
    )
    await Client(path="/p", headers=[(b"user-agent", b"me")]).call(audited)
    record = audited.record
    (said,) = record.answers
    assert (record.path, record.headers) == ("</p>", {"user-agent": "<me>"})
    assert (list(said.tags), list(said.rule_ids), list(said.reason_codes)) == (["<tag>"], ["<rule>"], ["<code>"])


async def test_a_long_text_is_cut_after_it_is_redacted() -> None:
    # Cut first, the secret would not be one any more, by its looks.
    path = "/" + "x/" * 508 + f"token {SECRET}{'a' * 5000}"
    audited = Audited(App(), Probe(request_headers=None))
    await Client(path=path).call(audited)
    assert SECRET not in audited.record.path
    assert len(audited.record.path) < 1100


async def test_a_client_with_much_to_say_makes_no_large_record() -> None:
    audited = Audited(App(), Probe(request_headers=None), audit_headers=["x-note"])
    await Client(path="/" + "a" * 60_000, headers=[(b"x-note", b"n" * 5000)] * 100).call(audited)
    assert len(str(audited.record)) < 20_000


@pytest.mark.parametrize("fault", ["raises", "returns None"])
@pytest.mark.parametrize("of", ["header", "path", "tag"])
async def test_a_redaction_that_fails_harms_no_connection_and_leaks_nothing(
    fault: str, of: str, log: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    def redact(text: str) -> Any:
        if SECRET not in text:
            return text
        if fault == "raises":
            raise ValueError("could not redact")
        return None

    tags = [SECRET] if of == "tag" else []
    agent = Probe(request_headers=AgentResponse.allow(audit=AuditMetadata(tags=tags)))
    audited = Audited(App(), agent, audit_headers=["x-note"], audit_redact=redact)
    client = Client(
        path=f"/{SECRET}" if of == "path" else "/",
        headers=[(b"x-request-id", b"the-id"), (b"x-note", SECRET.encode() if of == "header" else b"x")],
    )
    assert await client.call(audited) == "returned by the app"
    assert client.complete
    assert current_correlation_id() == ""
    assert not live_ids
    assert SECRET not in "".join(log.lines) + caplog.text
    # There is a record all the same: who can make redaction fail must not be able to go unseen.
    assert SECRET not in str(audited.record)
    assert audited.record.correlation_id == "the-id"


async def test_a_redaction_that_fails_does_not_hide_what_the_app_raised() -> None:
    def redact(text: str) -> str:
        raise KeyError

    async def raises(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("the app's")

    with pytest.raises(ValueError, match="the app's"):
        await Client().call(Audited(raises, Probe(request_headers=None), audit_redact=redact))


# One line each, whatever is in it


BREAKS = ["\n", "\r", "\r\n", "\x00", "\x0b", "\x0c", "\x1b[2K", "\x1c", "\x85", "\u2028", "\u2029"]


@pytest.mark.parametrize("text", BREAKS, ids=ascii)
@pytest.mark.parametrize("redact", [True, False])
async def test_nobody_can_forge_a_line_of_the_log(text: str, redact: bool, log: Lines) -> None:
    forged = f"{text}2025-01-01 INFO all is well"
    notes = AuditMetadata(tags=[forged], rule_ids=[forged], reason_codes=[forged])
    options: dict[str, Any] = {} if redact else {"audit_redact": None}
    audited = Audited(
        App(), Probe(request_headers=AgentResponse.block(audit=notes)), audit_headers=["user-agent"], **options
    )
    client = Client(path="/", headers=[(b"user-agent", forged.encode("latin-1", "replace"))])
    client.scope["path"] = f"/{forged}"
    await client.call(audited)
    (line,) = log.lines
    assert len(line.splitlines()) == 1
    assert json.loads(line) == dictionary(audited.record)
    assert audited.record.path == f"/{forged}"


# Unicode Standard Annex #9, section 2
@pytest.mark.parametrize(
    "control", [*"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"], ids=ascii
)
async def test_no_text_makes_a_terminal_show_a_line_in_another_order(control: str, log: Lines) -> None:
    notes = AuditMetadata(tags=[f"{control}abc"])
    audited = Audited(App(), Probe(request_headers=AgentResponse.allow(audit=notes)))
    await Client().call(audited)
    (line,) = log.lines
    assert control not in line
    assert json.loads(line) == dictionary(audited.record)


class Score(float):
    """As numpy.float64 is one."""


class Code(StrEnum):
    SQL = "sql"


class Marked(str):
    """As markupsafe.Markup is one."""


@pytest.mark.parametrize(
    ("path", "audit"),
    [
        pytest.param("/\ud800", AuditMetadata(), id="surrogate in the path"),
        pytest.param("/", AuditMetadata(tags=["\ud800"]), id="surrogate in a tag"),
        pytest.param("/", AuditMetadata(rule_ids=["\udfff"]), id="surrogate in a rule id"),
        pytest.param("/", AuditMetadata(tags=[Marked("x")]), id="str of another type"),
        pytest.param("/", AuditMetadata(reason_codes=[Code.SQL]), id="enum"),
        pytest.param("/", AuditMetadata(confidence=Score(0.5)), id="float of another type"),
        pytest.param("/", AuditMetadata(confidence=float("nan")), id="nan"),
        pytest.param("/", AuditMetadata(confidence=float("inf")), id="infinite"),
        pytest.param("/", AuditMetadata(confidence=1), id="int"),
        pytest.param("/", AuditMetadata(confidence=2**70), id="large int"),
    ],
)
@pytest.mark.parametrize("redact", [True, False])
async def test_nothing_that_agents_or_clients_say_keeps_a_record_out_of_the_log(
    path: str, audit: AuditMetadata, redact: bool, log: Lines
) -> None:
    options: dict[str, Any] = {} if redact else {"audit_redact": None}
    audited = Audited(App(), Probe(request_headers=AgentResponse.block(audit=audit)), **options)
    client = Client()
    client.scope["path"] = path
    await client.call(audited)
    assert log.lost == []
    (line,) = log.lines
    assert json.loads(line)["status"] == 403
    assert json.loads(str(audited.record))["decision"] == "block"


# Configuration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"audit_headers": "user-agent"}, "audit_headers='user-agent'"),
        ({"audit_headers": None}, "audit_headers=None"),
        ({"audit_headers": 3}, "audit_headers=3"),
        ({"audit_headers": ["user agent"]}, "audit_headers contains 'user agent'"),
        ({"audit_headers": ["user-agent\n"]}, "audit_headers contains"),
        ({"audit_headers": [""]}, "audit_headers contains ''"),
        ({"audit_headers": [b"user-agent"]}, "audit_headers contains b'user-agent'"),
        ({"audit_headers": b"user-agent"}, "audit_headers"),
        ({"on_audit": "log"}, "on_audit='log'"),
        ({"audit_redact": "[x]"}, r"audit_redact='\[x\]'"),
        ({"audit_redact": False}, "audit_redact=False"),
    ],
)
def test_what_cannot_work_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        guarded(App(), AgentConfig("a", Probe(request_headers=None)), **options)


def test_names_of_headers_may_come_from_anything_that_can_be_read_once() -> None:
    guarded(App(), AgentConfig("a", Probe(request_headers=None)), audit_headers=(name for name in ["a", "b"]))


# The operational log


async def test_the_operational_log_has_no_line_for_each_request(caplog: pytest.LogCaptureFixture) -> None:
    audited = Audited(App(), AgentConfig("a", Probe(request_headers=None)))
    with caplog.at_level(logging.DEBUG, logger="asgi_agents"):
        for _ in range(20):
            await Client().call(audited)
    assert {line.name for line in caplog.records} == {"asgi_agents.audit"}


@pytest.mark.parametrize("circuit_breaker", [True, False])
async def test_an_agent_that_fails_is_logged_once_and_without_what_it_was_shown(
    circuit_breaker: bool, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {} if circuit_breaker else {"circuit_breaker": None}
    agent = Probe(request_headers=_raise, request_body=_raise)
    audited = Audited(App(), AgentConfig("a", agent, failure_mode=FailureMode.OPEN, **options))
    secret = SECRET.encode()
    with caplog.at_level(logging.DEBUG, logger="asgi_agents"):
        for _ in range(30):
            await Client("POST", headers=[(b"x-some", secret), (b"cookie", secret)], body=secret).call(audited)
    lines = [line for line in caplog.records if line.name == "asgi_agents"]
    assert 1 <= len(lines) <= 3
    assert SECRET not in caplog.text


# Reactions and apps


def _raise(event: Any) -> AgentResponse:
    raise ValueError(f"{SECRET} in {event!r}")


async def _forever(scope: Scope, receive: Receive, send: Send) -> None:
    await anyio.sleep_forever()


class _Suspension:
    def __await__(self) -> Generator[str, None, None]:
        yield "suspended"


async def _suspends_for_good(scope: Scope, receive: Receive, send: Send) -> None:
    await _Suspension()


@pytest.fixture(params=[Probe, SlowProbe], ids=["prompt", "slow"])
def probe(request: pytest.FixtureRequest) -> type[Probe]:
    """Agents whose hooks never suspend take shorter ways through the package than those whose hooks do."""
    kind: type[Probe] = request.param
    return kind


async def test_what_agents_say_has_a_budget() -> None:
    class Chatty(Agent):
        async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse:
            texts = [f"{number} {'x' * 1000}" for number in range(100)]
            return AgentResponse.allow(audit=AuditMetadata(tags=texts, rule_ids=texts, reason_codes=texts))

    audited = Audited(echo, Chatty())
    await Session(*(str(number) for number in range(150))).call(audited)
    record = audited.record

    assert len(str(record)) < 100_000
    assert len(record.answers) == 100
    assert record.answers[0].tags
    assert all(len(answer.tags) <= 16 and all(len(tag) <= 129 for tag in answer.tags) for answer in record.answers)


async def test_the_record_is_about_what_the_client_has_asked_for() -> None:
    async def rewrite(scope: Scope, receive: Receive, send: Send) -> None:
        scope.update(path="/rewritten", method="X", client=("203.0.113.9", 1))
        await App()(scope, receive, send)

    audited = Audited(rewrite, Probe(request_headers=None))
    await Client("POST", "/asked").call(audited)

    assert (audited.record.method, audited.record.path) == ("POST", "/asked")
    assert audited.record.client != "203.0.113.9"


async def test_the_record_says_what_an_agent_has_changed() -> None:
    answer = AgentResponse.allow(response_headers=[HeaderOp.set("x-seen", "1")])
    audited = Audited(App(), Probe(request_headers=answer))
    await Client().call(audited)

    (said,) = audited.record.answers
    assert (said.decision, list(said.changed)) == ("allow", ["response_headers"])
