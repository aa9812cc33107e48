"""One request, from its head to its last byte and after."""

import contextvars
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route as AppRoute
from starlette.types import Message, Receive, Scope, Send

from asgi_agents import (
    AgentConfig,
    AgentContext,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    BodyMode,
    BodyMutation,
    HeaderOp,
    ResponseAborted,
    Route,
)
from tests.support.asgi import (
    DISCONNECT,
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
DENIED = AgentResponse.block(403, "denied")
SSE = (b"content-type", b"text/event-stream")


def streaming(probe: Probe, **options: Any) -> AgentConfig:
    return AgentConfig("a", probe, request_body_mode=STREAM, **options)


def deny(forbidden: bytes) -> Callable[[Any], Answer]:
    return lambda event: DENIED if forbidden in event.data else None


# The request's head


@pytest.mark.parametrize(
    ("answer", "status", "header"),
    [
        (AgentResponse.block(403, "no"), 403, (b"content-type", b"text/plain; charset=utf-8")),
        (AgentResponse.redirect("/login", 307), 307, (b"location", b"/login")),
        (AgentResponse.challenge("bearer"), 401, (b"www-authenticate", b"Bearer")),
        (AgentResponse.challenge("captcha"), 403, (b"content-type", b"application/json")),
    ],
    ids=["block", "redirect", "challenge", "other challenge"],
)
async def test_a_denied_request_is_answered_without_the_app(
    answer: AgentResponse, status: int, header: tuple[bytes, bytes], probe: type[Probe]
) -> None:
    app, client = App(), Client("POST", body=b"never read")
    agent = probe(request_headers=answer, request_body=None, response_headers=None, response_body=None)
    assert await client.call(guarded(app, AgentConfig("a", agent))) is None
    assert app.calls == 0
    assert client.received == 0
    assert client.status == status
    assert header in client.headers
    assert client.complete
    assert [event.event_type.value for event in agent.heard] == ["request_headers"]


async def test_an_allowed_request_is_unchanged(probe: type[Probe]) -> None:
    headers = [(b"X-One", b"1"), (b"x-one", b"2"), (b"cookie", b"a=b")]
    app, client = App(), Client("POST", headers=headers, body=[b"one", b"two"])
    given = list(client.scope["headers"])
    agent = probe(request_headers=None, request_body=None, response_headers=None, response_body=None)
    assert await client.call(guarded(app, AgentConfig("a", agent))) == "returned by the app"
    assert app.headers == given
    assert app.body == b"onetwo"
    assert client.body == b"hello"


async def test_request_header_operations_are_seen_by_the_app_alone(probe: type[Probe]) -> None:
    ops = [HeaderOp.set("X-User", "alice"), HeaderOp.add("x-tag", "2"), HeaderOp.remove("Authorization")]
    app = App()
    client = Client(
        headers=[(b"X-USER", b"mallory"), (b"x-user", b"eve"), (b"x-tag", b"1"), (b"authorization", b"secret")]
    )
    given = client.scope["headers"]
    before = list(given)
    agent = probe(request_headers=AgentResponse.allow(request_headers=ops))
    await client.call(guarded(app, AgentConfig("a", agent)))
    assert app.headers == [(b"x-tag", b"1"), (b"x-user", b"alice"), (b"x-tag", b"2")]
    assert client.scope["headers"] is given
    assert given == before


async def test_header_operations_of_a_buffered_body_reach_the_app(probe: type[Probe]) -> None:
    app, client = App(), Client("POST", body=b"x")
    agent = probe(request_body=AgentResponse.allow(request_headers=[HeaderOp.set("x-scanned", "1")]))
    await client.call(guarded(app, AgentConfig("a", agent)))
    assert app.header(b"x-scanned") == b"1"


async def test_all_agents_see_the_request_as_the_client_sent_it(probe: type[Probe]) -> None:
    first = probe(request_headers=AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice")]))
    second = probe(request_headers=None)
    await Client().call(guarded(App(), AgentConfig("a", first), AgentConfig("b", second)))
    assert second.of("request_headers")[0].header("x-user") is None


async def test_header_events_go_to_all_agents_in_parallel() -> None:
    first, second = Held(), Held()
    client = Client()
    middleware = guarded(
        App(),
        AgentConfig("a", SlowProbe(request_headers=first)),
        AgentConfig("b", SlowProbe(request_headers=second)),
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await first.reached.wait()
        await second.reached.wait()
        first.gate.set()
        second.gate.set()
    assert client.status == 200


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first answers first", "second answers first"])
async def test_the_first_denial_in_route_order_decides_whoever_answers_first(order: tuple[int, int]) -> None:
    held = [Held(AgentResponse.block(401, "first")), Held(AgentResponse.block(403, "second"))]
    client = Client()
    middleware = guarded(
        App(),
        AgentConfig("a", SlowProbe(request_headers=held[0])),
        AgentConfig("b", SlowProbe(request_headers=held[1])),
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await held[0].reached.wait()
        await held[1].reached.wait()
        held[order[0]].gate.set()
        await settle()
        held[order[1]].gate.set()
    assert (client.status, client.body) == (401, b"first")
    assert_nothing_left(middleware.manager)


@pytest.mark.parametrize("answered", [True, False], ids=["a body follows", "no body"])
async def test_a_provisional_denial_of_the_head_waits_for_the_body_if_there_is_one(
    answered: bool, probe: type[Probe]
) -> None:
    agent = probe(request_headers=AgentResponse.block(403, "first word", needs_more=True), request_body=None)
    app, client = App(), Client("POST", body=b"x") if answered else Client("GET")
    await client.call(guarded(app, streaming(agent)))
    assert client.status == (200 if answered else 403)
    assert app.calls == answered


async def test_a_provisional_denial_of_the_head_holds_the_app_back(probe: type[Probe]) -> None:
    app = App()
    agent = probe(request_headers=AgentResponse.block(needs_more=True), request_body=deny(b"evil"))
    client = Client("POST", body=[b"evil", b"rest"])
    await client.call(guarded(app, streaming(agent)))
    assert (client.status, client.body) == (403, b"denied")
    assert app.calls == 0


@pytest.mark.parametrize("http_version", ["1.1", "2"])
async def test_a_provisional_denial_of_the_head_is_final_if_the_body_turns_out_empty(http_version: str) -> None:
    agent = Probe(request_headers=AgentResponse.block(403, "first word", needs_more=True), request_body=None)
    client = Client("POST", body=[b"", b""], http_version=http_version)
    app = App()
    await client.call(guarded(app, streaming(agent)))
    assert (client.status, client.body) == (403, b"first word")
    assert app.calls == 0
    assert agent.chunks == []


async def test_an_empty_message_does_not_make_a_provisional_denial_of_the_head_final(probe: type[Probe]) -> None:
    agent = probe(request_headers=AgentResponse.block(needs_more=True), request_body=None)
    app, client = App(), Client("POST", body=[b"", b"x"])
    await client.call(guarded(app, streaming(agent)))
    assert client.status == 200
    assert app.body == b"x"


async def test_a_body_that_was_not_declared_is_judged_while_the_app_reads_it(probe: type[Probe]) -> None:
    app, client = App(), Client(http_version="1.1")
    client._inbox.clear()
    client.give(b"evil")
    await client.call(guarded(app, AgentConfig("a", probe(request_body=deny(b"evil")))))
    assert (client.status, client.body) == (403, b"denied")
    assert app.body == b""


async def test_an_http2_request_without_declared_length_is_read_before_the_app_is_called(probe: type[Probe]) -> None:
    app, client = App(), Client("POST", http_version="2")
    client._inbox.clear()
    client.give(b"evil")
    await client.call(guarded(app, AgentConfig("a", probe(request_body=deny(b"evil")))))
    assert client.status == 403
    assert app.calls == 0


# A client that leaves


@pytest.mark.parametrize("mode", [BodyMode.BUFFER, BodyMode.hybrid(100)], ids=lambda mode: mode.name)
@pytest.mark.parametrize("sent", [[], [b"part"]], ids=["at once", "half-way"])
async def test_a_client_that_leaves_while_its_body_is_buffered_ends_the_request(
    mode: BodyMode, sent: list[bytes], probe: type[Probe]
) -> None:
    app, client = App(), Client("POST", body=sent or None, unfinished=True)
    client.leave()
    agent = probe(request_body=None, complete=None)
    middleware = guarded(app, AgentConfig("a", agent, request_body_mode=mode))
    receive = _at_most(client.receive, 10)
    assert await middleware(client.scope, receive, client.send) is None
    assert app.calls == 0
    assert agent.chunks == []
    assert client.messages == []
    assert agent.complete.status == 499
    assert agent.complete.request_body_size == len(b"".join(sent))
    assert_nothing_left(middleware.manager)


async def test_a_client_that_leaves_while_its_last_words_are_judged_is_told_after_them() -> None:
    held, app = Held(), App()
    app.messages = ()
    client = Client("POST", body=[b"part"], unfinished=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, guarded(app, streaming(SlowProbe(request_body=held))))
        await held.reached.wait()
        client.leave()
        held.gate.set()
    assert app.received == [{"type": "http.request", "body": b"part", "more_body": True}, DISCONNECT]


async def test_a_client_that_leaves_while_the_app_reads_is_told_to_the_app(probe: type[Probe]) -> None:
    app, client = App(), Client("POST", body=[b"part"], unfinished=True)
    app.messages = ()
    client.leave()
    await client.call(guarded(app, streaming(probe(request_body=None))))
    assert app.received == [{"type": "http.request", "body": b"part", "more_body": True}, DISCONNECT]


# Blocks while the app runs


async def test_a_late_block_is_answered_before_the_app_hears_of_it() -> None:
    """The app could take its client's end for an error of its own, and answer that."""
    held, client = Held(DENIED), Client("POST", body=[b"evil"], unfinished=True)
    seen: list[tuple[Message | str, bool]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            seen.append((await receive(), client.complete))
        except BaseException:
            seen.append(("cancelled", client.complete))
            raise

    middleware = guarded(app, streaming(SlowProbe(request_body=held)))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await held.reached.wait()
        client.take_nothing()
        held.gate.set()
        await settle()
        before = list(seen)
        client.take_everything()
    assert before == []
    assert (client.status, client.body) == (403, b"denied")
    assert [complete for _, complete in seen] == [True]


async def test_an_app_that_raises_over_its_lost_client_after_a_block_is_no_error(probe: type[Probe]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async for _ in Request(scope, receive).stream():
            pass

    client = Client("POST", body=[b"evil"], unfinished=True)
    await client.call(guarded(app, streaming(probe(request_body=DENIED))))
    assert (client.status, client.body) == (403, b"denied")


async def test_a_block_while_a_framework_reads_the_body_is_the_only_answer(
    probe: type[Probe], caplog: pytest.LogCaptureFixture
) -> None:
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(await request.body())

    app = Starlette(routes=[AppRoute("/", endpoint, methods=["POST"])])
    client = Client("POST", body=[b"good", b"evil", b"rest"])
    middleware = guarded(app, streaming(probe(request_body=deny(b"evil"))))
    await client.call(middleware)
    assert (client.status, client.body) == (403, b"denied")
    assert len(client.starts) == 1
    assert_nothing_left(middleware.manager)


class Passing(BaseHTTPMiddleware):
    """A middleware of the kind that runs what is inside it in a task of its own."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


@pytest.mark.parametrize("outside", [True, False], ids=["outside", "inside"])
async def test_a_late_block_passes_through_other_middlewares(outside: bool, probe: type[Probe]) -> None:
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(await request.body())

    here = Middleware(AgentMiddleware, agents=[streaming(probe(request_body=deny(b"evil")))])
    app = Starlette(
        routes=[AppRoute("/", endpoint, methods=["POST"])],
        middleware=[Middleware(Passing), here] if outside else [here, Middleware(Passing)],
    )
    client = Client("POST", body=[b"good", b"evil"], unfinished=True)
    with anyio.fail_after(5):
        await client.call(app)
    assert (client.status, client.body) == (403, b"denied")


async def test_a_reply_on_its_way_is_finished_when_the_app_ends_first() -> None:
    held, client = Held(DENIED), Client("POST", body=[b"evil"], unfinished=True)
    ended = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pull, receive)
            await held.reached.wait()
            await settle()
            tasks.cancel_scope.cancel()
        ended.set()

    middleware = guarded(app, streaming(SlowProbe(request_body=held)))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await held.reached.wait()
        client.take_nothing()
        held.gate.set()
        await ended.wait()
        await settle()
        client.take_everything()
    assert (client.status, client.body) == (403, b"denied")
    assert client.complete


@pytest.mark.parametrize("event", ["response_headers", "response_body"])
async def test_a_response_judged_while_the_reply_to_its_request_is_on_its_way_is_not_sent(event: str) -> None:
    request_held, response_held = Held(DENIED), Held()
    client = Client("POST", body=[b"evil"], unfinished=True)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pull, receive)
            await request_held.reached.wait()
            for message in App().messages:
                await send(message)

    agent = SlowProbe(request_body=request_held, **{event: response_held})
    middleware = guarded(app, streaming(agent))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await response_held.reached.wait()
        client.take_nothing()
        request_held.gate.set()
        await settle()
        response_held.gate.set()
        await settle()
        client.take_everything()
    assert (client.status, client.body) == (403, b"denied")
    assert_nothing_left(middleware.manager)


@pytest.mark.parametrize("first", ["request", "response"])
async def test_of_two_denials_at_once_the_client_gets_one(first: str) -> None:
    held = {"request": Held(AgentResponse.block(401, "of request")), "response": Held(DENIED)}
    client = Client("POST", body=[b"evil"], unfinished=True)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pull, receive)
            await held["request"].reached.wait()
            for message in App().messages:
                await send(message)

    agent = SlowProbe(request_body=held["request"], response_headers=held["response"])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, guarded(app, streaming(agent)))
        await held["response"].reached.wait()
        client.take_nothing()
        held[first].gate.set()
        await settle()
        for other in held.values():
            other.gate.set()
        await settle()
        client.take_everything()
    assert (client.status, client.body) == ((401, b"of request") if first == "request" else (403, b"denied"))
    assert len(client.starts) == 1


async def test_a_late_block_stops_what_the_app_sends_afterwards(probe: type[Probe]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(BaseException):
            await receive()
        for message in (start(500), body(b"error page")):
            with suppress(BaseException):
                await send(message)

    client = Client("POST", body=[b"evil"])
    await client.call(guarded(app, streaming(probe(request_body=DENIED))))
    assert (client.status, client.body) == (403, b"denied")
    assert len(client.messages) == 2


async def test_an_app_that_catches_its_cancellation_finds_its_client_gone(probe: type[Probe]) -> None:
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while len(seen) < 3:
            with suppress(BaseException):
                seen.append(await receive())

    client = Client("POST", body=[b"evil", b"rest"])
    with anyio.fail_after(5):
        await client.call(guarded(app, streaming(probe(request_body=DENIED))))
    assert seen == [DISCONNECT] * 3
    assert client.status == 403


async def test_only_the_apps_own_scope_is_cancelled_by_a_late_block(probe: type[Probe]) -> None:
    ran_on = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            await receive()

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        await guarded(app, streaming(probe(request_body=DENIED)), stop_grace=0)(scope, receive, send)
        await checkpoint()
        ran_on.append(True)

    client = Client("POST", body=[b"evil"])
    await client.call(outer)
    assert ran_on
    assert client.status == 403


async def test_a_block_without_a_grace_ends_an_app_that_waits_for_something_else() -> None:
    """The app has one task that reads, and is busy with another."""
    ended = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pull, receive)
                await anyio.sleep_forever()
        finally:
            ended.append(True)

    client = Client("POST", body=[b"evil"])
    with anyio.fail_after(5):
        await client.call(guarded(app, streaming(SlowProbe(request_body=DENIED)), stop_grace=0))
    assert ended
    assert (client.status, client.body) == (403, b"denied")


async def test_a_block_replaces_a_response_that_is_still_held(probe: type[Probe]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"x-app", b"1")))
        await send(body(b"part", more=True))
        await receive()
        await send(body(b"rest"))

    client = Client("POST", body=[b"evil"])
    agent = probe(request_body=DENIED, response_body=None)
    await client.call(guarded(app, streaming(agent)))
    assert (client.status, client.body) == (403, b"denied")
    assert client.header(b"x-app") is None


async def test_a_block_while_the_response_head_is_judged_replaces_it() -> None:
    held, client = Held(), Client("POST", body=[b"evil"], unfinished=True)
    judged = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(push, send, start(200, (b"x-app", b"1")))
            await held.reached.wait()
            judged.set()
            await receive()

    middleware = guarded(app, streaming(SlowProbe(request_body=DENIED, response_headers=held)))
    await client.call(middleware)
    assert judged.is_set()
    assert (client.status, client.body) == (403, b"denied")
    assert held.cancelled == 1
    assert_nothing_left(middleware.manager)


async def test_a_block_after_the_response_has_started_breaks_it_off(probe: type[Probe]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"part", more=True))
        await receive()
        await send(body(b"rest"))

    client = Client("POST", body=[b"evil"])
    with pytest.raises(ResponseAborted, match="agent 'a': block"):
        await client.call(guarded(app, streaming(probe(request_body=DENIED))))
    assert client.body == b"part"
    assert not client.complete


@pytest.mark.parametrize("inspected", [True, False], ids=["inspected", "not inspected"])
async def test_a_block_after_an_event_stream_has_started_ends_the_connection(
    inspected: bool, probe: type[Probe]
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, SSE))
        await send(body(b"data: 1\n\n", more=True))
        await receive()
        await send(body(b"data: 2\n\n"))

    client = Client("POST", body=[b"evil"])
    reactions: dict[str, Any] = {"request_body": DENIED}
    if inspected:
        reactions["response_body"] = None
    with suppress(ResponseAborted):
        await client.call(guarded(app, streaming(probe(**reactions))))
    assert client.chunks[0] == b"data: 1\n\n"
    if inspected:
        assert client.complete
        assert b"event: error" in client.chunks[1]
    assert b"data: 2" not in client.body


async def test_a_block_after_the_response_is_complete_changes_nothing_for_the_client(probe: type[Probe]) -> None:
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> Any:
        await send(start())
        await send(body(b"done"))
        seen.append(await receive())
        return "returned by the app"

    client = Client("POST", body=[b"evil"])
    middleware = guarded(app, streaming(probe(request_body=DENIED)))
    assert await client.call(middleware) == "returned by the app"
    assert client.body == b"done"
    assert seen == [DISCONNECT]


@pytest.mark.parametrize("more", [{}, {"more_body": False}], ids=["by default", "in so many words"])
async def test_a_block_after_a_file_was_sent_changes_nothing_for_the_client(more: Message, probe: type[Probe]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> Any:
        await send(start())
        await send({"type": "http.response.zerocopysend", "file": 3, **more})
        await receive()
        return "returned by the app"

    client = Client("POST", body=[b"evil"])
    assert await client.call(guarded(app, streaming(probe(request_body=DENIED)))) == "returned by the app"
    assert client.complete


async def test_a_block_while_the_last_byte_is_on_its_way_does_not_spoil_it() -> None:
    held, client = Held(DENIED), Client("POST", body=[b"evil"], unfinished=True)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pull, receive)
            await held.reached.wait()
            await send(start())
            client.take_nothing()
            await send(body(b"done"))

    middleware = guarded(app, streaming(SlowProbe(request_body=held)))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await held.reached.wait()
        await settle()
        held.gate.set()
        await settle()
        client.take_everything()
    assert client.body == b"done"
    assert client.complete


async def test_nothing_more_of_the_body_is_read_after_a_block(probe: type[Probe]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(3):
            with suppress(BaseException):
                await receive()

    client = Client("POST", body=[b"evil", b"more", b"rest"])
    agent = probe(request_body=deny(b"evil"))
    await client.call(guarded(app, streaming(agent)))
    assert len(agent.heard) == 1
    assert client.unread == 2


async def test_a_reply_that_the_client_does_not_live_to_see_still_ends_the_app() -> None:
    ended = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pull, receive)
                await anyio.sleep_forever()
        finally:
            ended.append(True)

    held, client = Held(DENIED), Client("POST", body=[b"evil"], unfinished=True)
    async with anyio.create_task_group() as tasks:

        async def serve() -> None:
            with suppress(OSError):
                await client.call(guarded(app, streaming(SlowProbe(request_body=held)), stop_grace=0))
            tasks.cancel_scope.cancel()

        tasks.start_soon(serve)
        await held.reached.wait()
        client.leave()
        held.gate.set()
        await settle()
        assert ended, "the app runs on for nobody"


async def test_a_challenge_renderer_that_fails_in_a_late_block_is_heard_of(probe: type[Probe]) -> None:
    def render(challenge: Any, scope: Scope) -> Response:
        raise KeyError("the renderer's own")

    client = Client("POST", body=[b"x"])
    middleware = guarded(
        App(), streaming(probe(request_body=AgentResponse.challenge("captcha"))), challenge_renderer=render
    )
    with pytest.raises(KeyError, match="the renderer's own"):
        await client.call(middleware)
    assert b"hello" not in client.body


# After


async def test_the_end_is_told_after_the_last_byte(probe: type[Probe]) -> None:
    client = Client("POST", body=[b"four"])
    seen = []

    def look(event: Any) -> Answer:
        seen.append(client.complete)
        return None

    agent = probe(complete=look)
    await client.call(guarded(App(start(201), body(b"one", more=True), body(b"two")), AgentConfig("a", agent)))
    assert seen == [True]
    event = agent.complete
    assert (event.status, event.request_body_size, event.response_body_size) == (201, 4, 6)
    assert event.upstream_attempts == 1
    assert event.error is None
    assert event.duration_ms >= 0


async def test_the_last_byte_does_not_wait_for_agents_that_are_told_of_it() -> None:
    held, client = Held(), Client()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, guarded(App(), AgentConfig("a", SlowProbe(complete=held))))
        await held.reached.wait()
        assert client.complete
        held.gate.set()


async def test_the_duration_ends_with_the_last_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal now
        now += 1.5
        for message in App().messages:
            await send(message)
        now += 60.0

    agent = Probe(complete=None)
    await Client().call(guarded(app, AgentConfig("a", agent)))
    assert agent.complete.duration_ms == 1500


async def test_every_agent_is_told_of_the_end_whatever_the_others_say(probe: type[Probe]) -> None:
    def fail(event: Any) -> Answer:
        raise ValueError

    agents = [probe(complete=DENIED), probe(complete=fail), probe(complete=None)]
    client = Client()
    await client.call(guarded(App(), *(AgentConfig(f"a{i}", agent) for i, agent in enumerate(agents))))
    assert client.body == b"hello"
    assert [len(agent.of("complete")) for agent in agents] == [1, 1, 1]


@pytest.mark.parametrize("event", ["request_headers", "request_body", "response_headers", "response_body"])
async def test_the_end_of_a_blocked_request_is_told_as_the_client_saw_it(event: str, probe: type[Probe]) -> None:
    agent = probe(complete=None, **{event: AgentResponse.block(451, "denied")})
    client = Client("POST", body=b"four")
    await client.call(guarded(App(), AgentConfig("a", agent)))
    told = agent.complete
    assert (told.status, told.response_body_size, told.error) == (451, 6, None)
    assert told.upstream_attempts == (0 if event.startswith("request") else 1)
    assert told.request_body_size == (0 if event == "request_headers" else 4)


async def test_the_end_of_a_request_whose_app_raises_is_told_with_the_error(probe: type[Probe]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("secret")

    agent = probe(complete=None)
    with pytest.raises(KeyError):
        await Client().call(guarded(app, AgentConfig("a", agent)))
    assert (agent.complete.status, agent.complete.error) == (500, "KeyError")


async def test_an_app_that_raises_while_its_response_is_held_has_failed_for_the_client() -> None:
    """The server has not seen the start, and answers 500."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200))
        raise KeyError

    agent, client = Probe(complete=None, response_body=None), Client()
    with pytest.raises(KeyError):
        await client.call(guarded(app, AgentConfig("a", agent)))
    assert client.status is None
    assert (agent.complete.status, agent.complete.error) == (500, "KeyError")


async def test_an_app_that_raises_in_mid_response_is_told_with_what_the_client_has() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(201))
        await send(body(b"part", more=True))
        raise KeyError

    agent = Probe(complete=None)
    with pytest.raises(KeyError):
        await Client().call(guarded(app, AgentConfig("a", agent)))
    assert (agent.complete.status, agent.complete.response_body_size) == (201, 4)
    assert agent.complete.error == "KeyError"


async def test_the_end_of_a_response_that_was_broken_off_is_told_as_such(probe: type[Probe]) -> None:
    agent = probe(response_body=deny(b"evil"), complete=None)
    with pytest.raises(ResponseAborted):
        await Client().call(
            guarded(
                App(start(), body(b"good", more=True), body(b"evil")),
                AgentConfig("a", agent, response_body_mode=STREAM),
            )
        )
    assert (agent.complete.status, agent.complete.response_body_size) == (200, 4)
    assert agent.complete.error == "ResponseAborted"


async def test_the_end_of_an_event_stream_that_was_blocked_counts_its_error_event(probe: type[Probe]) -> None:
    agent, client = probe(response_body=deny(b"evil"), complete=None), Client()
    await client.call(
        guarded(App(start(200, SSE), body(b"data: evil\n\n")), AgentConfig("a", agent, response_body_mode=STREAM))
    )
    assert agent.complete.response_body_size == len(client.body) > 0
    assert agent.complete.error is None


@pytest.mark.parametrize("read", [True, False], ids=["after the body", "within the body"])
async def test_the_end_of_a_request_whose_client_left_is_told_as_such(read: bool) -> None:
    client = Client("POST", body=[b"part"], unfinished=not read)
    client.leave()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    agent = Probe(complete=None)
    await client.call(guarded(app, AgentConfig("a", agent)))
    assert (agent.complete.status, agent.complete.request_body_size) == (499, 4)
    assert agent.complete.error is None


async def test_the_body_of_a_head_response_was_not_sent() -> None:
    agent = Probe(complete=None)
    await Client("HEAD").call(guarded(App(), AgentConfig("a", agent)))
    assert agent.complete.response_body_size == 0


async def test_background_tasks_end_before_the_request_does() -> None:
    order = []

    async def work() -> None:
        order.append("background")

    def told(event: Any) -> Answer:
        order.append("complete")
        return None

    app = Starlette(routes=[AppRoute("/", lambda request: PlainTextResponse("hello", background=BackgroundTask(work)))])
    await Client().call(guarded(app, AgentConfig("a", Probe(complete=told))))
    assert order == ["background", "complete"]


# What the app is called with


async def test_where_nothing_listens_the_app_is_called_with_the_very_same_receive_and_send() -> None:
    called_with: list[Any] = []
    returned = object()

    async def app(scope: Scope, receive: Receive, send: Send) -> Any:
        called_with.extend((scope, receive, send))
        return returned

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    scope = Client().scope
    no_agents: Any = AgentMiddleware(app, agents=[])
    no_route: Any = guarded(app, AgentConfig("a", Probe(request_headers=None)), routes=[Route("/other", agents=["a"])])
    empty_route: Any = guarded(app, AgentConfig("a", Probe(request_headers=None)), routes=[Route("/", agents=[])])
    deaf_agents: Any = guarded(app, AgentConfig("a", Probe()))
    for middleware in (no_agents, no_route, empty_route, deaf_agents):
        assert await middleware(scope, receive, send) is returned
        assert called_with[0] is scope
        assert called_with[1] is receive
        assert called_with[2] is send
        called_with.clear()


async def test_where_only_the_head_is_heard_the_app_is_called_with_the_very_same_receive_and_send() -> None:
    called_with: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> Any:
        called_with.extend((scope, receive, send))
        return "returned"

    client = Client()
    receive, send = client.receive, client.send
    middleware: Any = guarded(app, AgentConfig("a", Probe(request_headers=None)))
    assert await middleware(client.scope, receive, send) == "returned"
    assert called_with[0] is client.scope
    assert called_with[1] is receive
    assert called_with[2] is send


@pytest.mark.parametrize("event", ["request_headers", "request_body", "response_headers", "response_body", "complete"])
async def test_what_the_app_returns_is_returned(event: str, probe: type[Probe]) -> None:
    client = Client("POST", body=[b"x"])
    for mode in (BodyMode.BUFFER, STREAM):
        client = Client("POST", body=[b"x"])
        middleware = guarded(
            App(), AgentConfig("a", probe(**{event: None}), request_body_mode=mode, response_body_mode=mode)
        )
        assert await client.call(middleware) == "returned by the app"


async def test_what_the_app_puts_into_the_scope_is_there_afterwards(probe: type[Probe]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = "the app's route"
        scope["headers"].append((b"x-app", b"1"))
        await receive()

    client = Client("POST", body=[b"x"], extensions={"http.response.pathsend": {}})
    headers, extensions = client.scope["headers"], client.scope["extensions"]
    agent = probe(
        request_headers=AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice")]),
        request_body=None,
        response_body=None,
    )
    await client.call(guarded(app, streaming(agent)))
    assert client.scope["route"] == "the app's route"
    assert client.scope["headers"] is headers
    assert (b"x-user", b"alice") not in headers
    assert (b"x-app", b"1") not in headers
    assert client.scope["extensions"] is extensions
    assert "http.response.pathsend" in extensions


class Unusual(BaseException):
    """Neither an error nor a cancellation: as SystemExit."""


@pytest.mark.parametrize("error", [KeyError, Unusual], ids=["error", "base exception"])
async def test_the_scope_is_restored_when_the_app_raises(error: type[BaseException], probe: type[Probe]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = "the app's route"
        raise error

    client = Client("POST", body=[b"x"])
    headers = client.scope["headers"]
    agent = probe(
        request_headers=AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice")]), request_body=None
    )
    with pytest.raises(error) as raised:
        await client.call(guarded(app, streaming(agent)))
    assert type(raised.value) is error
    assert client.scope["headers"] is headers
    assert client.scope["route"] == "the app's route"


async def test_context_variables_set_in_the_app_are_seen_around_it(probe: type[Probe]) -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        variable.set("set by the app")
        for message in App().messages:
            await send(message)

    for mode in (BodyMode.BUFFER, STREAM):
        variable.set("unset")
        agent = probe(request_headers=None, request_body=None, response_headers=None, response_body=None, complete=None)
        middleware = guarded(app, AgentConfig("a", agent, request_body_mode=mode, response_body_mode=mode))
        await Client("POST", body=[b"x"]).call(middleware)
        assert variable.get() == "set by the app"


async def test_the_app_runs_in_the_task_that_called_the_middleware(probe: type[Probe]) -> None:
    tasks = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        tasks.append(anyio.get_current_task().id)
        await receive()

    await Client("POST", body=[b"x"]).call(guarded(app, streaming(probe(request_body=None, response_body=None))))
    assert tasks == [anyio.get_current_task().id]


async def test_spans_of_the_app_are_children_of_the_span_around_the_middleware(probe: type[Probe]) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        with tracer.start_as_current_span("app"):
            seen.append(trace.get_current_span())

    with tracer.start_as_current_span("outer") as outer:
        agent = probe(request_headers=None, request_body=None)
        await Client("POST", body=[b"x"]).call(guarded(app, streaming(agent)))
    by_name = {span.name: span for span in exporter.get_finished_spans()}
    assert by_name["app"].parent == outer.get_span_context()
    traceparent = agent.of("request_headers")[0].metadata.traceparent
    assert format(outer.get_span_context().trace_id, "032x") in traceparent


@pytest.mark.parametrize("error", [KeyError("x"), ExceptionGroup("x", [KeyError("y")])], ids=["error", "group"])
@pytest.mark.parametrize("mode", [BodyMode.BUFFER, STREAM], ids=lambda mode: mode.name)
async def test_exceptions_of_the_app_come_out_as_they_are(error: Exception, mode: BodyMode, probe: type[Probe]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise error

    agent = probe(request_headers=None, request_body=None, response_headers=None, response_body=None, complete=None)
    middleware = guarded(app, AgentConfig("a", agent, request_body_mode=mode))
    with pytest.raises(type(error)) as raised:
        await Client("POST", body=[b"x"], unfinished=mode is STREAM).call(middleware)
    assert raised.value is error


@pytest.mark.parametrize("mode", [BodyMode.BUFFER, STREAM], ids=lambda mode: mode.name)
async def test_exceptions_that_are_not_errors_come_out_as_they_are(mode: BodyMode, probe: type[Probe]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise Unusual

    agent = probe(request_headers=None, request_body=None, response_headers=None, response_body=None)
    middleware = guarded(app, AgentConfig("a", agent, request_body_mode=mode))
    with pytest.raises(Unusual):
        await Client("POST", body=[b"x"], unfinished=mode is STREAM).call(middleware)


async def test_an_error_of_the_app_is_not_lost_when_the_client_cancels_at_the_same_time() -> None:
    held = Held()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pull, receive)
            await held.reached.wait()
            tasks.cancel_scope.cancel()
        client_scope.cancel()
        raise KeyError("the app's own")

    client = Client("POST", body=[b"x"], unfinished=True)
    with anyio.CancelScope() as client_scope, pytest.raises(KeyError, match="the app's own"):
        await client.call(guarded(app, streaming(SlowProbe(request_body=held))))
    assert held.cancelled == 1


async def test_an_app_may_call_receive_while_its_send_is_blocked() -> None:
    client, got = Client("POST", body=[b"x"]), []
    client.take_nothing()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(push, send, start())
            await settle()
            got.append(await receive())
            client.take_everything()
        await send(body(b"done"))

    agent = SlowProbe(request_headers=None, request_body=None, response_headers=None, response_body=None)
    await client.call(guarded(app, AgentConfig("a", agent, request_body_mode=STREAM, response_body_mode=STREAM)))
    assert got[0]["body"] == b"x"
    assert client.body == b"done"


@pytest.mark.parametrize("mode", [BodyMode.BUFFER, STREAM, BodyMode.hybrid(2)], ids=lambda mode: mode.name)
@pytest.mark.parametrize("events", [("request_body",), ("request_body", "response_body"), ("complete",)], ids=str)
async def test_is_disconnected_answers_right_and_loses_nothing(
    events: tuple[str, ...], mode: BodyMode, probe: type[Probe]
) -> None:
    answers: list[bytes | bool] = []
    client = Client("POST", body=[b"one", b"two"])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        answers.append(await request.body())
        answers.append(await request.is_disconnected())
        client.leave()
        answers.append(await request.is_disconnected())

    middleware = guarded(app, AgentConfig("a", probe(**dict.fromkeys(events)), request_body_mode=mode))
    await client.call(middleware)
    assert answers == [b"onetwo", False, True]


@pytest.mark.parametrize("write", [True, False], ids=["writer", "reader"])
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
async def test_is_disconnected_between_two_pieces_of_a_body_takes_none_away(
    declared: bool, write: bool, probe: type[Probe]
) -> None:
    """It calls receive in a scope that is cancelled already."""
    client = Client("POST", headers=[(b"content-length", b"6")] if declared else [], body=[b"one", b"two"])
    if declared:
        client.scope["headers"] = [(b"content-length", b"6")]
    got = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(2):
            with anyio.CancelScope() as probing:
                probing.cancel()
                got.append(await receive())
            if len(got) < 2:
                message = await receive()
                got.append(message)
                if not message["more_body"]:
                    break

    agent = probe(request_body=None)
    await client.call(guarded(app, streaming(agent, body_access="write" if write else "read")))
    assert b"".join(message["body"] for message in got) == b"onetwo"
    assert b"".join(data for _, data, _ in agent.chunks) == b"onetwo"


# No yielding where there is nothing to judge


def _run_without_yielding(call: Awaitable[Any]) -> Any:
    steps: Generator[Any, Any, Any] = call.__await__()
    try:
        next(steps)
    except StopIteration as done:
        return done.value
    raise AssertionError("it yielded")


@pytest.mark.parametrize(
    "events",
    [
        (),
        ("request_headers",),
        ("request_headers", "complete"),
        ("request_headers", "request_body"),
        ("response_headers",),
        ("response_headers", "response_body"),
        ("request_headers", "request_body", "response_headers", "response_body", "complete"),
    ],
    ids=lambda events: "+".join(events) or "nothing",
)
@pytest.mark.parametrize("mode", [BodyMode.BUFFER, STREAM, BodyMode.hybrid(2)], ids=lambda mode: mode.name)
@pytest.mark.parametrize("agents", [1, 2])
async def test_agents_that_do_not_suspend_make_no_request_yield(
    events: tuple[str, ...], mode: BodyMode, agents: int
) -> None:
    app = App(start(), body(b"one", more=True), body(b"two"))
    middleware = guarded(
        app,
        *(
            AgentConfig(f"a{i}", Probe(**dict.fromkeys(events)), request_body_mode=mode, response_body_mode=mode)
            for i in range(agents)
        ),
    )
    client = Client("POST", body=[b"one", b"two"])
    assert _run_without_yielding(client.call(middleware)) == "returned by the app"
    assert app.body == b"onetwo"
    assert client.body == b"onetwo"


async def test_a_request_that_nobody_judges_runs_to_its_end_in_a_cancelled_scope(probe: type[Probe]) -> None:
    app, client = App(), Client("POST", body=[b"one", b"two"])
    middleware = guarded(
        app, AgentConfig("a", probe(request_headers=None, response_body=None)), routes=[Route("/other", agents=["a"])]
    )
    with anyio.CancelScope() as scope:
        scope.cancel()
        await client.call(middleware)
    assert app.finished


@pytest.mark.parametrize("mode", [BodyMode.BUFFER, STREAM, BodyMode.hybrid(2)], ids=lambda mode: mode.name)
async def test_a_request_whose_agents_do_not_suspend_runs_to_its_end_in_a_cancelled_scope(mode: BodyMode) -> None:
    app, client = App(start(), body(b"one", more=True), body(b"two")), Client("POST", body=[b"one", b"two"])
    agent = Probe(request_headers=None, request_body=None, response_headers=None, response_body=None, complete=None)
    middleware = guarded(app, AgentConfig("a", agent, request_body_mode=mode, response_body_mode=mode))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await client.call(middleware)
    assert app.finished
    assert client.body == b"onetwo"


async def test_messages_of_a_body_that_nobody_hears_are_handed_on_without_yielding() -> None:
    """Where only the end is heard, receive and send are ours, but have nothing to do."""
    client = Client("POST", body=[b"one", b"two"])
    done: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        done.extend(_run_without_yielding(receive()) for _ in range(2))
        client.leave()
        done.append(_run_without_yielding(receive()))

    await client.call(guarded(app, AgentConfig("a", SlowProbe(complete=None))))
    assert [message["type"] for message in done] == ["http.request", "http.request", "http.disconnect"]


async def test_empty_messages_of_a_body_that_has_had_nothing_yet_are_handed_on_without_yielding() -> None:
    client = Client("POST", body=[b"", b""])
    done: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        done.extend(_run_without_yielding(receive()) for _ in range(2))

    await client.call(guarded(app, streaming(SlowProbe(request_body=None))))
    assert [message["more_body"] for message in done] == [True, False]


async def test_what_follows_the_body_is_handed_on_without_yielding() -> None:
    client = Client("POST", body=[b"one", b"two"])
    done: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(2):
            await receive()
        client.leave()
        done.append(_run_without_yielding(receive()))

    await client.call(guarded(app, streaming(SlowProbe(request_body=None))))
    assert done == [DISCONNECT]


# Requests of odd make


@pytest.mark.parametrize(
    "missing",
    ["raw_path", "client", "server", "http_version", "extensions", "state", "asgi", "root_path", "query_string"],
)
async def test_a_scope_may_lack_what_is_optional(missing: str, probe: type[Probe]) -> None:
    agent = probe(request_headers=None, request_body=None, response_headers=None, response_body=None, complete=None)
    app, client = App(), Client("POST", body=b"x")
    del client.scope[missing]
    await client.call(guarded(app, AgentConfig("a", agent), routes=[Route("/{rest:path}", agents=["a"])]))
    assert client.body == b"hello"
    assert app.body == b"x"
    if missing == "extensions":
        assert "extensions" not in client.scope


@pytest.mark.parametrize("key", ["client", "server", "extensions"])
async def test_a_scope_may_have_none_where_nothing_is_known(key: str, probe: type[Probe]) -> None:
    agent = probe(request_headers=None, response_body=None)
    client = Client()
    client.scope[key] = None
    await client.call(guarded(App(), AgentConfig("a", agent)))
    assert client.body == b"hello"
    assert client.scope[key] is None


@pytest.mark.parametrize("method", ["get", "PROPFIND", "", "G\u00cbT"])
async def test_any_method_reaches_the_agents_as_it_is(method: str) -> None:
    agent = Probe(request_headers=None)
    await Client(method).call(guarded(App(), AgentConfig("a", agent)))
    assert agent.of("request_headers")[0].method == method


@pytest.mark.parametrize(
    "length",
    [b"9" * 20, b"9" * 5000, b"-1", b"+3", b"3, 3", b"0x3", b"\xb2", b"", b" 3"],
    ids=lambda value: repr(value)[:12],
)
@pytest.mark.parametrize("mode", [BodyMode.BUFFER, STREAM], ids=lambda mode: mode.name)
async def test_a_content_length_that_makes_no_sense_lets_nothing_past_the_agent(length: bytes, mode: BodyMode) -> None:
    app, client = App(), Client("POST", headers=[(b"content-length", length)], body=b"evil")
    agent = Probe(request_body=deny(b"evil"))
    await client.call(guarded(app, AgentConfig("a", agent, request_body_mode=mode)))
    assert client.status in (403, 413)
    assert app.body == b""


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"0"), (b"content-length", b"4")],
        [(b"content-length", b"4"), (b"content-length", b"0")],
        [(b"content-length", b"0"), (b"transfer-encoding", b"chunked")],
        [(b"content-length", b"0")],
        [],
    ],
    ids=["0 and 4", "4 and 0", "0 and chunked", "0", "none"],
)
@pytest.mark.parametrize("mode", [BodyMode.BUFFER, STREAM, BodyMode.hybrid(2)], ids=lambda mode: mode.name)
async def test_a_head_that_denies_its_body_lets_nothing_past_the_agent(
    headers: list[tuple[bytes, bytes]], mode: BodyMode, probe: type[Probe]
) -> None:
    app, client = App(), Client("POST", body=[b"ev", b"il"])
    client.scope["headers"] = headers
    agent = probe(request_body=lambda event: DENIED if event.is_last else None)
    await client.call(guarded(app, AgentConfig("a", agent, request_body_mode=mode)))
    assert client.status == 403
    assert app.body in (b"", b"ev")
    if mode is BodyMode.BUFFER:
        assert app.body == b""


async def test_two_connections_of_one_app_do_not_share_anything() -> None:
    manager = AgentManager([AgentConfig("a", Probe(request_headers=None), max_concurrent_calls=1)])
    middleware = AgentMiddleware(App(), manager=manager)
    first, second = Client(), Client()
    await first.call(middleware)
    await second.call(middleware)
    contexts: list[AgentContext] = [client.scope["state"]["agents"] for client in (first, second)]
    assert contexts[0] is not contexts[1]
    assert contexts[0].correlation_id != contexts[1].correlation_id


async def test_a_middleware_within_another_has_agents_of_its_own(probe: type[Probe]) -> None:
    seen: list[AgentContext] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["state"]["agents"])
        await App()(scope, receive, send)

    agents = [
        probe(
            request_body=None,
            response_body=lambda event: AgentResponse.allow(response_body_mutation=BodyMutation(event.data + b"!")),
        )
        for _ in range(2)
    ]
    inner = guarded(app, AgentConfig("inner", agents[0], body_access="write"))
    outer = guarded(inner, AgentConfig("outer", agents[1], body_access="write"))
    client = Client("POST", body=[b"x"])
    await client.call(outer)
    assert client.body == b"hello!!"
    context: AgentContext = client.scope["state"]["agents"]
    assert context is not seen[0]
    assert [verdict.agent_id for verdict in context.decision.verdicts] == ["outer", "outer"]
    assert [verdict.agent_id for verdict in seen[0].decision.verdicts] == ["inner", "inner"]


async def test_a_disconnect_within_the_body_is_starlettes_to_handle(probe: type[Probe]) -> None:
    async def endpoint(request: Request) -> Response:
        with pytest.raises(ClientDisconnect):
            await request.body()
        return PlainTextResponse("nobody reads this")

    app = Starlette(routes=[AppRoute("/", endpoint, methods=["POST"])])
    client = Client("POST", body=[b"part"], unfinished=True, spec_version="2.3")
    client.leave()
    await client.call(guarded(app, streaming(probe(request_body=None, response_body=None))))
    assert client.messages == []


def _at_most(receive: Receive, times: int) -> Receive:
    """A ``receive`` that fails when it is called more often: a loop over it would never yield."""
    calls = 0

    async def counted() -> Message:
        nonlocal calls
        calls += 1
        assert calls <= times, "it reads on and on"
        return await receive()

    return counted
