"""IpBan in front of apps and of a real server, beside other agents."""

import logging
from contextlib import suppress
from typing import Any

import anyio
import httpx
import pytest
from anyio.lowlevel import checkpoint
from fastapi import FastAPI, HTTPException, WebSocket
from fastapi.testclient import TestClient
from starlette.responses import JSONResponse
from starlette.testclient import WebSocketDenialResponse
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentMiddleware,
    AgentResponse,
    AuditRecord,
    RequestHeadersEvent,
    protect,
)
from asgi_agents.agents import ApiKey, IpBan, IpFilter, RateLimit
from tests.support.asgi import App, Client
from tests.support.servers import serve


def guarded(*agents: AgentConfig, **options: Any) -> FastAPI:
    app = FastAPI()

    @app.get("/")
    async def hello() -> str:
        return "hello"

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418)

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError

    @app.websocket("/ws")
    async def accept(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    @app.websocket("/refused")
    async def refuse(websocket: WebSocket) -> None:
        await websocket.close()

    protect(app, agents=agents, **options)
    return app


def client_of(*agents: AgentConfig, ip: str = "192.0.2.7", **options: Any) -> TestClient:
    return TestClient(guarded(*agents, **options), client=(ip, 50000), raise_server_exceptions=False)


@pytest.mark.parametrize(("path", "status"), [("/missing", 404), ("/teapot", 418), ("/broken", 500)])
def test_what_the_app_answers_counts(path: str, status: int) -> None:
    client = client_of(AgentConfig("ban", IpBan(after=2, statuses=[status])))
    assert [client.get(path).status_code for _ in range(3)] == [status, status, 403]
    answer = client.get("/")
    assert (answer.status_code, answer.headers["retry-after"]) == (403, "600")


@pytest.mark.parametrize(
    ("agent", "statuses"),
    [
        (ApiKey({"s3cret": "alice"}), [401, 401, 403]),
        (RateLimit("1/hour"), [200, 429, 429, 403]),
        (IpFilter(deny=["192.0.2.0/24"]), [403, 403, 403]),
    ],
)
def test_what_another_agent_denies_counts(agent: Any, statuses: list[int]) -> None:
    client = client_of(AgentConfig("ban", IpBan(after=2)), AgentConfig("other", agent))
    answers = [client.get("/") for _ in range(len(statuses))]
    assert [answer.status_code for answer in answers] == statuses
    assert "retry-after" in answers[-1].headers


def test_what_the_agent_was_not_asked_about_does_not_count() -> None:
    client = client_of(AgentConfig("other", ApiKey({"s3cret": "alice"})), AgentConfig("ban", IpBan(after=1)))
    assert [client.get("/").status_code for _ in range(3)] == [401] * 3
    assert client.get("/", headers={"x-api-key": "s3cret"}).status_code == 200


def test_handshakes_that_are_denied_count_and_are_refused() -> None:
    client = client_of(AgentConfig("ban", IpBan(after=2)))
    for _ in range(3):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws"):
            raise WebSocketDisconnect
    for _ in range(2):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/refused"):
            pass
    with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect("/ws"):
        pass
    assert (denied.value.status_code, denied.value.headers["retry-after"]) == (403, "600")


def test_a_response_with_which_the_app_denies_a_handshake_counts_and_is_kept_from_who_is_banned() -> None:
    app = FastAPI()

    @app.websocket("/ws")
    async def refuse(websocket: WebSocket) -> None:
        await websocket.send_denial_response(JSONResponse("no", 401))

    protect(app, agents=[AgentConfig("ban", IpBan(after=2))])
    client, statuses = TestClient(app, client=("192.0.2.7", 1)), []
    for _ in range(4):
        with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect("/ws"):
            pass
        statuses.append(denied.value.status_code)
    assert statuses == [401, 401, 403, 403]


async def test_what_was_under_way_when_a_ban_began_gets_no_answer() -> None:
    """Neither what would count, nor what would not: an answer that has begun goes on."""
    waiting, records = dict[str, anyio.Event](), list[AuditRecord]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/streams":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        waiting[path] = anyio.Event()
        await waiting[path].wait()
        if path == "/streams":
            await send({"type": "http.response.body", "body": b"all of it"})
            return
        if path == "/raises":
            raise ValueError
        await send({"type": "http.response.start", "status": 200 if path == "/right" else 401, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})

    guard = AgentMiddleware(
        app, agents=[AgentConfig("ban", IpBan(after=2, statuses=[401, 500]))], on_audit=records.append
    )
    paths = ["/streams", "/1", "/2", "/3", "/right", "/raises"]
    clients = {path: Client(path=path) for path in paths}

    async def ask(path: str) -> None:
        with suppress(ValueError):
            await clients[path].call(guard)

    async with anyio.create_task_group() as tasks:
        for path in paths:
            tasks.start_soon(ask, path)
        while len(waiting) < len(paths):
            await checkpoint()
        for path in ("/1", "/2", "/3", "/right", "/raises", "/streams"):
            waiting[path].set()
            while len(records) <= ("/1", "/2", "/3", "/right", "/raises", "/streams").index(path):
                await checkpoint()
    assert {path: client.status for path, client in clients.items()} == {
        "/1": 401,
        "/2": 401,
        "/3": 403,
        "/right": 403,
        "/streams": 200,
        "/raises": None,
    }
    assert clients["/3"].body == clients["/right"].body == b"Forbidden"
    assert clients["/streams"].body == b"all of it"
    assert [record.status for record in records] == [401, 401, 403, 403, None, 200]


class Passwords(Agent):
    """Denies all requests once so many are there."""

    def __init__(self, waits_for: int) -> None:
        self.asked = 0
        self.waits_for = waits_for
        self.all_there = anyio.Event()

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        self.asked += 1
        if self.asked == self.waits_for:
            self.all_there.set()
        await self.all_there.wait()
        return AgentResponse.block(401)


@pytest.mark.parametrize(("limited", "told"), [(False, 40), (True, 5)])
async def test_guesses_at_a_time_that_another_agent_answers_are_for_a_limit_before_it(limited: bool, told: int) -> None:
    """Its denials go out at once. The page says so, and what to do about it."""
    passwords = Passwords(waits_for=told)
    configs = [
        AgentConfig("ban", IpBan(after=3)),
        *([AgentConfig("limit", RateLimit("5/hour"))] if limited else []),
        AgentConfig("passwords", passwords, after=["limit"] if limited else [], timeout=30.0),
    ]
    guard, clients = AgentMiddleware(App(), agents=configs), [Client() for _ in range(40)]
    async with anyio.create_task_group() as tasks:
        for client in clients:
            tasks.start_soon(client.call, guard)
    assert [client.status for client in clients].count(401) == told == passwords.asked


async def test_a_websocket_client_that_leaves_before_it_is_let_in_is_not_banned() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "websocket.connect"
        assert (await receive())["type"] == "websocket.disconnect"
        await send({"type": "websocket.close", "code": 1000})

    guard = AgentMiddleware(app, agents=[AgentConfig("ban", IpBan(after=1))])
    statuses = []
    for _ in range(2):
        sent = list[Message]()
        came: list[Message] = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1006}]
        client = Client(path="/ws")
        client.scope["type"] = "websocket"

        async def receive(came: list[Message] = came) -> Message:
            return came.pop(0)

        async def send(message: Message, sent: list[Message] = sent) -> None:
            sent.append(message)

        await guard(client.scope, receive, send)
        statuses.append(sent)
        assert not came
    assert statuses == [[], []]


