"""IpFilter, in front of an app and of a real server."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.responses import PlainTextResponse
from starlette.testclient import WebSocketDenialResponse

from asgi_agents import AgentConfig, AgentMiddleware, AuditRecord, ConfigurationError, protect
from asgi_agents.agents import IpFilter
from tests.support.asgi import App, Client
from tests.support.servers import serve
from tests.unjudged.asking import ask


async def status_of(agent: IpFilter, peer: Sequence[object] | None, *forwarded: str) -> int | None:
    client = Client(headers=[(b"x-forwarded-for", value.encode()) for value in forwarded])
    client.scope["client"] = peer
    return (await ask(App(), AgentConfig("ip", agent), client=client)).status


@pytest.mark.parametrize(
    ("peer", "status"),
    [
        ("192.0.2.7", 200),
        ("::ffff:192.0.2.7", 200),
        ("2001:db8::1%eth0", 200),
        ("192.0.2.66", 403),
        ("::ffff:192.0.2.66", 403),
        ("203.0.113.1", 403),
        ("", 403),
        ("testclient", 403),
    ],
)
async def test_who_is_allowed_and_not_denied_gets_through(peer: str, status: int) -> None:
    agent = IpFilter(allow=["192.0.2.0/24", "2001:db8::/32"], deny=["192.0.2.64/30"])
    assert await status_of(agent, (peer, 50000)) == status


async def test_all_but_the_denied_get_through_where_nothing_is_allowed_by_name() -> None:
    agent = IpFilter(deny=["192.0.2.64/30"])
    assert await status_of(agent, ("203.0.113.1", 1)) == 200
    assert await status_of(agent, ("192.0.2.65", 1)) == 403


@pytest.mark.parametrize("agent", [IpFilter(allow=["192.0.2.0/24"]), IpFilter(deny=["192.0.2.0/24"])])
async def test_a_scope_without_a_client_does_not_get_through(agent: IpFilter) -> None:
    assert await status_of(agent, None) == 403
    assert await status_of(agent, None, "192.0.2.7") == 403


async def test_an_address_that_nobody_can_read_does_not_get_through() -> None:
    agent = IpFilter(deny=["203.0.113.0/24"], trusted_proxies=["10.0.0.0/8"])
    assert await status_of(agent, ("10.0.0.1", 1), "192.0.2.7") == 200
    assert await status_of(agent, ("10.0.0.1", 1), "192.0.2.7, unknown") == 403


async def test_repeated_fields_are_one_list_behind_a_proxy() -> None:
    agent = IpFilter(allow=["192.0.2.0/24"], trusted_proxies=["10.0.0.0/8"])
    assert await status_of(agent, ("10.0.0.1", 1), "203.0.113.1", "192.0.2.7") == 200
    assert await status_of(agent, ("10.0.0.1", 1), "192.0.2.7", "203.0.113.1") == 403


def test_a_websocket_is_denied_in_the_handshake() -> None:
    app = FastAPI()

    @app.websocket("/ws")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")

    protect(app, agents=[AgentConfig("ip", IpFilter(allow=["192.0.2.0/24"]))])
    with TestClient(app, client=("192.0.2.7", 1)).websocket_connect("/ws") as session:
        assert session.receive_text() == "hello"
    with (
        pytest.raises(WebSocketDenialResponse) as denied,
        TestClient(app, client=("203.0.113.1", 1)).websocket_connect("/ws"),
    ):
        pass
    assert denied.value.status_code == 403


def test_the_audit_record_says_why() -> None:
    records: list[AuditRecord] = []
    app = FastAPI()
    protect(app, agents=[AgentConfig("ip", IpFilter(allow=["192.0.2.0/24"]))], on_audit=records.append)
    TestClient(app, client=("203.0.113.1", 1)).get("/")
    TestClient(app).get("/")
    codes = [agent.reason_codes for record in records for answer in record.answers for agent in [answer]]
    assert [list(each) for each in codes] == [["address_denied"], ["address_unknown"]]


@pytest.fixture
def guarded() -> AgentMiddleware:
    return AgentMiddleware(
        PlainTextResponse("hello"),
        agents=[AgentConfig("ip", IpFilter(allow=["192.0.2.0/24"], trusted_proxies=["unix", "127.0.0.1"]))],
    )


@pytest.mark.parametrize("proxy_headers", [False, True])
def test_a_proxy_in_front_of_a_real_server_is_believed(guarded: AgentMiddleware, proxy_headers: bool) -> None:
    """With ``proxy_headers`` uvicorn reads them itself, so that the agent finds the client where the peer was."""
    with serve(guarded, proxy_headers=proxy_headers) as url, httpx.Client() as client:
        assert client.get(url, headers={"x-forwarded-for": "203.0.113.1, 192.0.2.7"}).status_code == 200
        assert client.get(url, headers={"x-forwarded-for": "192.0.2.7, 203.0.113.1"}).status_code == 403
        assert client.get(url).status_code == 403


def test_a_proxy_on_the_unix_socket_of_a_real_server_is_believed(tmp_path: Path, guarded: AgentMiddleware) -> None:
    path = str(tmp_path / "socket")
    with (
        serve(guarded, uds=path, proxy_headers=False),
        httpx.Client(transport=httpx.HTTPTransport(uds=path)) as client,
    ):
        fields: Any = [("x-forwarded-for", "203.0.113.1"), ("x-forwarded-for", "192.0.2.7")]
        assert client.get("http://app/", headers=fields).status_code == 200
        assert client.get("http://app/").status_code == 403


def test_a_unix_socket_is_no_way_past_the_agent(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    app = AgentMiddleware(PlainTextResponse("hello"), agents=[AgentConfig("ip", IpFilter(deny=["203.0.113.0/24"]))])
    with (
        serve(app, uds=path, proxy_headers=False),
        httpx.Client(transport=httpx.HTTPTransport(uds=path)) as client,
    ):
        assert client.get("http://app/", headers={"x-forwarded-for": "192.0.2.7"}).status_code == 403


def test_a_filter_of_nothing_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match=r"IpFilter: nothing to allow or to deny"):
        IpFilter()
