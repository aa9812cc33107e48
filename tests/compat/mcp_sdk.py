"""The MCP SDK for Python, as tests use it: version 2, and where that is not installed version 1.

The two differ in the names of classes, and in who is told of a server's options.
"""

import importlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any, Final

import pytest

pytest.importorskip("mcp", reason="the MCP SDK is not installed: '.[compat]'")

import mcp.types as types

try:
    from mcp.server.mcpserver import Context, MCPServer
    from mcp.shared.exceptions import MCPError

    VERSION: Final = 2
except ModuleNotFoundError:
    # The same under the names of before.
    from mcp.server.fastmcp import Context
    from mcp.server.fastmcp import FastMCP as MCPServer
    from mcp.shared.exceptions import McpError as MCPError

    VERSION: Final = 1  # type: ignore[misc]

from mcp.client.streamable_http import streamable_http_client
from mcp.server.streamable_http import EventMessage, EventStore
from mcp.shared._httpx_utils import create_mcp_http_client

__all__ = ["MODES", "VERSION", "Context", "EventMessage", "EventStore", "MCPError", "Server", "connected", "types"]

#: How the client gets to know the server. Version 1 has no choice.
MODES: Final = ("auto", "legacy") if VERSION == 2 else ("legacy",)


class Server:
    """A server, and its app. Has the decorators of the SDK's own: ``tool``, ``prompt`` and ``resource``."""

    def __init__(self, name: str, *, as_json: bool, event_store: EventStore) -> None:
        self._options: dict[str, Any] = {"json_response": as_json, "event_store": event_store, "retry_interval": 10}
        self._server: Any = MCPServer(name) if VERSION == 2 else MCPServer(name, **self._options)
        self.tool, self.prompt, self.resource = self._server.tool, self._server.prompt, self._server.resource

    def app(self) -> Any:
        return self._server.streamable_http_app(**(self._options if VERSION == 2 else {}))


@asynccontextmanager
async def connected(
    url: str, mode: str, timeout: float, *, headers: dict[str, str] | None = None, **options: Any
) -> AsyncIterator[Any]:
    """Within, a client that is connected to ``url``: version 2's, or a session of version 1 with the same methods.

    :param timeout: seconds for an answer.
    :param headers: of each request.
    :param options: such as ``sampling_callback``.
    """
    assert mode in MODES
    mcp = importlib.import_module("mcp")
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(create_mcp_http_client(headers))
        transport = streamable_http_client(url, http_client=http)
        if VERSION == 2:
            client = mcp.Client(transport, mode=mode, read_timeout_seconds=timeout, **options)
            yield await stack.enter_async_context(client)
            return
        read, write, _ = await stack.enter_async_context(transport)
        session = mcp.ClientSession(read, write, read_timeout_seconds=timedelta(seconds=timeout), **options)
        await stack.enter_async_context(session)
        await session.initialize()
        yield session
