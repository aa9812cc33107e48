"""Denials and failures, in the words of the app that they are answered for."""

import logging
from collections.abc import Callable
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import anyio
import msgspec
import pytest
from fastapi import FastAPI, HTTPException
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.testclient import TestClient
from starlette.types import Scope

from asgi_agents import (
    AgentConfig,
    AgentContext,
    AgentDecision,
    AgentMiddleware,
    AgentResponse,
    Block,
    BodyMode,
    Challenge,
    CircuitBreakerConfig,
    ConfigurationError,
    ErrorInfo,
    Failure,
    FailureKind,
    HeaderOp,
    Redirect,
    WebSocketClose,
    WebSocketDrop,
    fastapi_error,
    protect,
)
from asgi_agents.exchange import Renderers
from asgi_agents.exchange.reply import Reply, render_reply
from tests.support.asgi import App, Client, Probe, SlowProbe, body, guarded, start

SECRET = "4111 1111 1111 1111"
PHASES = ("request_headers", "request_body", "response_headers", "response_body")


def fails(event: object) -> AgentResponse:
    raise RuntimeError("broken")


def as_error(error: ErrorInfo, scope: Scope) -> Response:
    return JSONResponse({"error": error.detail, "code": error.kind}, error.status)


def render(decision: Any, renderer: Any, accept: str = "*/*", **options: Any) -> Reply:
    client = Client(headers=[(b"accept", accept.encode())])
    decision = AgentDecision(decision=decision, **{"decided_by": "waf"} | options)
    return render_reply(decision, client.scope, Renderers(error=renderer))


def fields(reply: Reply, name: str) -> list[str]:
    return [value.decode() for key, value in reply.headers if key == name.encode()]


def told_of(decision: Any, **options: Any) -> ErrorInfo | None:
    """What the renderer is told of a decision, if it is asked."""
    seen: list[ErrorInfo] = []

    def renderer(error: ErrorInfo, scope: Scope) -> Response:
        seen.append(error)
        return as_error(error, scope)

    render(decision, renderer, **options)
    assert len(seen) <= 1
    return seen[0] if seen else None


# What it is told


@pytest.mark.parametrize(
    ("decision", "status", "detail"),
    [
        (Block(429, "slow down"), 429, "slow down"),
        (Block(403), 403, "Forbidden"),
        (Block(403, ""), 403, ""),
        (Block(599), 599, "Blocked"),
        (Block(200, "quarantined"), 200, "quarantined"),
    ],
)
def test_a_renderer_is_told_what_the_agent_says(decision: Block, status: int, detail: str) -> None:
    error = told_of(decision)
    assert error is not None
    assert (error.status, error.detail, error.kind, error.agent_id) == (status, detail, "block", "waf")
    assert dict(error.headers) == {}


@pytest.mark.parametrize("kind", FailureKind)
def test_a_renderer_is_told_what_has_failed_and_nothing_that_clients_must_not_know(kind: FailureKind) -> None:
    failure = Failure(kind, "agent 'waf': 10.0.0.7 refused the connection", retry_after=1.5)
    error = told_of(failure.block, failure=failure)
    assert error is not None
    assert (error.kind, error.agent_id) == (kind, "waf")
    assert 400 <= error.status <= 599
    assert "10.0.0.7" not in error.detail
    assert dict(error.headers) == {"retry-after": ("2",)}


@pytest.mark.parametrize("websocket_decision", [WebSocketDrop(), WebSocketClose(4001, "no")])
def test_a_websocket_decision_on_a_request_is_a_denial(websocket_decision: Any) -> None:
    error = told_of(AgentDecision().decision, websocket_decision=websocket_decision)
    assert error is not None
    assert (error.status, error.detail, error.kind) == (403, "Forbidden", "block")


def test_a_renderer_is_told_the_headers_that_agents_give() -> None:
    error = told_of(
        Block(429, "no", {"Retry-After": "7", "x-gone": "1"}),
        response_headers=[HeaderOp.set("x-rule", "8"), HeaderOp.remove("x-gone")],
        always_headers=[HeaderOp.set("x-ratelimit-remaining", "0", always=True)],
    )
    assert error is not None
    assert error.headers == {"retry-after": ["7"], "x-ratelimit-remaining": ["0"], "x-rule": ["8"]}


