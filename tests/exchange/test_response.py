"""The app's response on its way past the agents."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import repeat
from typing import Any

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route as AppRoute
from starlette.types import Message, Receive, Scope, Send

from asgi_agents import (
    AgentConfig,
    AgentContext,
    AgentMiddleware,
    AgentResponse,
    BodyMode,
    BodyMutation,
    ClosedByAgent,
    HeaderOp,
    ResponseAborted,
    ResponseHeadersEvent,
)
from tests.support.asgi import (
    VIRTUAL_TIME,
    Answer,
    App,
    Client,
    Held,
    Probe,
    SlowProbe,
    assert_nothing_left,
    body,
    guarded,
    pull,
    push,
    settle,
    start,
)

STREAM = BodyMode.STREAM
SSE = (b"content-type", b"text/event-stream; charset=utf-8")
DENIED = AgentResponse.block(403, "denied")


def streaming(probe: Probe, **options: Any) -> AgentConfig:
    return AgentConfig("a", probe, response_body_mode=STREAM, **options)


def deny(forbidden: bytes) -> Callable[[Any], Answer]:
    return lambda event: DENIED if forbidden in event.data else None


class Pieces:
    """An asynchronous iterator that nobody has to close."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)

    def __aiter__(self) -> "Pieces":
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


# The head


async def test_agents_see_status_and_headers_of_the_response(probe: type[Probe]) -> None:
    agent, client = probe(response_headers=None), Client()
    app = App(start(418, (b"X-One", b"1"), (b"x-one", b"2"), (b"x-odd", b"\xff")), body(b"tea"))
    await client.call(guarded(app, AgentConfig("a", agent)))
    (event,) = agent.heard
    assert isinstance(event, ResponseHeadersEvent)
    assert event.status == 418
    assert event.headers == {"x-one": ["1", "2"], "x-odd": ["\xff"]}
    assert event.correlation_id
    assert client.headers == app.messages[0]["headers"]


async def test_the_start_waits_for_its_verdict() -> None:
    held, client = Held(), Client()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, guarded(App(), AgentConfig("a", SlowProbe(response_headers=held))))
        await held.reached.wait()
        await settle()
        assert client.messages == []
        held.gate.set()
    assert client.body == b"hello"


async def test_a_denied_head_is_replaced_and_the_app_runs_to_its_end(probe: type[Probe]) -> None:
    app, client = App(start(200, (b"x-app", b"1")), body(b"1", more=True), body(b"2")), Client(spec_version="2.3")
    result = await client.call(guarded(app, AgentConfig("a", probe(response_headers=DENIED))))
    assert (client.status, client.body) == (403, b"denied")
    assert client.header(b"x-app") is None
    assert client.header(b"content-length") == b"6"
    assert app.finished
    assert result == "returned by the app"


@pytest.mark.parametrize("mode", [BodyMode.BUFFER, BodyMode.hybrid(100)], ids=lambda mode: mode.name)
async def test_a_denied_body_replaces_the_response_where_it_was_held(mode: BodyMode, probe: type[Probe]) -> None:
    app, client = App(start(200, (b"x-app", b"1")), body(b"ab", more=True), body(b"cd")), Client()
    agent = probe(response_body=deny(b"cd"))
    await client.call(guarded(app, AgentConfig("a", agent, response_body_mode=mode)))
    assert (client.status, client.body) == (403, b"denied")
    assert client.header(b"x-app") is None
    assert len(client.starts) == 1


async def test_background_tasks_still_run_after_the_response_was_replaced(probe: type[Probe]) -> None:
    ran = []

    async def work() -> None:
        await checkpoint()
        ran.append(True)

    def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello", background=BackgroundTask(work))

    for event in ("response_headers", "response_body"):
        client = Client()
        app = Starlette(routes=[AppRoute("/", endpoint)])
        await client.call(guarded(app, AgentConfig("a", probe(**{event: DENIED}))))
        assert client.status == 403
        assert ran.pop()


async def test_an_app_whose_response_was_replaced_finds_its_client_gone() -> None:
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(start())
        await send(body(b"hello"))
        seen.append(await receive())
        seen.append(await receive())

    agent = Probe(response_headers=DENIED, request_body=None)
    await Client().call(guarded(app, AgentConfig("a", agent)))
    assert seen == [{"type": "http.disconnect"}] * 2


async def test_an_app_that_streams_on_after_its_response_was_replaced_is_told() -> None:
    errors = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        try:
            while True:
                await send(body(b"x", more=True))
        except OSError as exc:
            errors.append(exc)
            raise

    client = Client(spec_version="2.4")
    await client.call(guarded(app, AgentConfig("a", Probe(response_headers=DENIED))))
    assert client.body == b"denied"
    assert isinstance(errors[0], ClosedByAgent)


async def test_an_error_of_the_app_after_its_response_was_replaced_is_not_hidden() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        raise KeyError("the app's own")

    client = Client()
    with pytest.raises(KeyError):
        await client.call(guarded(app, AgentConfig("a", Probe(response_headers=DENIED))))
    assert client.body == b"denied"


async def test_a_stream_whose_start_was_denied_ends_as_if_the_client_had_left() -> None:
    app = Starlette(routes=[AppRoute("/", lambda request: StreamingResponse(Pieces(repeat(b"x"))))])
    client = Client(spec_version="2.4")
    await client.call(guarded(app, AgentConfig("a", Probe(response_headers=DENIED))))
    assert (client.status, client.body) == (403, b"denied")


