"""The table of failures in the documentation says what a guarded app answers to each of them."""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    BodyMode,
    BreakerState,
    CircuitBreakerConfig,
    EventType,
    FailureKind,
    FailureMode,
    RequestBodyChunkEvent,
    ResponseBodyChunkEvent,
    StreamTransport,
    WebSocketFrameEvent,
)
from asgi_agents.failures import RULES
from asgi_agents.protocol.stream import HealthState

from .transports.stream.peer import Peer, Received

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")))
COLUMNS: Final = (
    "what went wrong",
    "`error.type`",
    "counts for the breaker",
    "fail-closed, http",
    "fail-closed, websocket",
    "fail-open",
)
#: Long enough that a deadline which has to be met is met on any machine.
PATIENCE: Final = 60.0


@dataclass(frozen=True)
class Row:
    """What the documentation says of one kind of failure. ``close`` is None where websockets have no such failure."""

    kind: FailureKind
    counts: bool
    status: int
    message: str
    retry_after: bool
    close: tuple[int, str] | None


def rows(text: str) -> list[Row]:
    """The rows of the table in a page; empty where it is on another one."""
    lines = text.splitlines()
    heads = [at for at, line in enumerate(lines) if tuple(_cells(line)) == COLUMNS]
    if not heads:
        return []
    (head,) = heads
    found: list[Row] = []
    for line in lines[head + 2 :]:
        if not line.startswith("|"):
            break
        found.append(_row(*_cells(line)))
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def _row(what: str, kind: str, counts: str, http: str, websocket: str, fail_open: str) -> Row:
    assert what
    assert re.match(r"(yes|no)\b", counts)
    assert fail_open.startswith("go on")
    reply = re.match(r"(\d{3}) `([^`]+)`", http)
    assert reply is not None, http
    close = re.fullmatch(r"close (\d{4}) `([^`]+)`", websocket)
    assert close is not None or not websocket, websocket
    return Row(
        kind=FailureKind(kind.strip("`")),
        counts=counts.startswith("yes"),
        status=int(reply[1]),
        message=reply[2],
        retry_after="`retry-after`" in http,
        close=None if close is None else (int(close[1]), close[2]),
    )


#: The rows of each page that has the table.
TABLES: Final = {page: found for page in PAGES if (found := rows(page.read_text()))}
TABLE: Final = {row.kind: row for found in TABLES.values() for row in found}


# The app answers to whatever it is sent with this.
ANSWER: Final = b"the app's answer"
SENT: Final = b"what the client sends"
HELD: Final = "text/held"


async def _answer(request: Request) -> Response:
    await request.body()
    return Response(ANSWER, media_type="text/plain")


async def _answer_encoded(request: Request) -> Response:
    await request.body()
    return Response(ANSWER, media_type="text/plain", headers={"content-encoding": "of-its-own"})


async def _answer_held(request: Request) -> Response:
    return Response(ANSWER, media_type=HELD)


async def _echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


APP: Final = Starlette(
    routes=[
        Route("/", _answer, methods=["POST"]),
        Route("/encoded", _answer_encoded, methods=["POST"]),
        Route("/held", _answer_held),
        WebSocketRoute("/", _echo),
    ]
)


class Raising(Agent):
    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
        raise RuntimeError("broken")

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> None:
        raise RuntimeError("broken")


class Silent(Agent):
    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
        await anyio.sleep_forever()

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> None:
        await anyio.sleep_forever()


class Holding(Agent):
    """Keeps its only permit while it is shown a response, until it is released."""

    def __init__(self) -> None:
        self.holds = threading.Event()
        self.release = threading.Event()

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> None:
        self.holds.set()
        while not self.release.is_set():  # noqa: ASYNC110 - another thread sets it
            await anyio.sleep(0.01)

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
        pass

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> None:
        pass


class ReadsRequests(Agent):
    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
        pass


class ReadsResponses(Agent):
    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> None:
        pass


class AnswersToAHead(Agent):
    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
        return AgentResponse.allow(skip_body=True)

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse:
        return AgentResponse.allow(skip_body=True)