@pytest.mark.parametrize("decision", [Redirect("/login"), Challenge("basic"), Challenge("captcha")])
def test_redirects_and_challenges_are_rendered_as_ever(decision: Any) -> None:
    assert told_of(decision) is None
    assert render(decision, as_error) == render_reply(AgentDecision(decision=decision), Client().scope)


@pytest.mark.parametrize("status", [204, 205, 304])
def test_what_has_no_content_is_not_rendered(status: int) -> None:
    assert told_of(Block(status, "text")) is None
    assert render(Block(status, "text"), as_error).body == b""


def test_what_a_renderer_is_told_can_be_written_down() -> None:
    error = told_of(Block(403, SECRET, {"x-secret": SECRET}))
    assert SECRET not in repr(error)


# What becomes of its response


def test_a_response_is_sent_as_it_was_made() -> None:
    def renderer(error: ErrorInfo, scope: Scope) -> Response:
        return HTMLResponse(f"<b>{error.detail}</b> {scope['path']}", error.status, {"X-Mine": "1"})

    reply = render(Block(403, "no \u20ac"), renderer, "application/json")
    assert (reply.status, reply.body) == (403, "<b>no \u20ac</b> /".encode())
    assert fields(reply, "content-type") == ["text/html; charset=utf-8"]
    assert fields(reply, "content-length") == [str(len(reply.body))]
    assert fields(reply, "x-mine") == ["1"]


@pytest.mark.parametrize(
    ("given", "own", "others", "name", "expected"),
    [
        ({"retry-after": "7"}, [], [], "retry-after", ["7"]),
        ({"X-Rendered": "agent"}, [], [], "x-rendered", ["agent"]),
        ({}, [HeaderOp.set("X-Rendered", "agent")], [], "x-rendered", ["agent"]),
        ({}, [HeaderOp.add("x-rendered", "agent")], [], "x-rendered", ["renderer", "agent"]),
        ({}, [HeaderOp.remove("x-rendered")], [], "x-rendered", []),
        ({}, [], [HeaderOp.set("x-rendered", "other", always=True)], "x-rendered", ["other"]),
        ({"x-rendered": "agent"}, [], [HeaderOp.set("x-rendered", "other", always=True)], "x-rendered", ["agent"]),
        ({}, [], [], "x-rendered", ["renderer"]),
        # The body is the renderer's, and so is what says what it is.
        ({"content-type": "text/html"}, [], [], "content-type", ["application/json"]),
        ({"content-encoding": "gzip"}, [], [], "content-encoding", []),
        ({}, [HeaderOp.set("content-type", "text/html")], [], "content-type", ["application/json"]),
        ({}, [HeaderOp.remove("content-type")], [], "content-type", ["application/json"]),
    ],
)
def test_headers_that_agents_give_win(
    given: dict[str, str], own: list[HeaderOp], others: list[HeaderOp], name: str, expected: list[str]
) -> None:
    def renderer(error: ErrorInfo, scope: Scope) -> Response:
        return JSONResponse({}, error.status, {"x-rendered": "renderer"})

    reply = render(Block(429, "no", given), renderer, response_headers=own, always_headers=others)
    assert fields(reply, name) == expected


@pytest.mark.parametrize("framing", ["content-length", "Transfer-Encoding", "connection", "upgrade", "keep-alive"])
def test_a_renderer_does_not_frame_the_message(framing: str) -> None:
    reply = render(Block(), lambda error, scope: PlainTextResponse("abc", 403, {framing: "9"}))
    assert fields(reply, "content-length") == ["3"]
    assert framing == "content-length" or fields(reply, framing.lower()) == []


