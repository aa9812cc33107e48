"""An app that an agent stops while it runs ends as it would have ended over a client that left."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import chain, repeat
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route as AppRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_agents import (
    AgentConfig,
    AgentMiddleware,
    AgentResponse,
    BodyMode,
    ConfigurationError,
    ResponseAborted,
    protect,
)
from tests.support.asgi import (
    DISCONNECT,
    VIRTUAL_TIME,
    Answer,
    Client,
    Probe,
    assert_nothing_left,
    body,
    guarded,
    start,
)

STREAM = BodyMode.STREAM
DENIED = AgentResponse.block(403, "denied")
EVIL = b"evil\n\n"
SSE = (b"content-type", b"text/event-stream")


def deny_evil(event: Any) -> Answer:
    return DENIED if EVIL in event.data else None


def fail_at_evil(event: Any) -> Answer:
    if EVIL in event.data:
        raise ValueError("the agent's own")
    return None


class LeavingClient(Client):
    """Leaves with the message that has something evil in it, whoever sends that."""

    async def receive(self) -> Message:
        message = await super().receive()
        if EVIL in message.get("body", b""):
            self.leave()
        return DISCONNECT if self.gone else message

    async def send(self, message: Message) -> None:
        if EVIL in message.get("body", b""):
            self.leave()
        if self.gone:
            # As no server does, but an app that never suspends must come to an end.
            await checkpoint()
        await super().send(message)


class Log(list[str]):
    """What an app saw, in each of its tasks."""

    async def receive(self, receive: Receive) -> Message:
        try:
            message = await receive()
        except Exception as exc:
            self.append(f"receive raised {_named(exc)}")
            raise
        self.append(f"received {message['type']}")
        return message

    async def send(self, send: Send, message: Message) -> None:
        try:
            await send(message)
        except Exception as exc:
            self.append(f"send raised {_named(exc)}")
            raise

    def app(self, app: Callable[[Scope, Receive, Send], Any]) -> ASGIApp:
        """``app``, with a word on how it ended."""

        async def logged(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, partial(self.receive, receive), partial(self.send, send))
            except BaseException as exc:
                self.append(f"the app raised {_named(exc)}")
                raise
            self.append("the app returned")

        return logged


def _named(exc: BaseException) -> str:
    if isinstance(exc, BaseExceptionGroup):
        return "+".join(_named(inner) for inner in exc.exceptions)
    return "OSError" if isinstance(exc, OSError) else type(exc).__name__


PIECES = (b"good\n\n", EVIL, *[b"more\n\n"] * 5)


class Pieces:
    """Not a generator, which nobody would close but the garbage collector, whenever that comes by."""

    def __init__(self, pieces: Iterable[bytes], *, pause: float = 0.0) -> None:
        self._pieces = iter(pieces)
        self._pause = pause

    def __aiter__(self) -> "Pieces":
        return self

    async def __anext__(self) -> bytes:
        if self._pause:
            await anyio.sleep(self._pause)
        try:
            return next(self._pieces)
        except StopIteration:
            raise StopAsyncIteration from None


def _stream(log: Log, scope: Scope, pieces: Pieces) -> Response:
    async def afterwards() -> None:
        await anyio.sleep(0.01)
        log.append("the background task ended")

    return StreamingResponse(pieces, media_type=scope["media_type"], background=BackgroundTask(afterwards))


async def streams(log: Log, scope: Scope, receive: Receive, send: Send) -> None:
    await _stream(log, scope, Pieces(PIECES, pause=0.001))(scope, receive, send)


async def streams_from_memory(log: Log, scope: Scope, receive: Receive, send: Send) -> None:
    await _stream(log, scope, Pieces(chain(PIECES, repeat(b"more\n\n"))))(scope, receive, send)


def _starlette(log: Log, *middleware: Middleware) -> Starlette:
    async def download(request: Request) -> Response:
        return _stream(log, request.scope, Pieces(PIECES, pause=0.001))

    async def upload(request: Request) -> Response:
        try:
            async for _ in request.stream():
                pass
        finally:
            log.append("the handler ended")
        return PlainTextResponse("received")

    return Starlette(
        routes=[AppRoute("/", download), AppRoute("/", upload, methods=["POST"])], middleware=list(middleware)
    )


class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


async def within_starlette(log: Log, scope: Scope, receive: Receive, send: Send) -> None:
    await _starlette(log)(scope, receive, send)


async def within_a_base_http_middleware(log: Log, scope: Scope, receive: Receive, send: Send) -> None:
    await _starlette(log, Middleware(Passing))(scope, receive, send)


async def only_receives(log: Log, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["method"] == "GET":
        with suppress(OSError):
            await _send_head_and_pieces(scope, send)
    while (await receive())["type"] != "http.disconnect":
        pass
    # Again and again.
    await receive()
    await receive()


async def _send_head_and_pieces(scope: Scope, send: Send) -> None:
    await send(start(200, (b"content-type", scope["media_type"].encode())))
    for piece in PIECES:
        await send(body(piece, more=True))


async def only_sends(log: Log, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["method"] == "POST":
        await receive()
        await receive()
    with suppress(OSError):
        await _send_head_and_pieces(scope, send)
    await send(body(b"end"))


async def does_neither(log: Log, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["method"] == "POST":
        await receive()
        await receive()
    else:
        await send(start(200, (b"content-type", scope["media_type"].encode())))
        with suppress(OSError):
            await send(body(EVIL, more=True))
    await anyio.sleep(0.05)


async def in_a_task_group(log: Log, scope: Scope, receive: Receive, send: Send) -> None:
    listening = anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def listen() -> None:
            while (await receive())["type"] != "http.disconnect":
                listening.set()
            tasks.cancel_scope.cancel()

        tasks.start_soon(listen)
        try:
            await listening.wait()
            await checkpoint()
            if scope["method"] == "GET":
                with suppress(OSError):
                    await _send_head_and_pieces(scope, send)
            await anyio.sleep_forever()
        finally:
            log.append("the handler ended")


async def in_tasks_of_its_own(log: Log, scope: Scope, receive: Receive, send: Send) -> None:
    """As Django and Quart do it: whichever of the two ends first ends the other."""

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def pieces() -> AsyncIterator[bytes]:
        try:
            for piece in PIECES:
                yield piece
                await asyncio.sleep(0.001)
            await asyncio.sleep(3600)
        finally:
            log.append("the generator ended")

    async def handle() -> None:
        if scope["method"] == "POST":
            await asyncio.sleep(3600)
        await send(start(200, (b"content-type", scope["media_type"].encode())))
        generator = pieces()
        try:
            async for piece in generator:
                await send(body(piece, more=True))
        finally:
            await generator.aclose()  # type: ignore[attr-defined]

    tasks = [asyncio.ensure_future(listen()), asyncio.ensure_future(handle())]
    _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        log.append(f"a task ended with {_named(outcome) if isinstance(outcome, BaseException) else outcome}")


APPS = [
    streams,
    streams_from_memory,
    within_starlette,
    within_a_base_http_middleware,
    only_receives,
    only_sends,
    does_neither,
    in_a_task_group,
    in_tasks_of_its_own,
]
UPLOADERS = [app for app in APPS if app not in (streams, streams_from_memory)]
STOPS = [(app, "text/plain", "GET") for app in APPS]
STOPS += [(app, "text/event-stream", "GET") for app in APPS]
STOPS += [(app, "text/plain", "POST") for app in UPLOADERS]


def _client(kind: type[Client], method: str, media_type: str, spec_version: str) -> Client:
    given: dict[str, Any] = {"body": [b"good", EVIL, b"rest"]} if method == "POST" else {}
    client = kind(method, spec_version=spec_version, **given)
    client.scope["media_type"] = media_type
    return client


@pytest.mark.parametrize("media_type", ["text/plain", "text/event-stream"])
async def test_a_generator_that_waits_ends_with_its_stream_and_not_with_the_next_garbage_collection(
    media_type: str, probe: type[Probe]
) -> None:
    ended = False

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal ended
        try:
            for piece in PIECES:
                yield piece
                await anyio.sleep(0.01)
        finally:
            ended = True

    agent = AgentConfig("a", probe(response_body=deny_evil), response_body_mode=STREAM)
    client = Client(spec_version="2.3")
    gc.collect()
    gc.disable()
    try:
        with suppress(ResponseAborted):
            await client.call(guarded(StreamingResponse(pieces(), media_type=media_type), agent))
        assert ended
    finally:
        gc.enable()


# Starlette leaves generators of its own to the garbage collector, which trio minds.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
@pytest.mark.parametrize("reaction", [deny_evil, fail_at_evil])
@pytest.mark.parametrize(("app", "media_type", "method"), STOPS, ids=lambda value: getattr(value, "__name__", value))
async def test_an_app_that_is_stopped_sees_what_it_sees_of_a_client_that_leaves(
    app: Callable[..., Any],
    media_type: str,
    method: str,
    reaction: Callable[[Any], Answer],
    spec_version: str,
    probe: type[Probe],
    anyio_backend_name: str,
) -> None:
    if app is in_tasks_of_its_own and anyio_backend_name == "trio":
        pytest.skip("trio has no tasks without a parent")
    left, stopped = Log(), Log()
    client = _client(LeavingClient, method, media_type, spec_version)
    with anyio.fail_after(5), suppress(Exception):
        await client.call(left.app(partial(app, left)))

    event = "request_body" if method == "POST" else "response_body"
    agent = AgentConfig("a", probe(**{event: reaction}), request_body_mode=STREAM, response_body_mode=STREAM)
    client = _client(Client, method, media_type, spec_version)
    middleware = guarded(stopped.app(partial(app, stopped)), agent, stop_grace=60)
    error: Exception | None = None
    with anyio.fail_after(5):
        try:
            await client.call(middleware)
        except Exception as exc:
            error = exc
    if app is in_a_task_group:
        # Which of its tasks notices first is nobody's promise.
        left, stopped = ([entry for entry in log if not entry.startswith("send")] for log in (left, stopped))  # type: ignore[assignment]
    assert sorted(stopped) == sorted(left)
    assert isinstance(error, ResponseAborted) is (not client.complete), error
    assert isinstance(error, ResponseAborted) or error is None
    assert_nothing_left(middleware.manager)


# What does not listen

virtual_time = pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], ids=["virtual time"])


def _stopper(**reactions: Any) -> AgentConfig:
    reactions = reactions or {"response_body": deny_evil}
    return AgentConfig("a", Probe(**reactions), request_body_mode=STREAM, response_body_mode=STREAM)


class Deaf:
    """Streams something evil, and then neither receives nor sends."""

    def __init__(self, media_type: bytes = b"text/plain", *, tells: bool = False) -> None:
        self.media_type = media_type
        self.tells = tells
        self.ended_at: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"content-type", self.media_type)))
        try:
            with suppress(OSError):
                await send(body(EVIL, more=True))
            if self.tells:
                assert await receive() == DISCONNECT
            await anyio.sleep(100)
        finally:
            self.ended_at = anyio.current_time()


@virtual_time
@pytest.mark.parametrize("grace", [0, 0.5, 1.0])
async def test_an_app_that_notices_nothing_is_cancelled_after_the_grace(grace: float, anyio_backend: object) -> None:
    app, client, began = Deaf(SSE[1]), Client(spec_version="2.3"), anyio.current_time()
    await client.call(guarded(app, _stopper(), stop_grace=grace))
    assert app.ended_at == pytest.approx(began + grace)
    assert client.complete


@virtual_time
async def test_an_app_that_has_noticed_may_take_its_time(anyio_backend: object) -> None:
    for app, spec_version in ((Deaf(SSE[1], tells=True), "2.3"), (Deaf(SSE[1]), "2.4")):
        began = anyio.current_time()
        await Client(spec_version=spec_version).call(guarded(app, _stopper()))
        assert app.ended_at == pytest.approx(began + 100)


@virtual_time
async def test_a_client_waits_for_its_connection_to_break_off_no_longer_than_the_grace(anyio_backend: object) -> None:
    """Servers break it off when the app has ended."""
    for app, spec_version in ((Deaf(tells=True), "2.3"), (Deaf(), "2.4"), (Deaf(), "2.3")):
        began = anyio.current_time()
        with pytest.raises(ResponseAborted):
            await Client(spec_version=spec_version).call(guarded(app, _stopper()))
        assert anyio.current_time() == app.ended_at == pytest.approx(began + 1)


@virtual_time
async def test_no_client_waits_for_the_grace(anyio_backend: object) -> None:
    client, app = Client("POST", body=[EVIL], unfinished=True, spec_version="2.3"), Log()

    async def reads_aside(scope: Scope, receive: Receive, send: Send) -> None:
        with anyio.move_on_after(0):
            await receive()
        await anyio.sleep(100)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, guarded(app.app(reads_aside), _stopper(request_body=deny_evil)))
        await anyio.sleep(0.5)
        assert (client.status, client.complete) == (403, True)
        await anyio.sleep(1)
    assert client.body == b"denied"


# Time has to pass although it never waits.
@pytest.mark.real_time
@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
@pytest.mark.parametrize("media_type", [b"text/plain", SSE[1]])
async def test_an_app_that_sends_without_end_lets_others_run_and_is_ended(media_type: bytes, spec_version: str) -> None:
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send(start(200, (b"content-type", media_type)))
        await send(body(EVIL, more=True))
        while True:
            await send(body(b"more\n\n", more=True))
            sent += 1

    with anyio.fail_after(60), suppress(ResponseAborted):
        await Client(spec_version=spec_version).call(guarded(app, _stopper(), stop_grace=0.05))
    assert sent < 50_000


@pytest.mark.real_time
async def test_an_app_that_streams_on_without_end_after_its_response_was_replaced_is_ended() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        while True:
            await send(body(b"more\n\n", more=True))

    client = Client(spec_version="2.3")
    with anyio.fail_after(60):
        await client.call(guarded(app, _stopper(response_headers=DENIED), stop_grace=0.05))
    assert (client.status, client.body) == (403, b"denied")


@virtual_time
@pytest.mark.parametrize("pieces", [0, 3])
async def test_what_follows_a_response_that_was_replaced_runs_to_its_end(pieces: int, anyio_backend: object) -> None:
    done = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal done
        await send(start())
        for _ in range(pieces):
            await send(body(b"more\n\n", more=True))
        await send(body(b"end"))
        await anyio.sleep(100)
        done = True

    await Client(spec_version="2.3").call(guarded(app, _stopper(response_headers=DENIED)))
    assert done


@virtual_time
async def test_the_grace_ends_with_the_app(anyio_backend: object) -> None:
    """Nothing of it is left to cancel what comes around the app."""
    began = anyio.current_time()

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ResponseAborted):
            await guarded(Deaf(tells=False), _stopper(), stop_grace=1)(scope, receive, send)
        await anyio.sleep(10)

    await Client(spec_version="2.3").call(outer)
    assert anyio.current_time() == pytest.approx(began + 11)


@pytest.mark.parametrize("value", [-1, True, "1", None, float("nan"), float("inf")])
def test_a_grace_is_a_number_of_seconds(value: Any, anyio_backend: str) -> None:
    for make in (partial(AgentMiddleware, Starlette()), partial(protect, Starlette())):
        with pytest.raises(ConfigurationError, match=r"stop_grace=.*, expected a number of seconds from 0 to"):
            make(agents=[], stop_grace=value)
