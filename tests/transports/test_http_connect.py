"""``HttpTransport.connect``: whether an agent is there, without a word to it."""

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import trustme
from anyio.streams.tls import TLSListener

from asgi_agents import AgentConfig, AgentConnectionError, EventType, HttpTransport
from asgi_agents.guard import Guard

AUTHORITY = trustme.CA()


class Listener:
    """A port on which each connection is read to its end."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.read = b""
        self.ended = anyio.Event()

    async def serve(self, stream: Any) -> None:
        # Closed, perhaps without the farewell of TLS.
        with contextlib.suppress(anyio.BrokenResourceError, ssl.SSLError):
            async with stream:
                async for chunk in stream:
                    self.read += chunk
        self.ended.set()

    async def was_told_nothing(self) -> bool:
        with anyio.fail_after(60):
            await self.ended.wait()
        return self.read == b""


@asynccontextmanager
async def listening(server: ssl.SSLContext | None = None) -> AsyncIterator[Listener]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        found = Listener(sock.getsockname()[1])
        plain: Any = await anyio.abc.SocketListener.from_socket(sock)
        served = plain if server is None else TLSListener(plain, server, standard_compatible=False)
        async with plain, anyio.create_task_group() as tasks:
            tasks.start_soon(served.serve, found.serve)
            yield found
            tasks.cancel_scope.cancel()


def server_context(name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(name).configure_cert(context)
    return context


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    return context


async def test_an_agent_that_listens_is_there_and_is_sent_nothing() -> None:
    async with listening() as there:
        await HttpTransport(f"http://127.0.0.1:{there.port}").connect()
        assert await there.was_told_nothing()


async def test_an_agent_behind_tls_is_there_if_it_is_trusted() -> None:
    async with listening(server_context("localhost")) as there:
        await HttpTransport(f"https://localhost:{there.port}", verify=trusting()).connect()
        assert await there.was_told_nothing()


async def test_the_client_of_an_agent_connects_with_it() -> None:
    async with listening() as there:
        config = AgentConfig("waf", f"http://127.0.0.1:{there.port}", events={EventType.REQUEST_HEADERS})
        await Guard(config).client.connect()
        assert await there.was_told_nothing()


async def test_nobody_listens(tmp_path: Path) -> None:
    async with listening() as there:
        pass
    nowhere = HttpTransport("http://agent", uds=f"{tmp_path}/a.sock")
    for transport in (HttpTransport(f"http://127.0.0.1:{there.port}"), nowhere):
        with pytest.raises(AgentConnectionError):
            await transport.connect()


@pytest.mark.parametrize(("name", "trusted"), [("localhost", False), ("elsewhere.example", True)])
async def test_a_certificate_that_does_not_hold(name: str, trusted: bool) -> None:
    async with listening(server_context(name)) as there:
        transport = HttpTransport(f"https://localhost:{there.port}", verify=trusting() if trusted else True)
        with pytest.raises(AgentConnectionError, match="certificate"):
            await transport.connect()


async def test_another_transport_is_not_asked() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise AssertionError

    await HttpTransport("http://127.0.0.1:9", transport=httpx.MockTransport(refuse)).connect()
