"""What an agent raises, and what comes of it: in process, over HTTP and over a stream the same."""

import gc
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple

import anyio
import fastapi
import httpx
import pytest
from anyio.lowlevel import checkpoint
from starlette.exceptions import HTTPException, WebSocketException

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentError,
    AgentManager,
    AgentMiddleware,
    AgentProtocolError,
    AgentResponse,
    AuditMetadata,
    AuditRecord,
    BadInput,
    BodyMode,
    BreakerState,
    CircuitBreakerConfig,
    ConfigureEvent,
    EventType,
    FailureKind,
    FailureMode,
    GuardrailInspectEvent,
    GuardrailUnavailableError,
    HttpTransport,
    Opcode,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseAborted,
    ResponseBodyChunkEvent,
    Verdict,
    WebSocketClose,
    WebSocketFrameEvent,
    fastapi_error,
)
from asgi_agents.guard import Guard
from asgi_agents.manager import registry_of
from asgi_agents.protocol import Event
from asgi_agents.serve import agent_app
from tests.observability.spans import Spans, attributes, serving
from tests.support.asgi import App, Client, Probe, SlowProbe, body, guarded, start
from tests.support.sample_events import CHUNK, COMPLETE, HEAD, QUESTION, RESPONSE_HEAD

CLOSED, OPEN = FailureMode.CLOSED, FailureMode.OPEN
# Opens at the first failure, so that it tells whether something counted.
TRIGGER = CircuitBreakerConfig(failure_threshold=1)

PIECE = ResponseBodyChunkEvent(correlation_id="c", data=b"x", is_last=True)
FRAME = WebSocketFrameEvent(
    correlation_id="c", opcode=Opcode.TEXT, data=b"x", client_to_server=True, frame_index=0, client_ip="::1"
)
HEADS = {EventType.REQUEST_HEADERS}
BEFORE_A_CLIENT: list[Event] = [HEAD, CHUNK, RESPONSE_HEAD, PIECE]
each = pytest.mark.parametrize


class Raises(Agent):
    """Raises what it is told to, at each event, some frames down; at once, or after a pause."""

    events = frozenset(EventType) - {EventType.CONFIGURE}

    def __init__(self, make: Callable[[], Exception], *, pause: bool = False) -> None:
        self.make = make
        for event_type in EventType:
            setattr(self, f"on_{event_type.value}", self._later if pause else self._now)

    def _raise(self) -> None:
        raise self.make()

    async def _now(self, event: Event) -> None:
        self._raise()

    async def _later(self, event: Event) -> None:
        await checkpoint()
        self._raise()


class Configured(Raises):
    """Hears of its configuration as well."""

    events = frozenset(EventType)


# --- Ways to have the agent


@asynccontextmanager
async def in_process(make: Callable[[], Exception], kind: type[Raises] = Raises) -> AsyncIterator[Any]:
    yield kind(make)


@asynccontextmanager
async def in_process_later(make: Callable[[], Exception], kind: type[Raises] = Raises) -> AsyncIterator[Any]:
    yield kind(make, pause=True)


@asynccontextmanager
async def over_http(make: Callable[[], Exception], kind: type[Raises] = Raises) -> AsyncIterator[Any]:
    yield HttpTransport("http://agent/", transport=httpx.ASGITransport(agent_app(kind(make))))


@asynccontextmanager
async def over_a_stream(make: Callable[[], Exception], kind: type[Raises] = Raises) -> AsyncIterator[Any]:
    async with serving(kind(make)) as address:
        yield address


WAYS = [in_process, in_process_later, over_http, over_a_stream]
every_way = each("way", WAYS, ids=lambda way: way.__name__)
Way = Callable[..., Any]


@asynccontextmanager
async def asking(way: Way, make: Callable[[], Exception], **fields: Any) -> AsyncIterator[Guard]:
    """A guard whose agent raises that."""
    async with way(make) as agent:
        events = set(EventType) - {EventType.CONFIGURE}
        guard = Guard(AgentConfig("a", agent, events=events, timeout=60, circuit_breaker=TRIGGER, **fields))
        yield guard
        await guard.client.retire()


async def ask(guard: Guard, event: Event, mode: FailureMode = CLOSED) -> Verdict:
    if isinstance(event, GuardrailInspectEvent):
        return (await guard.inspect(event, mode))[0]
    return await guard.call(event, mode)


