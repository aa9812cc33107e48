"""The id that names a connection: whose it is, where it shows, and who finds it."""

import logging
import re
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from fastapi import BackgroundTasks, FastAPI
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route as AppRoute
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentContext,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    ConfigurationError,
    ConfigureEvent,
    CorrelationFilter,
    Encoding,
    GuardrailInspectEvent,
    HeaderOp,
    RequestCompleteEvent,
    RequestHeadersEvent,
    Route,
    StreamTransport,
    WebSocketFrameEvent,
    current_correlation_id,
)
from asgi_agents.observability import correlation
from asgi_agents.observability.correlation import live_ids, outside_name
from asgi_agents.protocol.codec import encode_event
from asgi_agents.serve import agent_app, serve_stream
from tests.support.asgi import App, Client, Held, Probe, SlowProbe, body, guarded, settle, start
from tests.support.servers import serve

# RFC 9562, section 5.7.
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")
DENIED = AgentResponse.block(403, "denied")
DENIAL_EXTENSION: dict[str, Any] = {"websocket.http.response": {}}
HEADER = b"x-request-id"


class Names(Agent):
    """Remembers what it, and the code that runs it, say of the connections that it hears of. Its hook suspends."""

    def __init__(self, answer: AgentResponse | None = None) -> None:
        self.answer = answer
        self.heard: list[RequestHeadersEvent] = []
        self.current: list[str] = []

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        self.heard.append(event)
        self.current.append(current_correlation_id())
        await checkpoint()
        self.current.append(current_correlation_id())
        return self.answer


class NamesAtOnce(Names):
    """The same without suspending, which is taken another way."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        self.heard.append(event)
        self.current += [current_correlation_id()] * 2
        return self.answer


@pytest.fixture(params=[Names, NamesAtOnce], ids=["slow", "prompt"])
def names(request: pytest.FixtureRequest) -> type[Names]:
    kind: type[Names] = request.param
    return kind


class Server:
    """The server's side of a websocket that its client leaves at once."""

    def __init__(self, *headers: tuple[bytes, bytes], extensions: Any = None, frames: int = 0) -> None:
        self.sent: list[Message] = []
        self.scope: Scope = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "headers": list(headers),
            "extensions": extensions or {},
        }
        self._incoming: list[Message] = [{"type": "websocket.connect"}]
        self._incoming += [{"type": "websocket.receive", "text": "x"}] * frames
        self._incoming.append({"type": "websocket.disconnect", "code": 1000})

    async def call(self, app: ASGIApp) -> Any:
        async def receive() -> Message:
            return self._incoming.pop(0)

        async def send(message: Message) -> None:
            self.sent.append(message)

        call: Callable[[Scope, Receive, Send], Awaitable[Any]] = app
        return await call(self.scope, receive, send)

    def exposed(self, index: int = 0) -> list[bytes]:
        """All values of the header in one of the messages."""
        return [value for name, value in self.sent[index].get("headers") or () if name.lower() == HEADER]


def exposed(client: Client, name: bytes = HEADER) -> list[bytes]:
    """All values of a response header."""
    return [value for key, value in client.headers if key.lower() == name]


async def accepting(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept", "headers": [(b"X-Request-ID", b"the app's"), (b"x-other", b"1")]})
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.http.response.start", "status": 429})
    await send({"type": "websocket.http.response.body", "body": b"later"})


# Where it comes from


@pytest.mark.parametrize("given", ["a", "0", "a" * 128, "Root=1-67891233-abcdef", "!#$%&'*+-.^_`|~", "A.b_c-D"])
async def test_a_token_of_the_client_names_the_connection(given: str, names: type[Names]) -> None:
    given = given.replace("=", "-")
    agent = names()
    await Client(headers=[(b"X-Request-Id", given.encode())]).call(guarded(App(), AgentConfig("a", agent)))
    assert agent.heard[0].correlation_id == given


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"a" * 129,
        b"two words",
        b"a\n",
        b"a\r\nx-evil: 1",
        b"a,b",
        b"a;b",
        b'"a"',
        b"a=b",
        "ä".encode("latin-1"),
        "ä".encode(),
        b"\x00",
        b" a",
        b"a ",
        b"a\x0b",
        b"a/b",
        b"{}",
        b"\xb2",
    ],
)
async def test_what_is_no_token_is_replaced_by_a_uuid7(given: bytes) -> None:
    agent = Names()
    await Client(headers=[(HEADER, given)]).call(guarded(App(), AgentConfig("a", agent)))
    assert UUID7.match(agent.heard[0].correlation_id)