@pytest.mark.parametrize("spec_version", ["2.0", "2.3", "2.4", "2.10", "3"])
async def test_an_app_that_loops_over_send_after_replacement_lets_others_run(spec_version: str) -> None:
    others = 0
    client = Client(spec_version=spec_version)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        while others < 3:
            with suppress(OSError):
                await send(body(b"x", more=True))
        await send(body())

    async def other() -> None:
        nonlocal others
        for _ in range(3):
            await checkpoint()
            others += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        with anyio.fail_after(5):
            await client.call(guarded(app, AgentConfig("a", Probe(response_headers=DENIED))))
    assert client.body == b"denied"


@pytest.mark.parametrize(
    ("asgi", "raises"),
    [
        ({"version": "3.0", "spec_version": "2.4"}, True),
        ({"version": "3.0", "spec_version": "2.10"}, True),
        ({"version": "3.0", "spec_version": "2.3"}, False),
        ({"version": "3.0"}, False),
        ({}, False),
        (None, False),
    ],
)
async def test_only_an_app_that_expects_it_is_told_of_its_end_by_an_oserror(
    asgi: dict[str, str] | None, raises: bool
) -> None:
    raised = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal raised
        await send(start())
        try:
            await send(body(b"x", more=True))
        except OSError:
            raised = True

    client = Client()
    client.scope["asgi"] = asgi
    await client.call(guarded(app, AgentConfig("a", Probe(response_headers=DENIED))))
    assert raised is raises


async def test_header_operations_change_the_response(probe: type[Probe]) -> None:
    ops = [
        HeaderOp.set("X-Set", "new"),
        HeaderOp.add("x-added", "2"),
        HeaderOp.remove("x-removed"),
    ]
    app = App(
        start(200, (b"X-SET", b"1"), (b"x-set", b"2"), (b"x-added", b"1"), (b"X-Removed", b"1"), (b"x-kept", b"1")),
        body(b"hello"),
    )
    client = Client()
    await client.call(guarded(app, AgentConfig("a", probe(response_headers=AgentResponse.allow(response_headers=ops)))))
    assert client.headers == [(b"x-added", b"1"), (b"x-kept", b"1"), (b"x-set", b"new"), (b"x-added", b"2")]
    assert len(app.messages[0]["headers"]) == 5


@pytest.mark.parametrize("event", ["request_headers", "request_body", "response_headers"])
async def test_response_header_operations_of_every_phase_reach_the_client(event: str, probe: type[Probe]) -> None:
    answer = AgentResponse.allow(response_headers=[HeaderOp.set("x-agent", "1")])
    client = Client("POST", body=b"x")
    await client.call(guarded(App(), AgentConfig("a", probe(**{event: answer}))))
    assert client.header(b"x-agent") == b"1"
    assert client.body == b"hello"


async def test_response_header_operations_of_a_body_verdict_reach_the_client_while_the_head_is_held() -> None:
    answer = AgentResponse.allow(response_headers=[HeaderOp.set("x-agent", "1")])
    client = Client()
    await client.call(guarded(App(), AgentConfig("a", Probe(response_body=answer))))
    assert client.header(b"x-agent") == b"1"


@pytest.mark.parametrize("event", ["request_headers", "response_headers", "response_body"])
async def test_a_field_that_an_agent_adds_to_the_response_is_added_once(event: str, probe: type[Probe]) -> None:
    answer = AgentResponse.allow(response_headers=[HeaderOp.add("x-agent", "1")])
    client = Client()
    agents = [AgentConfig("a", probe(**{event: answer})), AgentConfig("b", probe(response_headers=None))]
    await client.call(guarded(App(), *agents, AgentConfig("c", probe(response_body=None))))
    assert client.header(b"x-agent") == b"1"


async def test_response_header_operations_of_streamed_request_bodies_reach_the_client_if_they_come_in_time() -> None:
    answer = AgentResponse.allow(response_headers=[HeaderOp.set("x-agent", "1")])
    client = Client("POST", body=b"x")
    await client.call(guarded(App(), AgentConfig("a", Probe(request_body=answer), request_body_mode=STREAM)))
    assert client.header(b"x-agent") == b"1"


async def test_response_header_operations_that_come_while_the_head_is_judged_reach_the_client() -> None:
    held, client = Held(), Client("POST", body=[b"x"])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(push, send, start())
            await held.reached.wait()
            await receive()
            held.gate.set()
        await send(body(b"hello"))

    answer = AgentResponse.allow(response_headers=[HeaderOp.set("x-agent", "1")])
    agent = SlowProbe(request_body=answer, response_headers=held)
    await client.call(guarded(app, AgentConfig("a", agent, request_body_mode=STREAM)))
    assert client.header(b"x-agent") == b"1"


async def test_agents_see_the_response_headers_that_operations_of_the_request_have_made() -> None:
    first = Probe(request_headers=AgentResponse.allow(response_headers=[HeaderOp.set("x-agent", "1")]))
    second = Probe(response_headers=None)
    await Client().call(guarded(App(), AgentConfig("a", first), AgentConfig("b", second)))
    (event,) = second.heard
    assert isinstance(event, ResponseHeadersEvent)
    assert event.header("x-agent") == "1"


async def test_operations_are_applied_in_route_order(probe: type[Probe]) -> None:
    def set_to(value: str) -> Probe:
        return probe(response_headers=AgentResponse.allow(response_headers=[HeaderOp.set("x-agent", value)]))

    client = Client()
    await client.call(guarded(App(), AgentConfig("a", set_to("a")), AgentConfig("b", set_to("b"))))
    assert client.header(b"x-agent") == b"b"