def is_closed(guard: Guard) -> bool:
    assert guard.breaker is not None
    return guard.breaker.state is BreakerState.CLOSED


@pytest.fixture(params=[Probe, SlowProbe], ids=["prompt", "slow"])
def probe(request: pytest.FixtureRequest) -> type[Probe]:
    kind: type[Probe] = request.param
    return kind


# --- Exceptions that are answers


class Said(NamedTuple):
    """An exception, and the reply that it is to a request's head."""

    make: Callable[[], Exception]
    status: int
    body: bytes
    headers: Mapping[bytes, bytes] = MappingProxyType({})
    outcome: str = "block"


class Forbidden(fastapi.HTTPException):
    """One of the app's own."""

    def __init__(self) -> None:
        super().__init__(403, "not you")


def caused_by_something_else() -> Exception:
    exc = HTTPException(401, "who?")
    exc.__cause__ = ZeroDivisionError()
    return exc


TEXT = {b"content-type": b"text/plain; charset=utf-8"}
JSON = {b"content-type": b"application/json"}
ANSWERS: dict[str, Said] = {
    "bad input": Said(BadInput, 400, b"Bad Request", TEXT),
    "bad input with words": Said(lambda: BadInput("not JSON"), 400, b"not JSON", TEXT),
    "bad input with a status": Said(lambda: BadInput("too many", status=422), 422, b"too many", TEXT),
    "bad input with a member": Said(lambda: BadInput("long", status=HTTPStatus.CONFLICT), 409, b"long", TEXT),
    "status": Said(lambda: HTTPException(404), 404, b"Not Found", TEXT),
    "member": Said(lambda: HTTPException(HTTPStatus.FORBIDDEN), 403, b"Forbidden", TEXT),
    "last": Said(lambda: HTTPException(499, "closed"), 499, b"closed", TEXT),
    "no words": Said(lambda: HTTPException(404, ""), 404, b""),
    "headers": Said(
        lambda: HTTPException(401, "who?", {"WWW-Authenticate": "Basic"}), 401, b"who?", {b"www-authenticate": b"Basic"}
    ),
    "FastAPI's": Said(lambda: fastapi.HTTPException(403, "no"), 403, b"no", TEXT),
    "subclass": Said(Forbidden, 403, b"not you", TEXT),
    "detail": Said(
        lambda: fastapi.HTTPException(422, [{"loc": ["body", "ä"]}]),
        422,
        '{"detail":[{"loc":["body","ä"]}]}'.encode(),
        JSON,
    ),
    "typed detail": Said(
        lambda: fastapi.HTTPException(403, {"a": 1}, {"Content-Type": "application/x+json"}),
        403,
        b'{"detail":{"a":1}}',
        {b"content-type": b"application/x+json"},
    ),
    "redirect": Said(
        lambda: HTTPException(303, headers={"Location": "/login", "set-cookie": "a=1"}),
        303,
        b"",
        {b"location": b"/login", b"set-cookie": b"a=1"},
        "redirect",
    ),
    "moved": Said(
        lambda: HTTPException(308, headers={"location": "https://b.example/ä"}),
        308,
        b"",
        {b"location": b"https://b.example/%C3%A4"},
        "redirect",
    ),
    "close": Said(lambda: WebSocketException(1008, "no"), 403, b"Forbidden", TEXT, "close"),
    "cause": Said(caused_by_something_else, 401, b"who?", TEXT),
    "group": Said(lambda: ExceptionGroup("", [HTTPException(403, "no")]), 403, b"no", TEXT),
    "first of a group": Said(
        lambda: ExceptionGroup("", [ValueError(), ExceptionGroup("", [BadInput("a")]), HTTPException(403, "b")]),
        400,
        b"a",
        TEXT,
    ),
    "beside an error": Said(
        lambda: ExceptionGroup("", [HTTPException(500), HTTPException(403, "no")]), 403, b"no", TEXT
    ),
}
every_answer = each("said", ANSWERS.values(), ids=ANSWERS)