async def test_made_ids_are_distinct_and_sort_by_time() -> None:
    agent = Names()
    app = guarded(App(), AgentConfig("a", agent))
    for _ in range(300):
        await Client().call(app)
    made = [event.correlation_id for event in agent.heard]
    assert all(UUID7.match(one) for one in made)
    assert len(set(made)) == 300
    # The first 48 bits are milliseconds.
    assert [one[:13] for one in made] == sorted(one[:13] for one in made)


async def test_a_taken_id_is_replaced_as_long_as_it_is_taken() -> None:
    held = Held()
    agent = SlowProbe(request_headers=held)
    app = guarded(App(), AgentConfig("a", agent))
    clients = [Client(headers=[(HEADER, b"same")]) for _ in range(3)]
    async with anyio.create_task_group() as tasks:
        for client in clients:
            tasks.start_soon(client.call, app)
        await settle()
        ids = [event.correlation_id for event in agent.of("request_headers")]
        held.gate.set()
    assert ids.count("same") == 1
    assert len(set(ids)) == 3
    await Client(headers=[(HEADER, b"same")]).call(app)
    assert agent.of("request_headers")[-1].correlation_id == "same"


@pytest.mark.parametrize("end", ["raises", "cancelled", "denied"])
async def test_an_id_is_free_again_however_the_connection_ended(end: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if end == "raises":
            raise ValueError
        await anyio.sleep_forever()

    agent = Names(DENIED if end == "denied" else None)
    middleware = guarded(app, AgentConfig("a", agent))
    client = Client(headers=[(HEADER, b"same")])
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            with suppress(ValueError):
                await client.call(middleware)

        tasks.start_soon(run)
        await settle()
        tasks.cancel_scope.cancel()
    assert not live_ids


@pytest.mark.parametrize("shared", [True, False])
async def test_open_connections_of_several_middlewares_share_no_id(shared: bool) -> None:
    """Whether these share a manager or not: an agent may be known to several."""
    held = Held()
    agent = SlowProbe(request_headers=held)
    managers = [AgentManager([AgentConfig("a", agent)]) for _ in range(2)]
    apps = [AgentMiddleware(App(), manager=managers[0 if shared else number]) for number in range(2)]
    async with anyio.create_task_group() as tasks:
        for app in apps:
            tasks.start_soon(Client(headers=[(HEADER, b"same")]).call, app)
        await settle()
        ids = [event.correlation_id for event in agent.of("request_headers")]
        held.gate.set()
    assert len(set(ids)) == 2
    assert ids.count("same") == 1


async def test_the_first_of_several_headers_counts() -> None:
    agent = Names()
    await Client(headers=[(HEADER, b"one"), (HEADER, b"two")]).call(guarded(App(), AgentConfig("a", agent)))
    assert agent.heard[0].correlation_id == "one"


@pytest.mark.parametrize("option", ["x-correlation-id", "X-Correlation-ID"])
async def test_the_id_can_be_taken_from_another_header(option: str) -> None:
    agent = Names()
    headers = [(HEADER, b"not this"), (HEADER, b"not-this"), (b"X-Correlation-Id", b"this")]
    await Client(headers=headers).call(guarded(App(), AgentConfig("a", agent), correlation_header=option))
    assert agent.heard[0].correlation_id == "this"


async def test_the_id_can_be_taken_from_no_header_at_all() -> None:
    agent = Names()
    app = guarded(App(), AgentConfig("a", agent), correlation_header=None)
    await Client(headers=[(HEADER, b"the-client's"), (b"", b"empty")]).call(app)
    assert UUID7.match(agent.heard[0].correlation_id)


@pytest.mark.parametrize("name", ["", "two words", "x-id\n", "x\r\ny", "ä", "a:b", b"x-id", 7, True, ["x-id"]])
def test_a_correlation_header_that_is_none_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="AgentMiddleware: correlation_header="):
        guarded(App(), AgentConfig("a", Names()), correlation_header=name)