def test_audit_records_metrics_and_the_log_say_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asgi_agents")
    records: list[AuditRecord] = []
    app = guarded(AgentConfig("ban", IpBan(after=1, decoys=["/.env"])), on_audit=records.append)
    for ip, path in (("192.0.2.7", "/.env"), ("192.0.2.7", "/"), ("192.0.2.8", "/missing"), ("192.0.2.8", "/")):
        TestClient(app, client=(ip, 1)).get(path)
    told = [
        (answer.decision, [*answer.reason_codes, *answer.tags], [*answer.rule_ids])
        for record in records
        for answer in record.answers
        if answer.rule_ids
    ]
    assert told == [
        ("block", ["decoy"], ["decoy:/.env"]),
        ("block", ["banned"], ["decoy:/.env"]),
        # The request that was one too many.
        ("allow", ["banned"], ["status:404"]),
        ("block", ["banned"], ["status:404"]),
    ]
    assert "IpBan: 192.0.2.7 is banned for 600 s (decoy:/.env)" in caplog.messages
    assert "IpBan: 192.0.2.8 is banned for 600 s (status:404)" in caplog.messages
    assert [record.status for record in records] == [403, 403, 404, 403]


def test_behind_a_real_server_a_scanner_is_banned_and_another_client_is_not() -> None:
    app = guarded(AgentConfig("ban", IpBan(after=3, trusted_proxies=["127.0.0.1"]), timeout=30.0))
    with serve(app, proxy_headers=False) as url, httpx.Client() as client:

        def ask_as(ip: str, path: str) -> int:
            return client.get(f"{url}{path}", headers={"x-forwarded-for": ip}).status_code

        assert [ask_as("192.0.2.7", f"{number}.php") for number in range(5)] == [404, 404, 404, 403, 403]
        assert ask_as("192.0.2.7", "") == 403
        assert ask_as("192.0.2.8", "") == 200


def test_a_middleware_that_wraps_an_app_does_as_well() -> None:
    app = AgentMiddleware(App(), agents=[AgentConfig("ban", IpBan(decoys=["/.env"]))])
    client = TestClient(app, client=("192.0.2.7", 1))
    assert [client.get(path).status_code for path in ("/", "/.env", "/")] == [200, 403, 403]