@every_way
@every_answer
async def test_what_is_raised_is_sent_to_the_client_and_recorded_as_an_answer(way: Way, said: Said) -> None:
    records: list[AuditRecord] = []
    client, app = Client(), App()
    async with way(said.make) as agent:
        config = AgentConfig("a", agent, events=HEADS, timeout=60, circuit_breaker=TRIGGER, failure_mode=OPEN)
        manager = AgentManager([config])
        async with manager:
            await client.call(AgentMiddleware(app, manager=manager, on_audit=records.append))

    assert app.calls == 0
    assert client.status == said.status
    assert client.body == said.body
    assert {name: client.header(name) for name in said.headers} == said.headers
    [record] = records
    assert (record.decision, record.decided_by, record.status) == (said.outcome, "a", said.status)
    assert [(answer.decision, answer.failure) for answer in record.answers] == [(said.outcome, None)]
    assert manager.metrics["a"].outcomes == {said.outcome: 1}
    assert is_closed(registry_of(manager).guard("a"))


# --- In answer to what


@every_way
@each("event", BEFORE_A_CLIENT, ids=lambda event: event.event_type.value)
async def test_before_a_response_is_complete_they_are_blocks_and_redirects(way: Way, event: Event) -> None:
    for make, outcome in (
        (BadInput, "block"),
        (lambda: HTTPException(403), "block"),
        (lambda: HTTPException(302, headers={"location": "/"}), "redirect"),
    ):
        async with asking(way, make) as guard:
            verdict = await ask(guard, event)
            assert (verdict.outcome, verdict.denies, is_closed(guard)) == (outcome, True, True)


@every_way
@each(
    ("make", "close"),
    [
        (BadInput, WebSocketClose(1008, "Bad input")),
        (lambda: BadInput("no JSON", status=422), WebSocketClose(1008, "no JSON")),
        (lambda: HTTPException(403), WebSocketClose(1008, "Forbidden")),
        (lambda: HTTPException(403, "no"), WebSocketClose(1008, "no")),
        (lambda: fastapi.HTTPException(422, {"a": 1}), WebSocketClose(1008, "Blocked")),
        (lambda: HTTPException(302, headers={"location": "/"}), WebSocketClose(1008, "Redirected")),
        (lambda: WebSocketException(4001, "enough"), WebSocketClose(4001, "enough")),
        (lambda: WebSocketException(1003), WebSocketClose(1003, "")),
    ],
)
async def test_in_answer_to_a_message_they_are_closes(
    way: Way, make: Callable[[], Exception], close: WebSocketClose
) -> None:
    async with asking(way, make) as guard:
        verdict = await ask(guard, FRAME)
    assert verdict.response is not None
    assert verdict.response.websocket_decision == close
    assert (verdict.outcome, is_closed(guard)) == ("close", True)


@every_way
async def test_bad_input_has_a_reason_code(way: Way) -> None:
    events: list[Event] = [*BEFORE_A_CLIENT, FRAME, QUESTION, COMPLETE]
    for event in events:
        async with asking(way, BadInput) as guard:
            verdict = await ask(guard, event)
            assert verdict.response is not None
            assert verdict.response.audit.reason_codes == ("bad_input",)
            assert is_closed(guard)


@every_way
async def test_content_that_a_guardrail_can_make_nothing_of_is_a_detection(way: Way) -> None:
    async with asking(way, lambda: BadInput("not text")) as guard:
        _, found = await guard.inspect(QUESTION, CLOSED)
    assert found.detected
    assert [(d.category, d.description) for d in found.detections] == [("bad_input", "not text")]


@every_way
@each(
    "make",
    [
        lambda: HTTPException(403),
        lambda: HTTPException(302, headers={"location": "/"}),
        lambda: WebSocketException(1008),
    ],
)
@each("event", [QUESTION, COMPLETE], ids=lambda event: event.event_type.value)
async def test_where_no_client_waits_for_a_response_they_are_errors(
    way: Way, event: Event, make: Callable[[], Exception]
) -> None:
    async with asking(way, make) as guard:
        verdict = await ask(guard, event)
    assert verdict.failure is not None
    assert verdict.failure.kind is FailureKind.ERROR
    assert not is_closed(guard)
    if way in (in_process, in_process_later):
        name = type(make()).__name__
        assert f"raised {name} at test_raised.py:" in verdict.failure.message
        assert verdict.failure.message.endswith(f", which is no answer to {event.event_type.value}")


@each("event", [CHUNK, RESPONSE_HEAD, PIECE, QUESTION, COMPLETE], ids=lambda event: event.event_type.value)
async def test_a_close_is_no_answer_to_what_can_not_be_about_a_websocket(event: Event) -> None:
    async with asking(in_process, lambda: WebSocketException(1008)) as guard:
        assert (await ask(guard, event)).outcome == "error"


