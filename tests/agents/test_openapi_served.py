"""OpenApiValidation in another process, by transports that carry all that it says, and by one that does not."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from asgi_agents import AgentConfig, AgentMiddleware
from asgi_agents.agents import OpenApiValidation
from asgi_agents.serve import serve_grpc, serve_stream

pytest.importorskip("grpc", reason="grpcio is not installed: pip install '.[grpc]'")

BYTES = {"content-type": "application/octet-stream"}
JSON = {"content-type": "application/json"}
DESCRIPTION: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Shop", "version": "1"},
    "paths": {
        "/uploads": {"post": {"requestBody": {"content": {"application/octet-stream": {}}}, "responses": {"200": {}}}},
        "/items": {
            "post": {
                "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "integer"}}}},
                "responses": {"200": {"content": {"application/json": {"schema": {"type": "integer"}}}}},
            }
        },
    },
}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await JSONResponse(len(body))(scope, receive, send)


@asynccontextmanager
async def client_of(way: str, agent: OpenApiValidation) -> AsyncIterator[httpx.AsyncClient]:
    with tempfile.TemporaryDirectory(prefix="agents-") as place:
        path = f"unix://{place}/a.sock"
        serve = partial(serve_stream, agent, path) if way == "stream" else partial(serve_grpc, agent, path)
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve)
            config = AgentConfig("openapi", path if way == "stream" else f"grpc+{path}", timeout=60.0)
            app = AgentMiddleware(echo, agents=[config])
            transport = httpx.ASGITransport(app)
            async with app.manager, httpx.AsyncClient(transport=transport, base_url="http://app") as client:
                yield client
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("responses", ["off", "block"])
@pytest.mark.parametrize("way", ["stream", "grpc"])
async def test_what_is_not_judged_passes_where_its_body_is_shown_all_the_same(way: str, responses: Any) -> None:
    async with client_of(way, OpenApiValidation(DESCRIPTION, responses=responses)) as client:
        for method, path, content, headers, status in (
            ("POST", "/uploads", b"\0" * 10, BYTES, 200),
            ("POST", "/undocumented", b"\0" * 10, {}, 200),
            ("GET", "/undocumented", b"", {}, 200),
            ("POST", "/items", b"1", JSON, 200),
            ("POST", "/items", b"x", JSON, 400),
            ("POST", "/items", b"", JSON, 422),
        ):
            response = await client.request(method, path, content=content, headers=headers)
            assert (path, content, response.status_code) == (path, content, status)