@pytest.mark.parametrize("name", ["content-length", "Transfer-Encoding", "connection", "sec-websocket-accept"])
def test_a_header_that_belongs_to_the_server_cannot_expose_the_id(name: str) -> None:
    with pytest.raises(ConfigurationError, match="correlation_header"):
        guarded(App(), AgentConfig("a", Names()), correlation_header=name, expose_correlation_id=True)


@pytest.mark.parametrize("value", ["no", 1, None, "x-request-id"])
def test_whether_the_id_is_exposed_is_a_bool(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="expose_correlation_id"):
        guarded(App(), AgentConfig("a", Names()), expose_correlation_id=value)


# The id of the event


@pytest.mark.parametrize(
    ("header", "option", "named"),
    [
        (HEADER, "x-request-id", True),
        (b"X-REQUEST-ID", "x-request-id", True),
        (b"x-other", "x-request-id", False),
        (HEADER, None, False),
        (HEADER, "x-other", False),
        (b"x-other", "X-Other", True),
    ],
)
async def test_the_request_has_an_id_of_its_own_where_the_client_has_named_the_connection(
    header: bytes, option: str | None, named: bool
) -> None:
    agent = Names()
    app = guarded(App(), AgentConfig("a", agent), correlation_header=option)
    await Client(headers=[(header, b"the-client-s")]).call(app)
    metadata = agent.heard[0].metadata
    assert (metadata.correlation_id == "the-client-s") is named
    assert (metadata.request_id != metadata.correlation_id) is named
    assert UUID7.match(metadata.request_id)


async def test_the_handshake_has_ids_as_a_request_has() -> None:
    agent = Names()
    app = guarded(accepting, AgentConfig("a", agent))
    await Server((HEADER, b"the-client-s")).call(app)
    await Server().call(app)
    first, second = (event.metadata for event in agent.heard)
    assert first.correlation_id == "the-client-s" != first.request_id
    assert second.correlation_id == second.request_id


async def test_a_replaced_id_is_the_request_s_too() -> None:
    agent = Names()
    await Client(headers=[(HEADER, b"not a token")]).call(guarded(App(), AgentConfig("a", agent)))
    metadata = agent.heard[0].metadata
    assert metadata.correlation_id == metadata.request_id


# In responses


async def test_the_id_is_in_no_response_unless_asked_for() -> None:
    client, server = Client(headers=[(HEADER, b"the-id")]), Server((HEADER, b"the-id"))
    app = App(start(200, (b"x-a", b"1")), body())
    await client.call(guarded(app, AgentConfig("a", Names())))
    await server.call(guarded(accepting, AgentConfig("a", Names())))
    assert client.headers == [(b"x-a", b"1")]
    assert server.exposed() == [b"the app's"]


@pytest.mark.parametrize("routes", [None, [Route("/elsewhere", ["a"])], [Route("/", [])]])
@pytest.mark.parametrize(
    "headers", [[], [(b"X-Request-ID", b"app's")], [(b"x-request-id", b"1"), (b"X-REQUEST-ID", b"2")]]
)
async def test_the_id_is_in_the_response_once(
    headers: list[tuple[bytes, bytes]], routes: Any, names: type[Names]
) -> None:
    client = Client(headers=[(HEADER, b"the-id")])
    first = start(200, (b"x-a", b"1"), *headers, (b"x-b", b"2"))
    given = list(first["headers"])
    app = guarded(App(first, body(b"x")), AgentConfig("a", names()), routes=routes, expose_correlation_id=True)
    await client.call(app)
    assert client.headers == [(b"x-a", b"1"), (b"x-b", b"2"), (b"x-request-id", b"the-id")]
    assert client.body == b"x"
    assert first["headers"] == given


@pytest.mark.parametrize("headers", [None, (), [[b"x-a", b"1"]], "missing", "read once"])
async def test_headers_of_any_form_take_the_id(headers: Any) -> None:
    message: Message = {"type": "http.response.start", "status": 200}
    if headers == "read once":
        message["headers"] = iter([(b"x-a", b"1")])
    elif headers != "missing":
        message["headers"] = headers
    client = Client(headers=[(HEADER, b"the-id")])
    app = guarded(App(message, body()), AgentConfig("a", Names()), routes=[], expose_correlation_id=True)
    await client.call(app)
    assert exposed(client) == [b"the-id"]