async def test_operations_of_a_shadow_agent_are_not_applied(probe: type[Probe]) -> None:
    answer = AgentResponse.allow(response_headers=[HeaderOp.set("x-agent", "1")])
    client = Client()
    agent = probe(request_headers=answer, response_headers=answer)
    await client.call(guarded(App(), AgentConfig("a", agent, enforce=False)))
    assert client.header(b"x-agent") is None


async def test_only_the_operations_of_the_agent_that_denied_are_applied_to_its_reply(probe: type[Probe]) -> None:
    allowing = AgentResponse.allow(response_headers=[HeaderOp.set("x-allowing", "1")])
    denying = AgentResponse.block(403, "denied", response_headers=[HeaderOp.set("x-denying", "1")])
    client = Client()
    await client.call(
        guarded(
            App(), AgentConfig("a", probe(response_headers=allowing)), AgentConfig("b", probe(response_headers=denying))
        )
    )
    assert client.header(b"x-allowing") is None
    assert client.header(b"x-denying") == b"1"


# Responses without a body


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304), ("GET", 101)], ids=lambda value: str(value)
)
async def test_a_response_that_has_no_content_makes_no_body_events(method: str, status: int) -> None:
    agent = Probe(response_headers=None, response_body=DENIED)
    client = Client(method)
    app = App(start(status, (b"etag", b'"1"'), (b"content-length", b"5")), body(b"hello"))
    await client.call(guarded(app, AgentConfig("a", agent, body_access="write", max_response_body_bytes=1)))
    assert client.status == status
    # HEAD must not say what GET would not: the agent could change that body.
    assert client.headers == ([] if method == "HEAD" else [(b"etag", b'"1"'), (b"content-length", b"5")])
    assert client.complete
    assert [event.event_type.value for event in agent.heard] == ["response_headers"]


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_content_that_nobody_judged_does_not_follow_a_head_that_has_none(method: str, status: int) -> None:
    client = Client(method)
    app = App(start(status), body(b"secret ", more=True), body(b"content"))
    await client.call(guarded(app, AgentConfig("a", Probe(response_body=DENIED))))
    assert client.body == b""
    assert client.complete


async def test_a_reply_to_a_head_request_has_no_content() -> None:
    client = Client("HEAD")
    await client.call(guarded(App(), AgentConfig("a", Probe(response_headers=DENIED))))
    assert client.status == 403
    assert client.header(b"content-length") == b"6"
    assert client.body == b""


# Started responses


@pytest.mark.parametrize("mode", [STREAM, BodyMode.hybrid(2)], ids=lambda mode: mode.name)
async def test_a_late_block_breaks_the_connection_off(mode: BodyMode, probe: type[Probe]) -> None:
    app = App(start(), body(b"good", more=True), body(b"evil", more=True), body(b"rest"))
    client = Client()
    middleware = guarded(app, AgentConfig("a", probe(response_body=deny(b"evil")), response_body_mode=mode))
    with pytest.raises(ResponseAborted, match="response broken off after it had started: agent 'a': block"):
        await client.call(middleware)
    assert client.status == 200
    assert client.body == b"good"
    assert not client.complete
    assert not app.finished
    assert_nothing_left(middleware.manager)


async def test_a_block_of_the_last_chunk_breaks_off_what_would_have_been_complete(probe: type[Probe]) -> None:
    app, client = App(start(), body(b"good", more=True), body(b"evil")), Client()
    with pytest.raises(ResponseAborted):
        await client.call(guarded(app, streaming(probe(response_body=deny(b"evil")))))
    assert client.body == b"good"
    assert not client.complete


async def test_a_denial_of_the_end_alone_still_breaks_the_response_off() -> None:
    app, client = App(start(), body(b"good", more=True), body()), Client()
    agent = Probe(response_body=lambda event: DENIED if event.is_last else None)
    with pytest.raises(ResponseAborted):
        await client.call(guarded(app, streaming(agent)))
    assert client.body == b"good"
    assert not client.complete


async def test_an_app_that_catches_its_cancellation_gets_nothing_more_through(probe: type[Probe]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        for data in (b"evil", b"more", b"end"):
            with suppress(BaseException):
                await send(body(data, more=data != b"end"))

    client = Client()
    with pytest.raises(ResponseAborted):
        await client.call(guarded(app, streaming(probe(response_body=deny(b"evil")))))
    assert client.body == b""
    assert not client.complete


async def test_an_app_that_cleans_up_slowly_is_waited_for_and_gets_nothing_through() -> None:
    cleaned = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send(start())
            await send(body(b"evil", more=True))
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await send(body(b"error page"))
                await checkpoint()
            cleaned.append(True)

    client = Client(spec_version="2.3")
    with pytest.raises(ResponseAborted):
        await client.call(guarded(app, streaming(Probe(response_body=deny(b"evil"))), stop_grace=0.01))
    assert cleaned
    assert client.body == b""


async def test_another_error_of_an_app_that_was_broken_off_is_raised_as_it_is() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        try:
            await send(body(b"evil", more=True))
            await checkpoint()
        finally:
            raise KeyError("the app's own")

    # Later versions' send raises, and what is raised over that is the app's way to say so.
    client = Client(spec_version="2.3")
    with pytest.raises(KeyError):
        await client.call(guarded(app, streaming(Probe(response_body=deny(b"evil")))))
    assert not client.complete


async def test_tasks_of_the_app_end_with_a_response_that_was_broken_off() -> None:
    ended = []

    async def sleeper() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sleeper)
            await checkpoint()
            await send(start())
            await send(body(b"evil", more=True))

    with pytest.raises(ResponseAborted):
        await Client().call(guarded(app, streaming(Probe(response_body=deny(b"evil")))))
    assert ended