@every_way
@each("make", [BadInput, lambda: HTTPException(403), lambda: WebSocketException(1008), ValueError])
async def test_a_configuration_is_refused_by_whatever_is_raised(way: Way, make: Callable[[], Exception]) -> None:
    async with way(make, Configured) as agent:
        config = AgentConfig("a", agent, events=HEADS, config={"level": 1})
        guard = Guard(config)
        with anyio.fail_after(60), pytest.raises(AgentError):
            # Lasting connections are made again until one is configured.
            await guard.configuring.configure()
        await guard.client.retire()


async def test_a_handler_gets_a_503_of_a_guardrail_that_raises_an_http_exception() -> None:
    raised: list[Exception] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await scope["state"]["agents"].inspect_guardrail("a", "x", inspection_type="pii_detection")
        except GuardrailUnavailableError as exc:
            raised.append(exc)
        await App()(scope, receive, send)

    await Client().call(
        guarded(app, AgentConfig("a", Raises(lambda: HTTPException(403)), events={EventType.GUARDRAIL_INSPECT}))
    )
    [exc] = raised
    assert isinstance(exc, GuardrailUnavailableError)
    assert exc.status_code == 503


# --- Exceptions that are errors


def reused_from_an_answer() -> Exception:
    exc = ValueError()
    exc.__cause__ = exc.__context__ = HTTPException(403)
    return exc


def with_status(status: Any) -> HTTPException:
    exc = HTTPException(403)
    exc.status_code = status
    return exc


def with_headers(headers: Any) -> HTTPException:
    return HTTPException(403, headers=headers)


ONLY = "4xx is an answer, and 3xx with a location header"
ERRORS: dict[str, tuple[Callable[[], Exception], str]] = {
    "500": (lambda: HTTPException(500), f"with status 500; {ONLY}"),
    "503": (lambda: fastapi.HTTPException(503, {"a": 1}), f"with status 503; {ONLY}"),
    "200": (lambda: HTTPException(200), f"with status 200; {ONLY}"),
    "101": (lambda: HTTPException(101), f"with status 101; {ONLY}"),
    "no status": (lambda: with_status("403"), f"with status str; {ONLY}"),
    "302 to nowhere": (lambda: HTTPException(302), "with status 302 and no location header, expected one"),
    "304": (lambda: HTTPException(304, headers={"location": "/"}), "decision.redirect.status: expected one of"),
    "bad location": (lambda: HTTPException(302, headers={"location": "/ a"}), "decision.redirect.url: "),
    "bad header beside": (
        lambda: HTTPException(302, headers={"location": "/", "x": "a\r\nb: c"}),
        "response_headers[0]: the value of 'x'",
    ),
    "framing": (lambda: with_headers({"content-length": "0"}), "decision.block.headers: 'content-length' belongs to"),
    "injection": (lambda: with_headers({"x": "a\r\nb: c"}), "decision.block.headers: the value of 'x'"),
    "headers": (lambda: with_headers([("a", "b")]), "whose headers are no mapping of strings to strings"),
    "bytes": (lambda: with_headers({"a": b"b"}), "whose headers are no mapping of strings to strings"),
    "detail": (lambda: fastapi.HTTPException(403, object()), "the detail can't be encoded as json"),
    "surrogate": (lambda: HTTPException(403, "\ud800"), "decision.block.body: contains lone surrogates"),
    "close code": (lambda: WebSocketException(1005), "websocket_decision.close.code: expected 1000 to 1003"),
    "an answer behind it": (reused_from_an_answer, "raised ValueError at test_raised.py:"),
    "group": (lambda: ExceptionGroup("", [ValueError()]), "raised ExceptionGroup of ValueError at test_raised.py:"),
    "group of an error": (lambda: ExceptionGroup("", [HTTPException(500)]), f"with status 500; {ONLY}"),
    "another agent": (lambda: GuardrailUnavailableError(503, "no", "agent 'b' is gone"), "agent 'b' is gone"),
    "bad status": (lambda: BadInput(status=500), "BadInput: status=500, expected 400 to 499"),
    "bad message": (lambda: BadInput(1), "BadInput: message is of type int, expected a str or None"),  # type: ignore[arg-type]
}


@every_way
@each("make", [make for make, _ in ERRORS.values()], ids=ERRORS)
async def test_anything_else_is_an_error_that_follows_the_failure_mode(way: Way, make: Callable[[], Exception]) -> None:
    for mode in FailureMode:
        async with asking(way, make) as guard:
            verdict = await ask(guard, HEAD, mode)
            assert (verdict.outcome, verdict.fails_closed) == ("error", mode is CLOSED)
            assert not is_closed(guard)