class Served:
    """An agent in another process, which says that it is unhealthy before it answers to the head of a request."""

    def __init__(self) -> None:
        self.peer = Peer(behaviour=self._behave)

    async def _behave(self, event: Received) -> None:
        await event.link.say(HealthState.UNHEALTHY)
        await event.answer()


@contextmanager
def _failed_before(client: TestClient, agent: Any) -> Iterator[None]:
    client.post("/", content=SENT)
    yield


@contextmanager
def _held(client: TestClient, agent: Holding) -> Iterator[None]:
    def hold() -> None:
        assert client.get("/held").content == ANSWER

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert agent.holds.wait(PATIENCE)
        yield
    finally:
        agent.release.set()
        holder.join()


def _nothing_before(client: TestClient, agent: Any) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Fault:
    """How a failure is brought about.

    :param agent: makes the agent.
    :param options: of its configuration.
    :param path: of the request in which it fails, and ``headers`` those of that.
    :param before: what goes on around that request.
    """

    agent: Callable[[], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    path: str = "/"
    headers: Mapping[str, str] = field(default_factory=dict)
    before: Callable[[TestClient, Any], AbstractContextManager[None]] = _nothing_before


FAULTS: Final[Mapping[FailureKind, Fault]] = {
    FailureKind.BREAKER_OPEN: Fault(Raising, before=_failed_before),
    FailureKind.QUEUE_TIMEOUT: Fault(
        Holding,
        # A response that streams is held under a deadline of its own.
        {
            "timeout": 0.05,
            "max_concurrent_calls": 1,
            "response_body_mode": BodyMode.STREAM,
            "response_content_types": {HELD},
        },
        before=_held,
    ),
    FailureKind.UNAVAILABLE: Fault(
        Served,
        {"events": {EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK, EventType.WEBSOCKET_FRAME}},
    ),
    FailureKind.ERROR: Fault(Raising),
    FailureKind.TIMEOUT: Fault(Silent, {"timeout": 0.05}),
    FailureKind.REQUEST_TOO_LARGE: Fault(ReadsRequests, {"max_request_body_bytes": 1}),
    FailureKind.RESPONSE_TOO_LARGE: Fault(ReadsResponses, {"max_response_body_bytes": 1}),
    FailureKind.REQUEST_UNREADABLE: Fault(
        ReadsRequests, {"body_access": "write"}, headers={"content-encoding": "of-its-own"}
    ),
    FailureKind.RESPONSE_UNREADABLE: Fault(ReadsResponses, {"body_access": "write"}, path="/encoded"),
    FailureKind.NOT_APPLICABLE: Fault(AnswersToAHead),
}


class Setting:
    """A guarded app whose agent fails, and a client of it."""

    def __init__(self, fault: Fault, mode: FailureMode, backend: Any) -> None:
        self._fault = fault
        self._agent = fault.agent()
        options = {"timeout": PATIENCE, "chunk_timeout": PATIENCE, **fault.options}
        transport: Any = self._agent
        if isinstance(self._agent, Served):
            transport = StreamTransport(self._agent.peer.url, connections=1, drain_timeout=0.01)
        breaker = CircuitBreakerConfig(failure_threshold=1, reset_timeout=PATIENCE)
        config = AgentConfig("agent", transport, failure_mode=mode, circuit_breaker=breaker, **options)
        self.manager = AgentManager([config])
        self._app: ASGIApp = AgentMiddleware(APP, manager=self.manager)
        self._client = TestClient(self._run, backend=backend)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" and isinstance(self._agent, Served):
            async with self._agent.peer.listening():
                await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    @contextmanager
    def client(self) -> Iterator[TestClient]:
        """While all that goes before has happened."""
        with self._client, self._fault.before(self._client, self._agent):
            yield self._client

    def failed_with(self, kind: FailureKind) -> bool:
        """Whether a call has come to this."""
        return kind.value in self.manager.metrics["agent"].outcomes


@pytest.fixture
def setting(request: pytest.FixtureRequest, anyio_backend: str) -> Setting:
    kind, mode = request.param
    return Setting(FAULTS[kind], mode, anyio_backend)


def settings(mode: FailureMode, *, websocket: bool) -> pytest.MarkDecorator:
    kinds = [kind for kind in FailureKind if not websocket or _on_websockets(kind)]
    return pytest.mark.parametrize(
        ("setting", "kind"), [((kind, mode), kind) for kind in kinds], indirect=["setting"], ids=kinds
    )


def _on_websockets(kind: FailureKind) -> bool:
    return FAULTS[kind].agent not in {ReadsRequests, ReadsResponses}


def test_the_documentation_has_every_kind_once_wherever_it_has_the_table() -> None:
    assert TABLES
    for page, found in TABLES.items():
        assert sorted(row.kind for row in found) == sorted(FailureKind), page
        assert found == [TABLE[row.kind] for row in found], page


def test_a_table_is_read_as_it_is_written() -> None:
    text = f"""
| {" | ".join(COLUMNS)} |
| --- | --- | --- | --- | --- | --- |
| it has raised | `error` | yes, unless it is shown less | 503 `Broken`, or cut off | close 1011 `Oh` | go on |
| too often | `breaker_open` | no | 429 `Wait`, `retry-after` | | go on |

| another | table |
"""
    assert rows(text) == [
        Row(FailureKind.ERROR, True, 503, "Broken", False, (1011, "Oh")),
        Row(FailureKind.BREAKER_OPEN, False, 429, "Wait", True, None),
    ]
    assert rows("no table") == []


@pytest.mark.parametrize("kind", FailureKind)
def test_the_rules_are_those_of_the_table(kind: FailureKind) -> None:
    rule, row = RULES[kind], TABLE[kind]
    assert (rule.status, rule.message, rule.counts_for_breaker) == (row.status, row.message, row.counts)
    assert row.close is None or row.close == (1011, rule.close_reason)


@settings(FailureMode.CLOSED, websocket=False)
def test_a_request_is_answered_as_the_table_says(setting: Setting, kind: FailureKind) -> None:
    fault, row = FAULTS[kind], TABLE[kind]
    with setting.client() as client:
        response = client.post(fault.path, content=SENT, headers=fault.headers)
        breaker = setting.manager.statistics()["agent"].breaker
    assert setting.failed_with(kind)
    assert (response.status_code, response.text) == (row.status, row.message)
    assert ("retry-after" in response.headers) is row.retry_after
    # That which is open already counts no more.
    if kind is not FailureKind.BREAKER_OPEN:
        assert breaker is (BreakerState.OPEN if row.counts else BreakerState.CLOSED)


@settings(FailureMode.CLOSED, websocket=True)
def test_a_websocket_is_closed_as_the_table_says(setting: Setting, kind: FailureKind) -> None:
    with setting.client() as client, client.websocket_connect("/") as websocket:
        websocket.send_text("hello")
        with pytest.raises(WebSocketDisconnect) as closed:
            websocket.receive_text()
    assert setting.failed_with(kind)
    assert (closed.value.code, closed.value.reason) == TABLE[kind].close


def test_the_table_leaves_websockets_blank_where_they_have_no_such_failure() -> None:
    assert {kind for kind, row in TABLE.items() if row.close is None} == {
        kind for kind in FailureKind if not _on_websockets(kind)
    }


@settings(FailureMode.OPEN, websocket=False)
def test_a_request_goes_on_where_the_agent_fails_open(setting: Setting, kind: FailureKind) -> None:
    fault = FAULTS[kind]
    with setting.client() as client:
        response = client.post(fault.path, content=SENT, headers=fault.headers)
    assert setting.failed_with(kind)
    assert (response.status_code, response.content) == (200, ANSWER)


@settings(FailureMode.OPEN, websocket=True)
def test_a_message_goes_on_where_the_agent_fails_open(setting: Setting, kind: FailureKind) -> None:
    with setting.client() as client, client.websocket_connect("/") as websocket:
        websocket.send_text("hello")
        assert websocket.receive_text() == "hello"
    assert setting.failed_with(kind)