async def test_only_the_app_is_cancelled_when_its_response_is_broken_off() -> None:
    outer_ran_on = False

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal outer_ran_on
        inner = guarded(App(start(), body(b"evil", more=True), body()), streaming(Probe(response_body=deny(b"evil"))))
        try:
            await inner(scope, receive, send)
        except ResponseAborted:
            await checkpoint()
            outer_ran_on = True
            raise

    with pytest.raises(ResponseAborted):
        await Client().call(outer)
    assert outer_ran_on


class Passing(BaseHTTPMiddleware):
    """A middleware of the kind that runs what is inside it in a task of its own."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


@pytest.mark.parametrize(
    ("outside", "inside"),
    [
        ([], [Middleware(Passing)]),
        ([], [Middleware(GZipMiddleware)]),
        ([Middleware(GZipMiddleware)], []),
        ([Middleware(Passing)], []),
    ],
    ids=["base inside", "gzip inside", "gzip outside", "base outside"],
)
@pytest.mark.parametrize("rest", range(3))
async def test_a_response_broken_off_does_not_look_complete_through_other_middlewares(
    rest: int, outside: list[Middleware], inside: list[Middleware], probe: type[Probe]
) -> None:
    here = Middleware(AgentMiddleware, agents=[streaming(probe(response_body=deny(b"evil")))])
    app = Starlette(
        routes=[AppRoute("/", lambda request: StreamingResponse(Pieces([b"good", b"evil", *[b"rest"] * rest])))],
        middleware=[*outside, here, *inside],
    )
    client = Client(spec_version="2.3")
    # BaseHTTPMiddleware would end the body in good order, if it didn't come upon a message that it doesn't know. The
    # server logs what it raises then.
    with pytest.raises((ResponseAborted, AssertionError), match=r"broken off after it had started: agent .*: block"):
        await client.call(app)
    assert client.status == 200
    assert client.body == b"good"
    assert not client.complete


@pytest.mark.parametrize("outside", [True, False], ids=["outside", "inside"])
async def test_a_replaced_response_passes_through_other_middlewares(outside: bool, probe: type[Probe]) -> None:
    agents = [AgentConfig("a", probe(response_headers=DENIED))]
    here, others = Middleware(AgentMiddleware, agents=agents), [Middleware(Passing), Middleware(GZipMiddleware)]
    app = Starlette(
        routes=[AppRoute("/", lambda request: StreamingResponse(Pieces([b"good", b"rest"])))],
        middleware=[*others, here] if outside else [here, *others],
    )
    client = Client(spec_version="2.3")
    await client.call(app)
    assert (client.status, client.body) == (403, b"denied")


async def test_a_response_broken_off_while_its_start_is_on_its_way_sends_nothing_more() -> None:
    """The app can't be cancelled just then."""
    held, client = Held(DENIED), Client("POST", body=[b"evil"], unfinished=True)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pull, receive)
            await held.reached.wait()
            with anyio.CancelScope(shield=True):
                await send(start())
                client.take_nothing()
                await send(body(b"hello"))

    agent = SlowProbe(request_body=held, response_body=None)
    middleware = guarded(app, AgentConfig("a", agent, request_body_mode=STREAM))

    async def serve() -> None:
        with pytest.raises(ResponseAborted):
            await client.call(middleware)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        await held.reached.wait()
        await settle()
        assert client.sending == 1
        held.gate.set()
        await settle()
        client.take_everything()
    assert client.status == 200
    assert client.body == b""
    assert not client.complete


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], ids=["virtual time"])
async def test_a_response_is_broken_off_even_if_its_client_has_stopped_reading(anyio_backend: object) -> None:
    held, client = Held(DENIED), Client("POST", body=[b"evil"], unfinished=True)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pull, receive)
            await held.reached.wait()
            await send(start())
            client.take_nothing()
            held.gate.set()
            await send(body(b"hello", more=True))

    agent = SlowProbe(request_body=held, response_body=None)
    config = AgentConfig("a", agent, request_body_mode=STREAM, response_body_mode=STREAM)
    with anyio.fail_after(60), pytest.raises(ResponseAborted):
        await client.call(guarded(app, config))


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], ids=["virtual time"])
async def test_a_reply_that_its_client_never_takes_is_not_counted_as_sent(anyio_backend: object) -> None:
    agent, client = Probe(request_headers=DENIED, complete=None), Client()
    client.take_nothing()
    await client.call(guarded(App(), AgentConfig("a", agent)))
    assert client.messages == []
    assert agent.complete.response_body_size == 0


# Event streams


async def test_an_event_stream_is_never_buffered() -> None:
    client, seen = Client(), []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, SSE))
        for data in (b"data: 1\n\n", b"data: 2\n\n"):
            await send(body(data, more=True))
            seen.append(client.body)
        await send(body())

    agent = Probe(response_body=None)
    await client.call(guarded(app, AgentConfig("a", agent)))
    assert seen == [b"data: 1\n\n", b"data: 1\n\ndata: 2\n\n"]
    assert [last for _, _, last in agent.chunks] == [False, False, True]