@each(("make", "fault"), ERRORS.values(), ids=ERRORS)
@each("way", [in_process, in_process_later])
async def test_the_message_says_why_it_is_no_answer(way: Way, make: Callable[[], Exception], fault: str) -> None:
    async with asking(way, make) as guard:
        verdict = await ask(guard, HEAD)
    assert verdict.failure is not None
    assert fault in verdict.failure.message


@each("make", [lambda: HTTPException(500, "hunter2"), lambda: fastapi.HTTPException(403, {"hunter2"}, {"a": "b\n"})])
async def test_no_message_has_what_a_client_was_to_be_sent(
    make: Callable[[], Exception], caplog: pytest.LogCaptureFixture
) -> None:
    async with asking(in_process, make) as guard:
        verdict = await ask(guard, HEAD)
    assert "hunter2" not in str(verdict)
    assert not any("hunter2" in record.getMessage() for record in caplog.records)


@each(
    ("status", "message"),
    [(399, "399"), (500, "500"), (True, "True"), ("400", "'400'"), (None, "None"), (400.0, "400.0")],
)
def test_bad_input_is_a_4xx(status: Any, message: str) -> None:
    with pytest.raises(AgentProtocolError) as refused:
        BadInput(status=status)
    assert str(refused.value) == f"BadInput: status={message}, expected 400 to 499"


def test_bad_input_reads_like_any_exception() -> None:
    exc = BadInput("not JSON", status=422)
    assert (str(exc), exc.message, exc.status) == ("not JSON", "not JSON", 422)
    assert (str(BadInput()), BadInput().message, BadInput().status) == ("", None, 400)


# --- A hook's own circumstances


