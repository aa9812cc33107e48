"""Servers and clients of the MCP python-sdk, over streamable HTTP: as event streams and as JSON."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Scope

from asgi_agents import (
    Agent,
    AgentResponse,
    BodyMode,
    ErrorInfo,
    EventType,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    ResponseBodyChunkEvent,
)

from .cases import CASES, CHANGED, EVENT_STREAM, MODES, STOPPED, TEXT, UNAVAILABLE, WORDS, Act, Case, config
from .promises import complaints
from .stage import PATIENCE, Handlers, Stage

pytest.importorskip("mcp", reason="the MCP SDK is not installed: pip install '.[compat]'")
pytest.importorskip("mcp.server.mcpserver", reason="the MCP SDK is older than 2.0: pip install '.[compat]'")

from mcp import Client
from mcp.server.mcpserver import Context, MCPServer
from mcp.shared.exceptions import MCPError

KINDS = ("auto", "legacy")


class McpPromises:
    @pytest.fixture(autouse=True)
    def everything_ends(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
        yield
        assert stage.handlers.all_ended(), f"{stage.handlers.begun} handlers have begun, {stage.handlers.ended} ended"
        # What it makes of a client that left, too.
        assert not complaints(caplog, ("mcp.server",))

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_a_stopped_answer_is_an_error_and_the_session_goes_on(self, stage: Stage, case: Case) -> None:
        for kind in KINDS:
            first, second = asyncio.run(
                talk(stage, kind, lambda: stage.guard(case.agent(EventType.RESPONSE_BODY_CHUNK)))
            )
            assert second == TEXT
            match case.act:
                case Act.ALLOW:
                    assert first == TEXT
                case Act.CHANGE:
                    assert first == " ".join(CHANGED)
                case _:
                    assert isinstance(first, MCPError)

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_a_stopped_call_is_an_error_and_the_session_goes_on(self, stage: Stage, case: Case) -> None:
        for kind in KINDS:
            first, second = asyncio.run(
                talk(stage, kind, lambda: stage.guard(case.agent(EventType.REQUEST_BODY_CHUNK)))
            )
            assert second == TEXT
            match case.act:
                case Act.ALLOW:
                    assert first == TEXT
                case Act.CHANGE:
                    assert first == " ".join(CHANGED)
                case _:
                    assert isinstance(first, MCPError)

    @pytest.mark.parametrize("act", [Act.BEFORE, Act.MIDWAY, Act.FAIL], ids=str)
    def test_denials_and_failures_have_their_message_where_they_are_rendered_for_mcp(
        self, stage: Stage, act: Act
    ) -> None:
        agent = Case(act, BodyMode.BUFFER, False).agent(EventType.REQUEST_BODY_CHUNK)
        for kind in KINDS:
            first, second = asyncio.run(talk(stage, kind, lambda: stage.guard(agent, render_error=mcp_error)))
            assert isinstance(first, MCPError)
            assert (UNAVAILABLE if act is Act.FAIL else STOPPED) in str(first)
            assert second == TEXT

    @pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
    @pytest.mark.parametrize("forbidden", ["request", "response"])
    def test_an_agent_can_answer_in_the_servers_place(self, stage: Stage, mode: BodyMode, forbidden: str) -> None:
        for kind in KINDS:
            agent = config(McpGuard(forbidden), request_body_mode=mode, response_body_mode=mode)
            first, second = asyncio.run(talk(stage, kind, lambda agent=agent: stage.guard(agent)))
            assert isinstance(first, MCPError)
            assert STOPPED in str(first)
            assert second == TEXT


class TestMcpEvents(McpPromises):
    @staticmethod
    def make_app(handlers: Handlers) -> ASGIApp:
        return make_app(handlers, as_json=False)


class TestMcpJson(McpPromises):
    @staticmethod
    def make_app(handlers: Handlers) -> ASGIApp:
        return make_app(handlers, as_json=True)


class McpGuard(Agent):
    """Stops what has the third word in it, with an answer that every MCP client can read.

    As an event, for clients take it whether the server would have sent events or JSON.
    """

    def __init__(self, forbidden: str) -> None:
        self.forbidden = forbidden
        self.ids: dict[str, Any] = {}

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        # Calls of these tests come in one piece, whatever the mode.
        self.ids[event.correlation_id] = json.loads(event.data).get("id") if event.data else None
        return self.judge("request", event)

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        return self.judge("response", event)

    async def on_request_complete(self, event: RequestCompleteEvent) -> None:
        self.ids.pop(event.correlation_id, None)

    def judge(self, where: str, event: RequestBodyChunkEvent | ResponseBodyChunkEvent) -> AgentResponse | None:
        if where != self.forbidden or b"three" not in event.data:
            return None
        error = {"code": -32000, "message": STOPPED}
        answer = {"jsonrpc": "2.0", "id": self.ids.get(event.correlation_id), "error": error}
        return AgentResponse.block(
            200, f"event: message\ndata: {json.dumps(answer)}\n\n", headers={"content-type": EVENT_STREAM}
        )


def mcp_error(error: ErrorInfo, scope: Scope) -> Response:
    """A denial or failure as an MCP server would say it."""
    return JSONResponse(
        {"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": error.detail}}, error.status
    )


async def talk(stage: Stage, kind: Any, guard: Any) -> tuple[str | Exception, str | Exception]:
    """Two calls in one session; while the first is made, a guard is in front of the server."""
    stage.guard()
    async with Client(f"{stage.url}/mcp", mode=kind, read_timeout_seconds=PATIENCE) as client:

        async def call() -> str | Exception:
            try:
                result = await client.call_tool("say", {"text": TEXT})
            except MCPError as exc:
                return exc
            return str(result.content[0].text)

        guard()
        first = await call()
        stage.guard()
        return first, await call()


def make_app(handlers: Handlers, *, as_json: bool) -> ASGIApp:
    server = MCPServer("words")

    @server.tool()
    async def say(text: str, ctx: Context) -> str:
        """Say it."""
        with handlers.one():
            for number, word in enumerate(text.split()):
                await ctx.report_progress(number, len(WORDS), word)
            return text

    app: ASGIApp = server.streamable_http_app(json_response=as_json)
    return app