@pytest.mark.parametrize("mode", [BodyMode.BUFFER, STREAM, BodyMode.hybrid(100)], ids=lambda mode: mode.name)
async def test_a_blocked_event_stream_ends_with_one_error_event(mode: BodyMode, probe: type[Probe]) -> None:
    app = App(
        start(200, SSE), body(b"data: 1\n\n", more=True), body(b"data: evil\n\n", more=True), body(b"data: 3\n\n")
    )
    client = Client()
    await client.call(guarded(app, AgentConfig("a", probe(response_body=deny(b"evil")), response_body_mode=mode)))
    assert client.complete
    head, error = client.chunks
    assert head == b"data: 1\n\n"
    assert error.startswith(b"event: error\ndata: ")
    assert error.endswith(b"\n\n")
    assert msgspec.json.decode(error.split(b"data: ")[1]) == {
        "type": "error",
        "error": {"message": "denied", "type": "blocked", "code": "403"},
    }
    assert not app.finished


async def test_the_app_of_a_blocked_event_stream_is_cancelled() -> None:
    cancelled = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal cancelled
        await send(start(200, SSE))
        try:
            await send(body(b"data: evil\n\n", more=True))
            await anyio.sleep_forever()
        except BaseException:
            cancelled = True
            raise

    client = Client()
    await client.call(guarded(app, AgentConfig("a", Probe(response_body=deny(b"evil")))))
    assert cancelled
    assert client.complete


async def test_an_event_stream_denied_at_its_head_is_replaced() -> None:
    client = Client()
    agent = Probe(response_headers=DENIED, response_body=None)
    await client.call(guarded(App(start(200, SSE), body(b"data: 1\n\n")), AgentConfig("a", agent)))
    assert (client.status, client.body) == (403, b"denied")


async def test_a_failing_agent_ends_an_event_stream_with_its_reply_as_an_event() -> None:
    def fail(event: Any) -> Answer:
        raise ValueError

    client = Client()
    await client.call(guarded(App(start(200, SSE), body(b"data: 1\n\n")), AgentConfig("a", Probe(response_body=fail))))
    error = b'{"type":"error","error":{"message":"Agent unavailable","type":"error","code":"503"}}'
    assert client.body == b"event: error\ndata: " + error + b"\n\n"


async def test_an_event_stream_that_becomes_one_by_an_agents_operation_is_not_buffered() -> None:
    agent = Probe(
        response_headers=AgentResponse.allow(response_headers=[HeaderOp.set("content-type", "Text/Event-Stream")]),
        response_body=None,
    )
    client = Client()
    await client.call(guarded(App(start(), body(b"1\n\n", more=True), body(b"2\n\n")), AgentConfig("a", agent)))
    assert agent.chunks == [(0, b"1\n\n", False), (1, b"2\n\n", True)]


async def test_an_event_stream_may_be_changed_event_by_event() -> None:
    def redact(event: Any) -> Answer:
        return AgentResponse.allow(response_body_mutation=BodyMutation(event.data.replace(b"secret", b"******")))

    client = Client()
    app = App(start(200, SSE, (b"content-length", b"28")), body(b"data: secret\n\n", more=True), body(b"data: 2\n\n"))
    await client.call(guarded(app, AgentConfig("a", Probe(response_body=redact), body_access="write")))
    assert client.chunks == [b"data: ******\n\n", b"data: 2\n\n"]
    assert client.header(b"content-length") is None


# Provisional denials of the head


async def test_a_provisionally_denied_head_is_held_until_its_agent_has_seen_the_body(probe: type[Probe]) -> None:
    agent = probe(response_headers=AgentResponse.block(needs_more=True), response_body=None)
    client = Client()
    await client.call(guarded(App(start(), body(b"1", more=True), body(b"2")), streaming(agent)))
    assert client.status == 200
    assert client.chunks == [b"1", b"2"]


async def test_a_provisionally_denied_head_can_be_denied_by_the_body(probe: type[Probe]) -> None:
    agent = probe(response_headers=AgentResponse.block(needs_more=True), response_body=deny(b"evil"))
    client = Client()
    await client.call(guarded(App(start(), body(b"evil")), streaming(agent)))
    assert (client.status, client.body) == (403, b"denied")


@pytest.mark.parametrize("event_stream", [True, False], ids=["event stream", "other"])
async def test_a_provisional_denial_of_the_head_is_final_for_an_empty_body(
    event_stream: bool, probe: type[Probe]
) -> None:
    agent = probe(response_headers=AgentResponse.block(403, "first word", needs_more=True), response_body=None)
    client = Client()
    head = start(200, SSE) if event_stream else start()
    await client.call(guarded(App(head, body(more=True), body()), streaming(agent)))
    assert (client.status, client.body) == (403, b"first word")


async def test_an_empty_message_does_not_make_a_provisional_denial_of_the_head_final(probe: type[Probe]) -> None:
    agent = probe(response_headers=AgentResponse.block(needs_more=True), response_body=None)
    client = Client()
    await client.call(guarded(App(start(), body(more=True), body(b"x")), streaming(agent)))
    assert (client.status, client.body) == (200, b"x")


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204)])
async def test_a_provisional_denial_of_a_head_without_body_is_final(method: str, status: int) -> None:
    agent = Probe(response_headers=AgentResponse.block(403, needs_more=True), response_body=None)
    client = Client(method)
    await client.call(guarded(App(start(status), body()), streaming(agent)))
    assert client.status == 403


async def test_a_provisional_denial_by_an_agent_that_hears_no_bodies_is_final(probe: type[Probe]) -> None:
    client = Client()
    await client.call(
        guarded(
            App(),
            AgentConfig("head", probe(response_headers=AgentResponse.block(403, "head", needs_more=True))),
            AgentConfig("body", probe(response_body=None)),
        )
    )
    assert (client.status, client.body) == (403, b"head")