@pytest.mark.parametrize(
    "answer",
    [
        AgentResponse.block(403, "no", headers={"x-request-id": "the agent's"}),
        AgentResponse.block(403, response_headers=[HeaderOp.add("X-Request-Id", "the agent's")]),
        AgentResponse.redirect("/login"),
        AgentResponse.challenge("basic"),
    ],
)
async def test_the_id_is_in_what_agents_answer(answer: AgentResponse, names: type[Names]) -> None:
    client = Client(headers=[(HEADER, b"the-id")])
    await client.call(guarded(App(), AgentConfig("a", names(answer)), expose_correlation_id=True))
    assert exposed(client) == [b"the-id"]


async def test_the_id_is_in_the_reply_to_a_failure() -> None:
    def fails(event: Any) -> AgentResponse:
        raise ValueError

    client = Client(headers=[(HEADER, b"the-id")])
    await client.call(guarded(App(), AgentConfig("a", Probe(request_headers=fails)), expose_correlation_id=True))
    assert client.status == 503
    assert exposed(client) == [b"the-id"]


async def test_the_id_is_in_a_response_that_takes_the_place_of_another() -> None:
    client = Client(headers=[(HEADER, b"the-id")])
    agent = Probe(response_body=AgentResponse.block(502))
    await client.call(guarded(App(), AgentConfig("a", agent), expose_correlation_id=True))
    assert client.status == 502
    assert exposed(client) == [b"the-id"]


async def test_no_agent_can_expose_another_id() -> None:
    client = Client(headers=[(HEADER, b"the-id")])
    ops = [HeaderOp.set("x-request-id", "other"), HeaderOp.add("X-Request-ID", "another")]
    agent = Probe(response_headers=AgentResponse.allow(response_headers=ops))
    await client.call(guarded(App(), AgentConfig("a", agent), expose_correlation_id=True))
    assert exposed(client) == [b"the-id"]


async def test_the_id_is_made_here_where_the_client_has_none() -> None:
    agent, client = Names(), Client()
    await client.call(guarded(App(), AgentConfig("a", agent), expose_correlation_id=True))
    assert exposed(client) == [agent.heard[0].correlation_id.encode()]


@pytest.mark.parametrize(("option", "name"), [("X-Correlation-ID", b"x-correlation-id"), (None, HEADER)])
async def test_the_id_is_exposed_where_it_is_taken_from(option: str | None, name: bytes) -> None:
    client, agent = Client(headers=[(HEADER, b"the-id"), (b"x-correlation-id", b"the-id")]), Names()
    app = App(start(200, (b"x-request-id", b"app"), (b"x-correlation-id", b"app")), body())
    await client.call(guarded(app, AgentConfig("a", agent), correlation_header=option, expose_correlation_id=True))
    assert exposed(client, name) == [agent.heard[0].correlation_id.encode()]
    assert [value for key, value in client.headers if key != name] == [b"app"]


@pytest.mark.parametrize("routes", [None, [Route("/", [])]])
async def test_the_id_is_in_the_answer_to_a_handshake(routes: Any, names: type[Names]) -> None:
    server = Server((HEADER, b"the-id"))
    await server.call(guarded(accepting, AgentConfig("a", names()), routes=routes, expose_correlation_id=True))
    assert server.sent[0]["headers"] == [(b"x-other", b"1"), (b"x-request-id", b"the-id")]


async def test_the_id_is_in_a_handshake_without_headers() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})

    server = Server((HEADER, b"the-id"))
    await server.call(guarded(app, AgentConfig("a", Names()), expose_correlation_id=True))
    assert server.exposed() == [b"the-id"]


async def test_the_id_is_in_denials_of_handshakes() -> None:
    by_agent = Server((HEADER, b"the-id"), extensions=DENIAL_EXTENSION)
    await by_agent.call(guarded(accepting, AgentConfig("a", Names(DENIED)), expose_correlation_id=True))
    by_app = Server((HEADER, b"the-id"), extensions=DENIAL_EXTENSION)
    await by_app.call(guarded(refusing, AgentConfig("a", Names()), expose_correlation_id=True))
    for server in (by_agent, by_app):
        assert server.sent[0]["type"] == "websocket.http.response.start"
        assert server.exposed() == [b"the-id"]
        assert all("headers" not in message for message in server.sent[1:])