@pytest.mark.parametrize(
    ("own", "rendered", "sent"),
    [
        (403, 404, 404),
        (503, 502, 502),
        (403, HTTPStatus.NOT_FOUND, 404),
        # Who forgets the status makes a 200, which is no denial.
        (403, 200, 403),
        (503, 302, 503),
        (403, 204, 403),
        (200, 200, 200),
    ],
)
def test_a_denial_never_looks_like_a_success_by_mistake(own: int, rendered: int, sent: int) -> None:
    reply = render(Block(own, "no"), lambda error, scope: PlainTextResponse("rendered", rendered))
    assert (reply.status, reply.body) == (sent, b"rendered")
    assert type(reply.status) is int


# Renderers that fail


class Nothing(Response):
    def __init__(self) -> None:
        """Without a body, headers or a status."""


class Endless(Response):
    def __init__(self) -> None:
        super().__init__("text", 403)
        self.body: Any = iter([b"text"])


def broken(error: ErrorInfo, scope: Scope) -> Response:
    raise KeyError(SECRET)


def in_a_group(error: ErrorInfo, scope: Scope) -> Response:
    raise ExceptionGroup(SECRET, [ValueError(SECRET)])


async def later(error: ErrorInfo, scope: Scope) -> Response:
    return Response()


UNUSABLE: dict[str, Any] = {
    "raises": broken,
    "raises a group": in_a_group,
    "recurses": lambda error, scope: UNUSABLE["recurses"](error, scope),
    "takes too little": lambda error: Response(),
    "returns None": lambda error, scope: None,
    "returns text": lambda error, scope: error.detail,
    "returns a dictionary": lambda error, scope: {"detail": error.detail},
    "returns the class": lambda error, scope: Response,
    "returns a coroutine": lambda error, scope: later(error, scope),
    "streams": lambda error, scope: StreamingResponse(iter([b"text"]), 403),
    "sends a file": lambda error, scope: FileResponse(__file__, 403),
    "has no body": lambda error, scope: Nothing(),
    "has a strange body": lambda error, scope: Endless(),
    "has no status": lambda error, scope: PlainTextResponse("x", None),  # type: ignore[arg-type]
    "has a status of 99": lambda error, scope: PlainTextResponse("x", 99),
    "has a status of 600": lambda error, scope: PlainTextResponse("x", 600),
    "has a line break in a header": lambda error, scope: PlainTextResponse("x", 403, {"x": "a\r\nset-cookie: b"}),
    "has a blank in a name": lambda error, scope: PlainTextResponse("x", 403, {"x y": "a"}),
    "has an empty name": lambda error, scope: PlainTextResponse("x", 403, {"": "a"}),
}


@pytest.mark.parametrize("fault", UNUSABLE)
@pytest.mark.parametrize("decision", [Block(429, "slow down", {"retry-after": "7"}), Block(403)])
def test_a_renderer_that_fails_leaves_the_built_in_reply(
    fault: str, decision: Block, caplog: pytest.LogCaptureFixture
) -> None:
    for accept in ("*/*", "application/json"):
        expected = render_reply(AgentDecision(decision=decision), Client(headers=[(b"accept", accept.encode())]).scope)
        with caplog.at_level(logging.ERROR, "asgi_agents"):
            assert render(decision, UNUSABLE[fault], accept) == expected
    assert len(caplog.records) == 2
    assert "render_error failed, and the built-in reply was sent" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("answer", [AgentResponse.block(451, "no"), fails])