# Messages other than start and body


@pytest.mark.parametrize(
    "message",
    [
        {"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]},
        {"type": "http.response.push", "path": "/style.css", "headers": []},
        {"type": "http.response.debug", "info": {"template": "x"}},
        {"type": "http.response.of_tomorrow", "what": 1},
    ],
    ids=lambda message: message["type"],
)
async def test_messages_that_carry_no_response_pass_untouched(message: Message, probe: type[Probe]) -> None:
    client = Client()
    app = App(message, *App().messages)
    await client.call(guarded(app, AgentConfig("a", probe(response_headers=None, response_body=None))))
    assert client.messages[0] is message
    assert client.body == b"hello"


async def test_trailers_pass_after_the_body(probe: type[Probe]) -> None:
    trailers = {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")], "more_trailers": False}
    client = Client()
    app = App({**start(), "trailers": True}, body(b"1", more=True), body(b"2"), trailers)
    await client.call(guarded(app, streaming(probe(response_headers=None, response_body=None))))
    assert client.starts[0]["trailers"] is True
    assert client.messages[-1] is trailers


async def test_trailers_before_the_end_of_a_held_body_break_the_response_off(probe: type[Probe]) -> None:
    trailers = {"type": "http.response.trailers", "headers": [(b"x-secret", b"1")], "more_trailers": False}
    client = Client(lenient=True)
    app = App({**start(200, (b"x-secret", b"1")), "trailers": True}, body(b"one", more=True), trailers, body(b"two"))
    with pytest.raises(ResponseAborted, match="trailers"):
        await client.call(guarded(app, AgentConfig("a", probe(response_body=None))))
    assert client.body == b""
    assert not client.complete
    assert all(message.get("headers", []) == [] for message in client.messages)


async def test_trailers_of_a_replaced_response_are_dropped() -> None:
    trailers = {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")], "more_trailers": False}
    client = Client()
    await client.call(
        guarded(App({**start(), "trailers": True}, body(b"2"), trailers), AgentConfig("a", Probe(response_body=DENIED)))
    )
    assert [message["type"] for message in client.messages] == ["http.response.start", "http.response.body"]


async def test_unknown_keys_of_messages_are_kept() -> None:
    client = Client()
    app = App({**start(), "x-start": 1}, {**body(b"hello"), "x-body": 2})
    await client.call(guarded(app, streaming(Probe(response_headers=None, response_body=None))))
    assert client.messages[0]["x-start"] == 1
    assert client.messages[1]["x-body"] == 2


BYPASSES = ["http.response.pathsend", "http.response.zerocopysend"]


@pytest.mark.parametrize("bypass", BYPASSES)
async def test_ways_around_body_inspection_are_hidden_while_bodies_are_inspected(bypass: str) -> None:
    extensions: dict[str, Any] = {bypass: {}, "http.response.trailers": {}}
    app, client = App(), Client(extensions=extensions)
    given = client.scope["extensions"]
    await client.call(guarded(app, AgentConfig("a", Probe(response_body=None))))
    assert app.extensions == {"http.response.trailers": {}}
    assert client.scope["extensions"] is given
    assert given == extensions


@pytest.mark.parametrize("bypass", BYPASSES)
@pytest.mark.parametrize("event", ["request_headers", "request_body", "response_headers", "complete"])
async def test_ways_around_body_inspection_are_offered_where_no_response_body_is_inspected(
    bypass: str, event: str
) -> None:
    message: Message = {"type": bypass, "path": "/etc/hosts", "file": 3}
    app, client = App(start(), message), Client(extensions={bypass: {}})
    await client.call(guarded(app, AgentConfig("a", Probe(**{event: None}))))
    assert app.extensions == {bypass: {}}
    assert client.messages[-1] is message
    assert client.complete


@pytest.mark.parametrize("bypass", BYPASSES)
@pytest.mark.parametrize("mode", [BodyMode.BUFFER, STREAM], ids=lambda mode: mode.name)
async def test_a_file_sent_past_body_inspection_is_refused(bypass: str, mode: BodyMode) -> None:
    client = Client(extensions={bypass: {}}, lenient=True)
    app = App(start(), {"type": bypass, "path": "/etc/shadow", "file": 3})
    with pytest.raises(RuntimeError, match=f"{bypass}.*not offered"):
        await client.call(guarded(app, AgentConfig("a", Probe(response_body=None), response_body_mode=mode)))
    assert bypass not in [message["type"] for message in client.messages]
    assert not client.complete


async def test_extensions_without_ways_around_are_left_alone() -> None:
    extensions: dict[str, Any] = {"http.response.trailers": {}}
    app, client = App(), Client()
    client.scope["extensions"] = extensions
    await client.call(guarded(app, AgentConfig("a", Probe(response_body=None))))
    assert app.extensions is extensions


# Messages out of order


async def test_a_second_start_is_refused_while_the_first_is_held() -> None:
    client = Client()
    with pytest.raises(RuntimeError, match="already been started"):
        await client.call(guarded(App(start(), start(500)), AgentConfig("a", Probe(response_body=None))))
    assert client.messages == []


@pytest.mark.parametrize("event", ["response_headers", "response_body"])
async def test_a_second_start_reaches_the_server_without_headers_that_nobody_judged(event: str) -> None:
    client = Client(lenient=True)
    app = App(start(), start(500, (b"x-secret", b"1")), body(b"x"))
    await client.call(guarded(app, streaming(Probe(**{event: None}))))
    assert [message["headers"] for message in client.starts] == [[], []]


async def test_a_body_before_its_start_reaches_the_server_without_content() -> None:
    client = Client(lenient=True)
    await client.call(guarded(App(body(b"secret"), start()), AgentConfig("a", Probe(response_body=DENIED))))
    assert client.body == b""


async def test_a_body_after_the_end_reaches_the_server_without_content() -> None:
    client = Client(lenient=True)
    agent = Probe(response_body=deny(b"secret"))
    await client.call(guarded(App(start(), body(b"good"), body(b"secret")), AgentConfig("a", agent)))
    assert client.body == b"good"


async def test_the_server_complains_about_messages_out_of_order_as_ever() -> None:
    for messages in ((body(b"x"),), (start(), body(b"x"), body(b"y")), (start(), body(more=True), start())):
        with pytest.raises(RuntimeError, match="Unexpected ASGI message"):
            await Client().call(guarded(App(*messages), streaming(Probe(response_body=None, response_headers=None))))


async def test_nothing_is_sent_for_an_app_that_ends_before_its_held_response_is_whole() -> None:
    client = Client()
    await client.call(guarded(App(start(), body(b"part", more=True)), AgentConfig("a", Probe(response_body=None))))
    assert client.messages == []


async def test_nothing_is_sent_for_an_app_that_raises_before_its_held_response_is_whole() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"part", more=True))
        raise KeyError

    client = Client()
    with pytest.raises(KeyError):
        await client.call(guarded(app, AgentConfig("a", Probe(response_body=None))))
    assert client.messages == []


@pytest.mark.parametrize("mode", [BodyMode.BUFFER, STREAM, BodyMode.hybrid(2)], ids=lambda mode: mode.name)
async def test_a_body_sent_beside_a_start_that_is_being_judged_waits_for_the_verdict(mode: BodyMode) -> None:
    held, client = Held(DENIED), Client(lenient=True)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(push, send, start())
            await held.reached.wait()
            tasks.start_soon(push, send, body(b"secret"))
            await settle()
            held.gate.set()

    agent = SlowProbe(response_headers=held, response_body=DENIED)
    with suppress(RuntimeError, ResponseAborted):
        await client.call(guarded(app, AgentConfig("a", agent, response_body_mode=mode)))
    assert b"secret" not in client.body


async def test_chunks_sent_by_two_tasks_arrive_in_the_order_they_were_sent() -> None:
    first, client = Held(), Client()

    async def react(event: Any) -> Answer:
        return await first(event) if event.data == b"1" else None

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(push, send, body(b"1", more=True))
            await first.reached.wait()
            tasks.start_soon(push, send, body(b"2", more=True))
            await settle()
            first.gate.set()
        await send(body(b"3"))

    await client.call(guarded(app, streaming(SlowProbe(response_body=react))))
    assert client.body == b"123"


# Sends that the app gives up


async def test_a_send_given_up_while_it_is_judged_breaks_the_response_off() -> None:
    held, client = Held(), Client()

    async def react(event: Any) -> Answer:
        return await held(event) if event.data == b"2" else None

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"1", more=True))
        with anyio.move_on_after(0.01):
            await send(body(b"2", more=True))
        await send(body(b"3"))

    middleware = guarded(app, streaming(SlowProbe(response_body=react)))
    with pytest.raises(ResponseAborted, match="the app cancelled a send"):
        await client.call(middleware)
    assert client.body == b"1"
    assert not client.complete
    assert_nothing_left(middleware.manager)