async def test_what_a_hook_raises_when_its_time_is_up_is_too_late() -> None:
    class Late(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                raise BadInput from None

    guard = Guard(AgentConfig("a", Late(), timeout=0.01, circuit_breaker=TRIGGER))
    assert (await guard.call(HEAD, CLOSED)).outcome == "timeout"


async def test_a_hook_may_raise_it_in_a_task_of_its_own() -> None:
    class Tasks(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            async def check() -> None:
                raise HTTPException(403, "no")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                tasks.start_soon(check)

    guard = Guard(AgentConfig("a", Tasks(), timeout=60, circuit_breaker=TRIGGER))
    assert (await guard.call(HEAD, CLOSED)).outcome == "block"
    assert is_closed(guard)


async def test_a_cancellation_is_not_taken_for_an_answer() -> None:
    class Tasks(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            async def check() -> None:
                try:
                    await anyio.sleep_forever()
                finally:
                    raise HTTPException(403)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(check)
                await anyio.sleep_forever()

    guard = Guard(AgentConfig("a", Tasks(), timeout=60))
    with anyio.move_on_after(0.01) as scope:
        await guard.call(HEAD, CLOSED)
        pytest.fail("the call was cancelled")
    assert scope.cancelled_caught


@each("make", [BadInput, lambda: HTTPException(403), lambda: HTTPException(500)])
async def test_an_answer_that_is_raised_leaves_nothing_for_the_garbage_collector(
    make: Callable[[], Exception],
) -> None:
    guard = Guard(AgentConfig("a", Raises(make), circuit_breaker=None))
    await guard.call(HEAD, CLOSED)
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            await guard.call(HEAD, CLOSED)
        assert gc.collect() < 10
    finally:
        gc.enable()


# --- Through the middleware


def blocks(event: object) -> Any:
    raise HTTPException(451, "no")


async def test_a_shadow_agent_only_shows_what_it_would_have_done(probe: type[Probe]) -> None:
    records: list[AuditRecord] = []
    client = Client()
    agent = AgentConfig("a", probe(request_headers=blocks), enforce=False, timeout=60, circuit_breaker=TRIGGER)
    await client.call(guarded(App(), agent, on_audit=records.append))
    assert client.status == 200
    assert [(record.decision, record.would_stop) for record in records] == [("allow", ["a"])]


@each("phase", ["request_body", "response_headers", "response_body"])
async def test_a_block_replaces_a_response_that_has_not_begun(probe: type[Probe], phase: str) -> None:
    client = Client("POST", body=b"x")
    await client.call(guarded(App(), AgentConfig("a", probe(**{phase: blocks}), timeout=60)))
    assert (client.status, client.body) == (451, b"no")


async def test_a_block_in_the_middle_of_a_response_breaks_it_off(probe: type[Probe]) -> None:
    def second(event: ResponseBodyChunkEvent) -> None:
        if event.chunk_index:
            raise BadInput("no")

    app = App(start(200), body(b"one", more=True), body(b"two"))
    client = Client()
    with pytest.raises(ResponseAborted):
        await client.call(
            guarded(
                app, AgentConfig("a", probe(response_body=second), response_body_mode=BodyMode.STREAM, chunk_timeout=60)
            )
        )
    assert (client.status, client.body, client.complete) == (200, b"one", False)


async def test_a_block_in_the_middle_of_an_upload_answers_it(probe: type[Probe]) -> None:
    def second(event: RequestBodyChunkEvent) -> None:
        if event.chunk_index:
            raise HTTPException(413, "enough")

    client = Client("POST", body=[b"one", b"two"])
    await client.call(
        guarded(
            App(), AgentConfig("a", probe(request_body=second), request_body_mode=BodyMode.STREAM, chunk_timeout=60)
        )
    )
    assert (client.status, client.body) == (413, b"enough")


async def test_a_detail_looks_the_same_where_all_errors_look_like_those_of_fastapi() -> None:
    for detail, content in (("no", b'{"detail":"no"}'), ({"a": 1}, b'{"detail":{"a":1}}')):
        agent = Raises(lambda detail=detail: fastapi.HTTPException(403, detail))  # type: ignore[misc]
        client = Client()
        await client.call(guarded(App(), AgentConfig("a", agent, events=HEADS), render_error=fastapi_error))
        assert (client.body, client.header(b"content-type")) == (content, b"application/json")


async def test_malformed_input_shuts_nobody_out() -> None:
    def parse(event: RequestBodyChunkEvent) -> None:
        if event.data != b"right":
            raise BadInput("malformed")

    middleware = guarded(App(), AgentConfig("a", Probe(request_body=parse)))
    statuses = []
    for content in [b"wrong"] * 10 + [b"right"]:
        client = Client("POST", body=content)
        await client.call(middleware)
        statuses.append(client.status)
    assert statuses == [400] * 10 + [200]


# --- Telemetry and logs


@each("way", [in_process, over_http])
async def test_a_span_has_the_answer_and_no_error(way: Way) -> None:
    spans = Spans()
    async with way(lambda: HTTPException(403)) as agent:
        config = AgentConfig("a", agent, events=HEADS, timeout=60)
        await Client().call(guarded(App(), config, tracer_provider=spans.provider))
    span = spans.one("request_headers a")
    assert span.status.is_unset
    assert span.events == ()
    assert attributes(span)["asgi_agents.decision"] == "block"


async def test_a_served_agent_logs_errors_and_not_answers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asgi_agents.serve")
    for make in (BadInput, lambda: HTTPException(403), lambda: HTTPException(500)):
        async with asking(over_http, make) as guard:
            await ask(guard, HEAD)
    [record] = [record for record in caplog.records if record.name == "asgi_agents.serve"]
    assert record.getMessage().startswith("Raises: request_headers: raised HTTPException at test_raised.py:")
    assert record.exc_info is not None


# --- How it is said on the wire


async def test_a_served_agent_sends_bad_input_as_a_block() -> None:
    transport = HttpTransport("http://agent/", transport=httpx.ASGITransport(agent_app(Raises(lambda: BadInput("no")))))
    answer = await transport.call(HEAD)
    assert answer == AgentResponse.block(400, "no", audit=AuditMetadata(reason_codes=["bad_input"]))


@pytest.mark.parametrize("pause", [False, True], ids=["at once", "later"])
async def test_an_agent_that_refuses_its_configuration_says_why(pause: bool, caplog: pytest.LogCaptureFixture) -> None:
    class Strict(Agent):
        async def on_configure(self, event: ConfigureEvent) -> None:
            if pause:
                await checkpoint()
            raise BadInput("the rate must be positive")

        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            return None

    guard = Guard(AgentConfig("limit", Strict(), config={"rate": -1}))

    with pytest.raises(AgentError, match="configure: refused its configuration: the rate must be positive"):
        await guard.configuring.configure()

    assert "refused its configuration: the rate must be positive" in caplog.text