async def test_nothing_else_is_touched_by_exposing_the_id() -> None:
    hints: Message = {"type": "http.response.early_hint", "links": [b"</a>"], "headers": []}
    trailers: Message = {"type": "http.response.trailers", "headers": [(b"x-t", b"1")], "more_trailers": False}
    first = {**start(), "trailers": True}
    client = Client(headers=[(HEADER, b"the-id")])
    app = App(hints, first, body(b"x"), trailers)
    await client.call(guarded(app, AgentConfig("a", Names()), expose_correlation_id=True))
    assert client.messages == [hints, {**first, "headers": [(HEADER, b"the-id")]}, body(b"x"), trailers]


async def test_a_route_without_agents_leaves_nothing_behind() -> None:
    app = guarded(App(), AgentConfig("a", Names()), routes=[], expose_correlation_id=True)
    client = Client(headers=[(HEADER, b"the-id")])
    await client.call(app)
    assert not live_ids
    assert current_correlation_id() == ""


async def test_ids_of_agentless_routes_are_unique_as_well() -> None:
    entered = [0]
    gate = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        entered[0] += 1
        await gate.wait()
        await App()(scope, receive, send)

    middleware = guarded(app, AgentConfig("a", Names()), routes=[], expose_correlation_id=True)
    clients = [Client(headers=[(HEADER, b"same")]) for _ in range(2)]
    async with anyio.create_task_group() as tasks:
        for client in clients:
            tasks.start_soon(client.call, middleware)
        await settle()
        gate.set()
    assert entered == [2]
    assert exposed(clients[0]) != exposed(clients[1])


# In code