async def test_a_start_given_up_while_it_is_judged_breaks_the_response_off() -> None:
    client = Client(lenient=True)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with anyio.move_on_after(0.01):
            await send(start(200, (b"x-secret", b"1")))
        await send(start(500))
        await send(body(b"secret"))

    with pytest.raises(ResponseAborted):
        await client.call(guarded(app, AgentConfig("a", SlowProbe(response_headers=Held()))))
    assert client.messages == []


async def test_a_send_given_up_while_the_client_is_slow_leaves_no_hole_in_a_response_that_looks_complete() -> None:
    client = Client(lenient=True)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"1111", more=True))
        client.take_nothing()
        with anyio.move_on_after(0.01):
            await send(body(b"2222", more=True))
        client.take_everything()
        await send(body(b"3333"))

    with suppress(ResponseAborted):
        await client.call(
            guarded(app, AgentConfig("a", Probe(response_body=None), response_body_mode=BodyMode.hybrid(6)))
        )
    # The first chunk was sent without a complaint. That it isn't there may not go unnoticed.
    assert client.body.startswith(b"1111") or not client.complete


async def test_a_client_that_leaves_while_a_chunk_is_judged_is_no_error() -> None:
    held, client = Held(), Client(spec_version="2.3")

    app = Starlette(routes=[AppRoute("/", lambda request: StreamingResponse(Pieces([b"one", b"two"])))])
    middleware = guarded(app, streaming(SlowProbe(response_body=held)))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await held.reached.wait()
        client.leave()
    assert held.cancelled == 1
    assert_nothing_left(middleware.manager)


async def test_a_response_to_a_client_that_is_gone_fails_as_the_server_says() -> None:
    client = Client(spec_version="2.4")
    client.leave()
    with pytest.raises(OSError, match="the client is gone"):
        await client.call(guarded(App(read=False), streaming(Probe(response_headers=None, response_body=None))))


