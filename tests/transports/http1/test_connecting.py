"""Which addresses a connection is made to."""

import gc
import socket
from contextlib import suppress
from typing import Any

import anyio
import pytest

from asgi_agents.errors import AgentConnectionError
from asgi_agents.protocol import AgentResponse
from asgi_agents.transports import HttpTransport
from tests.transports.test_http import CHUNK, allow_everything, raw_agent

V6 = socket.AF_INET6


async def test_a_name_is_looked_up() -> None:
    async with raw_agent(allow_everything) as agent:
        transport = HttpTransport(agent.url.replace("127.0.0.1", "localhost"))
        for _ in range(2):
            assert await transport.call(CHUNK) == AgentResponse()
        assert agent.accepted == 1
        await transport.aclose()
        await agent.has_open(0)


async def test_an_ipv6_address_is_taken_as_it_is() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=V6)
    except OSError:
        pytest.skip("there is no IPv6")
    async with await anyio.create_tcp_listener(local_host="::1") as listeners, anyio.create_task_group() as group:
        listener.close()
        port = listeners.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - no query

        async def serve(stream: Any) -> None:
            async with stream:
                with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                    await allow_everything(stream)

        group.start_soon(listeners.serve, serve)
        transport = HttpTransport(f"http://[::1]:{port}/")
        assert await transport.call(CHUNK) == AgentResponse()
        await transport.aclose()
        group.cancel_scope.cancel()


async def test_a_host_without_an_address_is_a_connection_error() -> None:
    transport = HttpTransport("http://agent.invalid/")
    with pytest.raises(AgentConnectionError, match="gaierror"):
        await transport.call(CHUNK)
    await transport.aclose()
    gc.collect()