async def test_a_renderer_that_fails_lets_nothing_through(
    probe: type[Probe], phase: str, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client("POST", body=b"body")
    await client.call(guarded(App(), AgentConfig("a", probe(**{phase: answer})), render_error=broken))
    assert (client.status, client.body) == ((451, b"no") if answer is not fails else (503, b"Agent unavailable"))
    assert client.complete


def test_a_renderer_that_fails_is_named_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = [1000.0, 1001.0, 1059.0, 1060.0, 1061.0, 1200.0]
    clock = iter(times)
    monkeypatch.setattr("asgi_agents.messages.throttle.time", SimpleNamespace(monotonic=lambda: next(clock)))
    renderers = Renderers(error=broken)
    lines = []
    for _ in times:
        render_reply(AgentDecision(decision=Block()), Client().scope, renderers)
        lines.append(len(caplog.records))
    assert lines == [1, 1, 1, 2, 2, 3]
    assert "KeyError at test_rendering.py:" in caplog.text


@pytest.mark.parametrize("renderer", ["fastapi", "", 0, {"detail": 1}, later])
@pytest.mark.parametrize("how", ["wrapped", "protect"])
def test_what_is_no_function_is_refused_when_the_middleware_is_made(renderer: Any, how: str) -> None:
    place: Any = protect if how == "protect" else AgentMiddleware
    with pytest.raises(ConfigurationError, match=r"render_error=.*expected a function that is no coroutine"):
        place(FastAPI(), agents=[], render_error=renderer)


# In every phase


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("answer", [AgentResponse.block(429, "slow down"), AgentResponse.websocket_drop(), fails])
@pytest.mark.parametrize("method", ["POST", "HEAD"])
async def test_every_reply_in_the_apps_place_is_rendered(
    probe: type[Probe], phase: str, answer: Any, method: str
) -> None:
    if method == "HEAD" and phase == "response_body":
        return
    client = Client(method, body=b"body")
    agents: list[str] = []

    def renderer(error: ErrorInfo, scope: Scope) -> Response:
        context: AgentContext = scope["state"]["asgi_agents"]
        agents.append(f"{error.agent_id} {context.decision.decided_by}")
        return as_error(error, scope)

    await client.call(guarded(App(), AgentConfig("a", probe(**{phase: answer})), render_error=renderer))
    expected = {
        "error": "Agent unavailable" if answer is fails else "Forbidden" if answer.websocket_decision else "slow down",
        "code": "error" if answer is fails else "block",
    }
    assert client.body == (b"" if method == "HEAD" else JSONResponse(expected).body)
    assert client.header(b"content-length") == b"%d" % len(JSONResponse(expected).body)
    assert agents == ["a a"]


@pytest.mark.parametrize(
    ("agent", "options", "status", "kind"),
    [
        (Probe(request_body=None), {"max_request_body_bytes": 3}, 413, "request_too_large"),
        (Probe(response_body=None), {"max_response_body_bytes": 3}, 500, "response_too_large"),
        (Probe(request_headers=fails), {}, 503, "error"),
        (Probe(request_headers=fails), {"circuit_breaker": CircuitBreakerConfig(failure_threshold=1)}, 503, "error"),
    ],
)
async def test_failures_of_every_kind_are_rendered(agent: Probe, options: Any, status: int, kind: str) -> None:
    middleware = guarded(App(), AgentConfig("a", agent, **options), render_error=as_error)
    client = Client("POST", body=b"body")
    await client.call(middleware)
    assert client.status == status
    assert msgspec.json.decode(client.body)["code"] == kind
    if "circuit_breaker" in options:
        client = Client("POST", body=b"body")
        await client.call(middleware)
        assert msgspec.json.decode(client.body)["code"] == "breaker_open"
        assert client.header(b"retry-after") == b"30"


async def test_a_late_answer_is_a_failure_that_is_rendered() -> None:
    async def never(event: object) -> None:
        await anyio.sleep_forever()

    client = Client()
    agent = SlowProbe(request_headers=never)
    await client.call(guarded(App(), AgentConfig("a", agent, timeout=0.01), render_error=as_error))
    assert (client.status, msgspec.json.decode(client.body)["code"]) == (504, "timeout")


async def test_what_ends_a_response_that_has_begun_is_not_rendered(probe: type[Probe]) -> None:
    def renderer(error: ErrorInfo, scope: Scope) -> Response:
        raise AssertionError

    app = App(
        start(200, (b"content-type", b"text/event-stream")), body(b"data: 1\n\n", more=True), body(b"data: 2\n\n")
    )
    agent = probe(response_body=lambda event: AgentResponse.block() if b"2" in event.data else None)
    client = Client()
    await client.call(guarded(app, AgentConfig("a", agent, response_body_mode=BodyMode.STREAM), render_error=renderer))
    assert client.status == 200
    assert b"event: error" in client.body


async def test_background_tasks_of_a_rendered_response_are_not_run(probe: type[Probe]) -> None:
    ran: list[int] = []

    def renderer(error: ErrorInfo, scope: Scope) -> Response:
        return PlainTextResponse("no", 403, background=BackgroundTask(ran.append, 1))

    client = Client()
    await client.call(
        guarded(App(), AgentConfig("a", probe(request_headers=AgentResponse.block())), render_error=renderer)
    )
    assert (client.status, client.body, ran) == (403, b"no", [])


# FastAPI's


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html"])
@pytest.mark.parametrize(
    ("answer", "status", "detail"),
    [
        (AgentResponse.block(429, "slow down", headers={"retry-after": "7"}), 429, "slow down"),
        (AgentResponse.block(403), 403, "Forbidden"),
        (AgentResponse.block(403, ""), 403, ""),
        (AgentResponse.block(403, 'quotes " and \u20ac'), 403, 'quotes " and \u20ac'),
        (fails, 503, "Agent unavailable"),
    ],
)
@pytest.mark.parametrize("place", [lambda app, **options: AgentMiddleware(app, **options), protect])
def test_a_denial_reads_like_an_exception_of_the_app(
    anyio_backend: str, accept: str, answer: Any, status: int, detail: str, place: Callable[..., Any]
) -> None:
    def bare() -> FastAPI:
        app = FastAPI()

        @app.get("/")
        async def refuse() -> None:
            headers = {"retry-after": "7"} if status == 429 else None
            raise HTTPException(status, detail, headers)

        return app

    guarded_app = bare()
    placed = place(guarded_app, agents=[AgentConfig("a", Probe(request_headers=answer))], render_error=fastapi_error)
    served = guarded_app if place is protect else placed
    ours, theirs = (
        TestClient(app, backend=anyio_backend).get("/", headers={"accept": accept})  # type: ignore[arg-type]
        for app in (served, bare())
    )
    assert (ours.status_code, ours.json()) == (theirs.status_code, theirs.json()) == (status, {"detail": detail})
    assert sorted(ours.headers.multi_items()) == sorted(theirs.headers.multi_items())


@pytest.mark.parametrize("given", [{"content-type": "text/html"}, {"Content-Type": "application/json"}])
@pytest.mark.parametrize("by_operation", [False, True])
def test_a_body_of_the_agents_own_type_stays_as_it_is(given: dict[str, str], by_operation: bool) -> None:
    ops = [HeaderOp.set(name, value) for name, value in given.items()] if by_operation else []
    reply = render(Block(403, "<b>no</b>", None if by_operation else given), fastapi_error, response_headers=ops)
    assert (reply.status, reply.body) == (403, b"<b>no</b>")
    assert fields(reply, "content-type") == list(given.values())
    assert fields(reply, "content-length") == ["9"]


PROBLEM = {"content-type": "application/problem+json"}


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ('{"title": "Gone", "detail": "It was here", "errors": [{"at": "x"}]}', "It was here"),
        ('{"title": "Gone", "errors": []}', "Gone"),
        *((text, text) for text in ("{}", "", "[]", "null", '{"detail": 1}', '{"detail": ""}', "It was", "[" * 99_999)),
    ],
)
def test_a_renderer_gets_the_sentence_of_a_problem_document_and_the_document_itself(text: str, detail: str) -> None:
    for headers in (PROBLEM, {"Content-Type": "Application/Problem+JSON; charset=utf-8"}):
        told = told_of(Block(410, text, headers))
        assert told is not None
        assert (told.detail, told.body) == (detail, text)
        reply = render(Block(410, text, headers), fastapi_error)
        assert (reply.body.decode(), fields(reply, "content-type")) == (text, list(headers.values()))
    told = told_of(Block(410, text, {"content-type": "application/json"}))
    assert told is not None
    assert (told.detail, told.body) == (text, text)


def test_a_renderer_gets_no_body_where_the_agent_gives_none() -> None:
    told = told_of(Block(410, None, PROBLEM))
    assert told is not None
    assert (told.detail, told.body) == ("Gone", None)
    told = told_of(Block(410, None), failure=Failure(FailureKind.TIMEOUT, "late"))
    assert told is not None
    assert told.body is None