def saying(seen: list[str], app: ASGIApp | None = None) -> ASGIApp:
    """An app that notes the current id, before and after it has yielded."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(current_correlation_id())
        await checkpoint()
        await (app or App())(scope, receive, send)
        seen.append(current_correlation_id())

    return call


async def test_the_current_id_is_known_to_app_and_agents_and_to_nobody_else(names: type[Names]) -> None:
    seen: list[str] = []
    agent = names()
    assert current_correlation_id() == ""
    await Client(headers=[(HEADER, b"the-id")]).call(guarded(saying(seen), AgentConfig("a", agent)))
    assert seen == ["the-id"] * 2
    assert agent.current == ["the-id"] * 2
    assert current_correlation_id() == ""


async def test_the_current_id_is_known_to_agents_that_are_asked_at_once(names: type[Names]) -> None:
    agents = [names() for _ in range(3)]
    configs = [AgentConfig(str(number), agent) for number, agent in enumerate(agents)]
    await Client(headers=[(HEADER, b"the-id")]).call(guarded(App(), *configs))
    assert [agent.current for agent in agents] == [["the-id"] * 2] * 3


async def test_the_current_id_is_known_to_every_hook() -> None:
    seen: dict[str, str] = {}

    class Everything(Agent):
        async def on_configure(self, event: ConfigureEvent) -> None:
            return None

        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            seen["head"] = current_correlation_id()

        async def on_request_body_chunk(self, event: Any) -> None:
            seen["body"] = current_correlation_id()

        async def on_response_headers(self, event: Any) -> None:
            seen["response head"] = current_correlation_id()

        async def on_response_body_chunk(self, event: Any) -> None:
            seen["response body"] = current_correlation_id()

        async def on_websocket_frame(self, event: WebSocketFrameEvent) -> None:
            seen["frame"] = current_correlation_id()

        async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> None:
            seen["guardrail"] = current_correlation_id()

        async def on_request_complete(self, event: RequestCompleteEvent) -> None:
            seen["complete"] = current_correlation_id()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await accepting(scope, receive, send)
            return
        context: AgentContext = scope["state"]["agents"]
        await context.inspect_guardrail("a", "text", inspection_type="prompt_injection")
        await App()(scope, receive, send)

    middleware = guarded(app, AgentConfig("a", Everything()))
    await Client("POST", headers=[(HEADER, b"the-id")], body=b"x").call(middleware)
    await Server((HEADER, b"the-id"), frames=1).call(middleware)
    assert set(seen.values()) == {"the-id"}
    assert len(seen) == 7


async def test_the_current_id_is_known_to_a_websocket_app() -> None:
    seen: list[str] = []
    middleware = guarded(saying(seen, accepting), AgentConfig("a", Names()))
    await Server((HEADER, b"the-id")).call(middleware)
    assert seen == ["the-id"] * 2
    assert current_correlation_id() == ""


async def test_the_current_id_is_known_in_threads_and_tasks_of_the_app() -> None:
    seen: list[str] = []

    async def task() -> None:
        seen.append(current_correlation_id())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await anyio.to_thread.run_sync(current_correlation_id))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(task)
        await App()(scope, receive, send)

    await Client(headers=[(HEADER, b"the-id")]).call(guarded(app, AgentConfig("a", Names())))
    assert seen == ["the-id"] * 2


def test_the_current_id_is_known_throughout_a_framework(anyio_backend_name: str) -> None:
    seen: dict[str, str] = {}

    def note(where: str) -> None:
        seen[where] = current_correlation_id()

    app = FastAPI()

    @app.get("/sync")
    def sync(tasks: BackgroundTasks) -> str:
        note("handler in a thread")
        tasks.add_task(note, "background task in a thread")
        return ""

    @app.get("/async")
    async def asynchronous(tasks: BackgroundTasks) -> str:
        async def later() -> None:
            await checkpoint()
            note("background task")

        note("handler")
        tasks.add_task(later)
        return ""

    @app.get("/stream")
    def stream() -> StreamingResponse:
        def chunks() -> Iterator[str]:
            note("stream")
            yield "x"

        return StreamingResponse(chunks())

    class Inner(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
            note("middleware")
            return await call_next(request)

    app.add_middleware(Inner)
    app.add_middleware(AgentMiddleware, agents=[AgentConfig("a", Names())], expose_correlation_id=True)
    with TestClient(app, backend=anyio_backend_name) as client:  # type: ignore[arg-type]
        for path in ("/sync", "/async", "/stream"):
            answer = client.get(path, headers={"x-request-id": "the-id"})
            assert answer.headers["x-request-id"] == "the-id"
    assert set(seen) == {
        "handler in a thread",
        "background task in a thread",
        "handler",
        "background task",
        "stream",
        "middleware",
    }
    assert set(seen.values()) == {"the-id"}


@pytest.mark.parametrize("fault", [ValueError, KeyError])
async def test_the_current_id_is_gone_after_an_app_that_raised(fault: type[Exception]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise fault

    with pytest.raises(fault):
        await Client().call(guarded(app, AgentConfig("a", Names())))
    assert current_correlation_id() == ""


def test_the_current_id_is_gone_after_a_connection_that_was_thrown_away(caplog: pytest.LogCaptureFixture) -> None:
    class Suspension:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Suspension()

    middleware = guarded(app, AgentConfig("a", NamesAtOnce()))
    call = Client().call(middleware)
    copy_context().run(call.send, None)
    # From another context than it ran in: nothing to go back to.
    call.close()
    assert current_correlation_id() == ""
    assert not live_ids
    assert [line for line in caplog.records if line.levelno >= logging.INFO and line.name == "asgi_agents"] == []


async def test_an_inner_guarded_app_has_the_outer_id_whatever_header_it_goes_by() -> None:
    within: list[str] = []
    around: list[str] = []
    inner = guarded(saying(within), AgentConfig("inner", Names()), correlation_header="x-inner")
    outer = guarded(saying(around, inner), AgentConfig("outer", Names()))
    await Client(headers=[(HEADER, b"outer"), (b"x-inner", b"inner")]).call(outer)
    assert around == ["outer", "outer"]
    assert within == ["outer", "outer"]
    assert current_correlation_id() == ""


async def test_an_inner_app_without_agents_keeps_the_outer_id() -> None:
    within: list[str] = []
    inner = guarded(saying(within), AgentConfig("inner", Names()), routes=[], correlation_header=None)
    await Client(headers=[(HEADER, b"outer")]).call(guarded(inner, AgentConfig("outer", Names())))
    assert within == ["outer", "outer"]


async def test_concurrent_connections_each_know_their_own_id(names: type[Names]) -> None:
    seen: dict[str, list[str]] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        mine = seen.setdefault(scope["path"], [])
        for _ in range(5):
            mine.append(current_correlation_id())
            await checkpoint()
        mine.append(await anyio.to_thread.run_sync(current_correlation_id))
        await App()(scope, receive, send)

    middleware = guarded(app, AgentConfig("a", names()), AgentConfig("b", names()))
    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(Client(path=f"/{number}", headers=[(HEADER, b"id-%d" % number)]).call, middleware)
    assert seen == {f"/{number}": [f"id-{number}"] * 6 for number in range(10)}


async def test_connections_of_one_task_follow_each_other_cleanly() -> None:
    seen: list[str] = []
    middleware = guarded(saying(seen), AgentConfig("a", Names()))
    for name in (b"one", b"two"):
        await Client(headers=[(HEADER, name)]).call(middleware)
        assert current_correlation_id() == ""
    assert seen == ["one", "one", "two", "two"]


# In agents that are served


def event_of(correlation: str) -> RequestHeadersEvent:
    agent = NamesAtOnce()
    call = Client(headers=[(HEADER, correlation.encode())]).call(guarded(App(), AgentConfig("a", agent)))
    with suppress(StopIteration):
        call.send(None)
    return agent.heard[0]


async def post(app: ASGIApp, correlation: str) -> Client:
    """Hand an event to an agent behind HTTP, in this task."""
    data = encode_event(event_of(correlation), Encoding.JSON)
    client = Client("POST", headers=[(b"content-type", b"application/json")], body=data)
    await client.call(app)
    return client


async def test_an_agent_behind_http_knows_the_id_of_its_event(names: type[Names]) -> None:
    agent = names()
    client = await post(agent_app(agent), "the-event-s")
    assert client.status == 200
    assert agent.current == ["the-event-s"] * 2


async def test_the_id_of_an_event_is_gone_after_it(names: type[Names]) -> None:
    app = agent_app(names())
    await post(app, "the-event-s")
    assert current_correlation_id() == ""


async def test_the_id_of_an_event_does_not_take_the_place_of_the_connection_s(names: type[Names]) -> None:
    # An agent mounted in an app that is guarded itself.
    seen: list[str] = []
    served = agent_app(names())
    guarding = guarded(saying(seen, served), AgentConfig("a", NamesAtOnce()))
    data = encode_event(event_of("the-event-s"), Encoding.JSON)
    headers = [(b"content-type", b"application/json"), (HEADER, b"the-connection-s")]
    await Client("POST", headers=headers, body=data).call(guarding)
    assert seen == ["the-connection-s"] * 2


@pytest.mark.real_time
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_an_agent_behind_a_server_knows_the_id_of_the_connection(names: type[Names], anyio_backend: str) -> None:
    agent = names()
    # Connections to it are kept alive, so that one task may serve them all.
    with serve(agent_app(agent)) as url:
        manager = AgentManager([AgentConfig("a", url, events={"request_headers"}, timeout=30.0)])  # type: ignore[arg-type]
        async with manager:
            middleware = AgentMiddleware(App(), manager=manager)
            for name in (b"one", b"two"):
                client = Client(headers=[(HEADER, name)])
                await client.call(middleware)
                assert client.status == 200
    assert agent.current == [outside_name(name) for name in ("one", "one", "two", "two")]


@pytest.mark.parametrize("framing", ["v2", "envelope"])
async def test_an_agent_behind_a_socket_knows_the_id_of_the_connection(names: type[Names], framing: str) -> None:
    agent = names()
    middleware: AgentMiddleware
    with tempfile.TemporaryDirectory(prefix="agents-") as directory, anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            run = partial(serve_stream, agent, f"unix://{directory}/a.sock", framing=framing)

            async def start_it(*, task_status: Any) -> None:
                await run(task_status=task_status)

            address = await tasks.start(start_it)
            transport = StreamTransport(address, framing=framing)  # type: ignore[arg-type]
            options: dict[str, Any] = {"events": {"request_headers"}}
            async with AgentManager([AgentConfig("a", transport, timeout=10.0, **options)]) as manager:
                middleware = AgentMiddleware(App(), manager=manager)
                async with anyio.create_task_group() as clients:
                    for number in range(8):
                        clients.start_soon(Client(headers=[(HEADER, b"id-%d" % number)]).call, middleware)
            tasks.cancel_scope.cancel()
    assert sorted(agent.current) == sorted([outside_name(f"id-{number}") for number in range(8)] * 2)
    assert [event.correlation_id for event in agent.heard] == agent.current[::2] or names is Names


# In logs


def logged(**attributes: Any) -> logging.LogRecord:
    record = logging.LogRecord("app", logging.INFO, __file__, 1, "hello", (), None)
    vars(record).update(attributes)
    return record


def named(record: logging.LogRecord) -> str:
    assert CorrelationFilter().filter(record) is True
    handler = logging.Formatter("%(correlation_id)s %(message)s")
    name, _, message = handler.format(record).partition(" ")
    assert message == "hello"
    return name


def test_log_records_of_no_connection_have_a_dash() -> None:
    assert named(logged()) == "-"


def test_a_correlation_id_that_a_log_record_has_is_kept() -> None:
    assert named(logged(correlation_id="its-own")) == "its-own"


@pytest.mark.parametrize("nothing", [None, ""])
def test_an_empty_correlation_id_of_a_log_record_is_none(nothing: Any) -> None:
    assert named(logged(correlation_id=nothing)) == "-"


async def test_log_records_have_the_id_of_their_connection() -> None:
    lines: list[str] = []
    application = logging.getLogger("tests.correlation")

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Lines()
    handler.setFormatter(logging.Formatter("%(correlation_id)s %(message)s"))
    handler.addFilter(CorrelationFilter())
    application.addHandler(handler)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        application.warning("in the app")
        await anyio.to_thread.run_sync(application.warning, "in a thread")
        await App()(scope, receive, send)

    class Logs(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            application.warning("in an agent")

    try:
        application.warning("before")
        await Client(headers=[(HEADER, b"the-id")]).call(guarded(app, AgentConfig("a", Logs())))
        application.warning("after")
    finally:
        application.removeHandler(handler)
    assert lines == ["- before", "the-id in an agent", "the-id in the app", "the-id in a thread", "- after"]


async def test_what_is_said_of_a_failing_agent_has_the_id_of_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    def fails(event: Any) -> AgentResponse:
        raise ValueError

    caplog.handler.addFilter(CorrelationFilter())
    await Client(headers=[(HEADER, b"the-id")]).call(guarded(App(), AgentConfig("a", Probe(request_headers=fails))))
    lines = [line for line in caplog.records if line.name == "asgi_agents"]
    assert lines
    assert {line.correlation_id for line in lines} == {"the-id"}  # type: ignore[attr-defined]


def test_an_app_on_starlette_needs_nothing_else(anyio_backend_name: str) -> None:
    def name(request: Request) -> Response:
        return PlainTextResponse(current_correlation_id())

    app = guarded(Starlette(routes=[AppRoute("/", name)]), AgentConfig("a", Names()), expose_correlation_id=True)
    client = TestClient(app, backend=anyio_backend_name)  # type: ignore[arg-type]
    answer = client.get("/")
    assert UUID7.match(answer.text)
    assert answer.headers["x-request-id"] == answer.text


async def test_an_id_that_an_earlier_request_has_left_behind_is_not_that_of_an_unguarded_one() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(current_correlation_id())
        await App()(scope, receive, send)

    middleware = guarded(app, AgentConfig("a", Probe(request_headers=None)), routes=[Route("/free", [])])
    # As if a server had run this in the context of another request (uvicorn#2167).
    token = correlation.set_current("left-behind")
    try:
        await Client(path="/free").call(middleware)
        assert current_correlation_id() == "left-behind"
    finally:
        correlation.reset_current(token)
    assert seen == [""]


# Asked for late, and from anywhere


async def test_an_id_that_is_asked_for_after_the_end_is_nobodys() -> None:
    contexts: list[AgentContext] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        contexts.append(scope["state"]["agents"])

    class Frames(Agent):
        async def on_websocket_frame(self, event: WebSocketFrameEvent) -> None:
            pass

    middleware = guarded(app, AgentConfig("a", Frames()))
    await Client().call(middleware)
    assert contexts[0].correlation_id == contexts[0].correlation_id
    assert not live_ids


async def test_threads_that_ask_at_the_same_time_hear_the_same_id() -> None:
    found: list[set[str]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        start = threading.Barrier(2)

        def ask() -> str:
            start.wait(60)
            return current_correlation_id()

        with ThreadPoolExecutor(2) as threads:
            asking = [threads.submit(copy_context().run, ask) for _ in range(2)]
            found.append({future.result() for future in asking})

    class Frames(Agent):
        async def on_websocket_frame(self, event: WebSocketFrameEvent) -> None:
            pass

    middleware = guarded(app, AgentConfig("a", Frames()))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(50):
            await Client().call(middleware)
    finally:
        sys.setswitchinterval(interval)
    assert [len(ids) for ids in found] == [1] * 50
    assert not live_ids