@pytest.mark.parametrize("more", [True, False], ids=["in the middle", "at the end"])
async def test_an_app_that_copes_with_a_client_that_left_is_no_error(more: bool, probe: type[Probe]) -> None:
    client = Client(spec_version="2.4")

    async def app(scope: Scope, receive: Receive, send: Send) -> Any:
        await send(start())
        await send(body(b"one", more=True))
        client.leave()
        with suppress(OSError):
            await send(body(b"two", more=more))
        return "returned by the app"

    middleware = guarded(app, streaming(probe(response_headers=None, response_body=None)))
    assert await client.call(middleware) == "returned by the app"
    assert client.body == b"one"


# Whatever an app sends, in whatever order

_bodies = st.builds(body, st.sampled_from([b"", b"secret", b"x"]), more=st.booleans())
_starts = st.builds(
    start,
    st.sampled_from([200, 204, 304, 404]),
    st.sampled_from([SSE, (b"content-length", b"6"), (b"x-app", b"secret")]),
)
_others: st.SearchStrategy[Message] = st.sampled_from(
    [
        {"type": "http.response.pathsend", "path": "secret"},
        {"type": "http.response.zerocopysend", "file": 0},
        {"type": "http.response.trailers", "headers": []},
        {"type": "http.response.early_hint", "links": []},
        {"type": "http.response.of_tomorrow"},
        {"type": "http.response.body"},
        {"type": "http.response.body", "body": bytearray(b"secret")},
    ]
)
_messages = st.lists(
    st.tuples(st.one_of(_bodies, _bodies, _starts, _others), st.sampled_from(["await", "give up", "beside"])),
    max_size=8,
)
_modes = st.sampled_from([BodyMode.BUFFER, STREAM, BodyMode.hybrid(3)])
fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


class Unruly:
    """Sends those messages whatever becomes of them: awaits each, gives it up at its first suspension, or goes on."""

    def __init__(self, messages: Sequence[tuple[Message, str]], head_first: bool) -> None:
        self._messages = [(start(), "await"), *messages] if head_first else messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            for message, manner in self._messages:
                if manner == "beside":
                    tasks.start_soon(self._send, send, message)
                    continue
                with anyio.CancelScope() as given_up:
                    if manner == "give up":
                        given_up.cancel()
                    await self._send(send, message)

    async def _send(self, send: Send, message: Message) -> None:
        with suppress(Exception):
            await send(message)


@fuzz
@given(messages=_messages, head_first=st.booleans(), mode=_modes, method=st.sampled_from(["GET", "HEAD"]))
async def test_no_order_of_messages_brings_a_byte_past_an_agent_that_blocks_them_all(
    messages: list[tuple[Message, str]], head_first: bool, mode: BodyMode, method: str, probe: type[Probe]
) -> None:
    client = Client(method, lenient=True)
    agent = probe(response_body=AgentResponse.block(403, "denied"))
    with suppress(ResponseAborted):
        await client.call(guarded(Unruly(messages, head_first), AgentConfig("a", agent, response_body_mode=mode)))
    for message in client.messages:
        assert b"secret" not in message.get("body", b"")
        assert message.get("body", b"") in (b"", b"denied") or message["body"].startswith(b"event: error")
        assert message["type"] not in BYPASSES


@fuzz
@given(messages=_messages, head_first=st.booleans(), mode=_modes)
async def test_no_order_of_messages_brings_anything_past_an_agent_that_blocks_every_head(
    messages: list[tuple[Message, str]], head_first: bool, mode: BodyMode, probe: type[Probe]
) -> None:
    client = Client(lenient=True)
    agent = probe(response_headers=AgentResponse.block(403, "denied"), response_body=None)
    with suppress(ResponseAborted):
        await client.call(guarded(Unruly(messages, head_first), AgentConfig("a", agent, response_body_mode=mode)))
    for message in client.messages:
        assert message.get("body", b"") in (b"", b"denied")
        assert (b"x-app", b"secret") not in message.get("headers", ())


@fuzz
@given(messages=_messages, head_first=st.booleans(), mode=_modes)
async def test_every_byte_that_a_client_gets_was_judged_in_its_place(
    messages: list[tuple[Message, str]], head_first: bool, mode: BodyMode, probe: type[Probe]
) -> None:
    client = Client(lenient=True)
    agent = probe(response_body=deny(b"secret"))
    with suppress(ResponseAborted):
        await client.call(guarded(Unruly(messages, head_first), AgentConfig("a", agent, response_body_mode=mode)))
    allowed = b"".join(data for _, data, _ in agent.chunks if b"secret" not in data)
    own = [chunk for chunk in client.chunks if chunk != b"denied" and not chunk.startswith(b"event: error")]
    assert allowed.startswith(b"".join(own))


# What the context tells


@pytest.mark.parametrize(
    ("head", "options"),
    [
        (start(), {}),
        (start(), {"response_body_mode": STREAM}),
        (start(200, SSE), {}),
    ],
    ids=["replaced", "broken off", "event stream"],
)
@pytest.mark.parametrize(
    "answer", [DENIED, AgentResponse.block(403, "denied", needs_more=True)], ids=["denied", "never decided"]
)
async def test_the_context_tells_what_a_response_ended_on(
    head: Message, options: dict[str, Any], answer: AgentResponse
) -> None:
    client = Client()
    with suppress(ResponseAborted):
        await client.call(guarded(App(head, body(b"x")), AgentConfig("a", Probe(response_body=answer), **options)))
    context: AgentContext = client.scope["state"]["agents"]
    assert context.decision.decided_by == "a"
    assert context.decision.decision == answer.decision
    assert [verdict.outcome for verdict in context.decision.verdicts] == ["block"]
