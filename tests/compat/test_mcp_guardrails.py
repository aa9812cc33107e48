"""The official clients and servers of MCP, over real connections, with guardrails and tool policies between them."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

import pytest
from starlette.types import Receive, Scope, Send

from asgi_agents import AgentConfig, AgentMiddleware
from asgi_agents.guardrails import Block, Decision, Guardrail, TextGuardrail, ToolPolicy, Window
from asgi_agents.guardrails.slots import KINDS
from tests.guardrails.clients import PATIENCE
from tests.guardrails.driving import EVERYTHING
from tests.support.servers import serve

pytest.importorskip("mcp", reason="the MCP SDK is not installed: '.[compat]'")

from .mcp_sdk import MODES, Context, EventMessage, EventStore, MCPError, Server, connected, types

# It is what the versions before that have.
pytestmark = pytest.mark.filterwarnings("ignore:The sampling capability is deprecated")

ENTITY: Final = "alice@example.com"
REASON: Final = "the policy says no"


class Judge(TextGuardrail):
    """Redacts entities, blocks what is bad, and fails for what is broken."""

    hold = 90

    async def check(self, window: Window) -> Sequence[Decision]:
        if "broken" in window.text:
            raise RuntimeError("the guardrail is broken")
        return [Block(REASON)] if "bad" in window.text else EVERYTHING(window)


class Tools:
    """The tools of both servers.

    :ivar called: the arguments that they were called with.
    :ivar stored: what the streams of the SDK's server have sent.
    """

    def __init__(self) -> None:
        self.called: list[str] = []
        self.stored = Stored()

    def say(self, text: str) -> str:
        """Say it, to alice@example.com."""
        self.called.append(text)
        # What a client can't have sent past the guardrail.
        return {"entity": ENTITY, "worse": "bad", "worst": "broken"}.get(text, text)

    def delete_user(self, text: str) -> str:
        """Delete a user."""
        self.called.append(text)
        return text


class Stored(EventStore):
    """The events of all streams, for clients that take one up again."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.replays = 0

    async def store_event(self, stream_id: str, message: Any) -> str:
        self.events.append((stream_id, message))
        return str(len(self.events) - 1)

    async def replay_events_after(self, last_event_id: str, send_callback: Any) -> str | None:
        self.replays += 1
        after = int(last_event_id)
        stream_id = self.events[after][0]
        for number, (of_stream, message) in enumerate(self.events):
            if number > after and of_stream == stream_id and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream_id


def of_sdk(tools: Tools, *, as_json: bool) -> Any:
    server = Server("words", as_json=as_json, event_store=tools.stored)
    server.tool()(tools.say)
    server.tool()(tools.delete_user)

    @server.tool()
    async def count(text: str, ctx: Context) -> str:
        """Count."""
        for number in range(3):
            await ctx.report_progress(number, 3, f"{text} {number}")
        return text

    @server.tool()
    async def ask(text: str, ctx: Context) -> str:
        """Ask the client's model."""
        message = types.SamplingMessage(role="user", content=types.TextContent(type="text", text=text))
        try:
            answer = await ctx.session.create_message([message], max_tokens=9, related_request_id=ctx.request_id)
        except MCPError as exc:
            return f"failed: {exc}"
        return str(answer.content.text)

    @server.tool()
    async def leave(text: str, ctx: Context) -> str:
        """Break the stream off: its client takes it up again."""
        await ctx.close_sse_stream()
        return {"entity": ENTITY, "worse": "bad"}[text]

    @server.prompt()
    def hello(name: str) -> str:
        """Greet."""
        return f"Hello {name}, from {ENTITY}"

    @server.resource("words://all")
    def words() -> str:
        """All words."""
        return f"words of {ENTITY}"

    return server.app()


def of_fastmcp(tools: Tools) -> Any:
    fastmcp = pytest.importorskip("fastmcp", reason="fastmcp is not installed: '.[compat]'")
    server = fastmcp.FastMCP("words")
    server.tool(tools.say)
    server.tool(tools.delete_user)
    return server.http_app()


SERVERS: Final[dict[str, Callable[[Tools], Any]]] = {
    "sdk events": lambda tools: of_sdk(tools, as_json=False),
    "sdk json": lambda tools: of_sdk(tools, as_json=True),
    "fastmcp": of_fastmcp,
}


class Stage:
    def __init__(self, url: str, tools: Tools) -> None:
        self.url = f"{url.rstrip('/')}/mcp"
        self.tools = tools

    def run(self, way: str, talk: Callable[[Any], Awaitable[None]], **options: Any) -> None:
        """Talk to the server with one of the clients."""

        async def talking() -> None:
            async with AsyncExitStack() as stack, asyncio.timeout(3 * PATIENCE):
                if way == "fastmcp":
                    fastmcp = pytest.importorskip("fastmcp", reason="fastmcp is not installed: '.[compat]'")
                    client = await stack.enter_async_context(fastmcp.Client(self.url, timeout=PATIENCE))
                else:
                    client = await stack.enter_async_context(connected(self.url, way, PATIENCE, **options))
                await talk(client)

        asyncio.run(talking())


@pytest.fixture(scope="module", params=SERVERS)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    tools = Tools()
    app = SERVERS[request.param](tools)
    guarded = AgentMiddleware(
        app,
        agents=[AgentConfig("judge", Judge(), circuit_breaker=None)],
        guardrails=[Guardrail("judge", on=KINDS), ToolPolicy(deny=["delete_*"])],
    )

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        await guarded(scope, receive, send)

    with serve(served, lifespan="on") as url:
        yield Stage(url, tools)


@pytest.fixture(params=[*MODES, "fastmcp"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def sdk(stage: Stage, request: pytest.FixtureRequest) -> Stage:
    if "fastmcp" in request.node.callspec.id:
        pytest.skip("the SDK's own server has these")
    return stage


def texts(result: Any) -> str:
    """All that a result says, in text and in data."""
    # Each version, and fastmcp, spells it in a way of its own.
    names = ("structured_content", "structuredContent")
    structured = next((found for name in names if (found := getattr(result, name, None)) is not None), None)
    return f"{[block.text for block in result.content]} {json.dumps(structured)}"


async def failing(client: Any, tool: str, text: str) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        await client.call_tool(tool, {"text": text})
    return f"{type(caught.value).__name__}: {caught.value}"


def test_arguments_and_results_are_redacted(stage: Stage, way: str) -> None:
    async def talk(client: Any) -> None:
        assert "mail [0]" in texts(await client.call_tool("say", {"text": f"mail {ENTITY}"}))
        assert stage.tools.called[-1] == "mail [0]"
        said = texts(await client.call_tool("say", {"text": "entity"}))
        assert "[0]" in said
        assert ENTITY not in said

    stage.run(way, talk)


def test_what_is_stopped_is_an_error_and_the_session_goes_on(stage: Stage, way: str) -> None:
    async def talk(client: Any) -> None:
        for text, reason in (
            ("bad", REASON),
            ("worse", REASON),
            ("broken", "Agent unavailable"),
            ("worst", "Agent unavailable"),
        ):
            told = await failing(client, "say", text)
            assert reason in told, told
            assert "fine" in texts(await client.call_tool("say", {"text": "fine"}))

    stage.run(way, talk)


def test_a_denied_tool_is_not_listed_and_not_called(stage: Stage, way: str) -> None:
    async def talk(client: Any) -> None:
        listed = await client.list_tools()
        tools = getattr(listed, "tools", listed)
        assert "say" in [tool.name for tool in tools]
        assert "delete_user" not in [tool.name for tool in tools]
        assert "to [0]" in next(tool.description for tool in tools if tool.name == "say")
        before = len(stage.tools.called)
        assert "delete_user" in await failing(client, "delete_user", "x")
        assert len(stage.tools.called) == before
        assert "fine" in texts(await client.call_tool("say", {"text": "fine"}))

    stage.run(way, talk)


@pytest.mark.parametrize("mode", MODES)
def test_prompts_and_resources_are_redacted(sdk: Stage, mode: str) -> None:
    async def talk(client: Any) -> None:
        prompt = await client.get_prompt("hello", {"name": ENTITY})
        assert prompt.messages[0].content.text == "Hello [0], from [0]"
        resource = await client.read_resource("words://all")
        assert resource.contents[0].text == "words of [0]"

    sdk.run(mode, talk)


@pytest.mark.parametrize("mode", MODES)
def test_progress_arrives(sdk: Stage, mode: str) -> None:
    async def talk(client: Any) -> None:
        heard: list[Any] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            heard.append((done, message))

        result = await client.call_tool("count", {"text": "mail"}, progress_callback=progress)
        assert "mail" in texts(result)
        # A server that answers with JSON has no place for it.
        assert heard in ([], [(number, f"mail {number}") for number in range(3)])

    sdk.run(mode, talk)


def test_a_stream_is_taken_up_again(sdk: Stage, request: pytest.FixtureRequest) -> None:
    if "json" in request.node.callspec.id:
        pytest.skip("a server that answers with JSON has no stream")

    async def talk(client: Any) -> None:
        before = sdk.tools.stored.replays
        assert "[0]" in texts(await client.call_tool("leave", {"text": "entity"}))
        assert REASON in await failing(client, "leave", "worse")
        assert sdk.tools.stored.replays == before + 2
        assert "fine" in texts(await client.call_tool("say", {"text": "fine"}))

    sdk.run("legacy", talk)


@pytest.mark.parametrize("answer", [f"by {ENTITY}", "bad"])
def test_the_server_may_ask_the_clients_model(sdk: Stage, request: pytest.FixtureRequest, answer: str) -> None:
    if "json" in request.node.callspec.id:
        pytest.skip("a server that answers with JSON can't ask")
    asked: list[str] = []

    async def sample(context: Any, params: Any) -> Any:
        asked.append(params.messages[0].content.text)
        content = types.TextContent(type="text", text=answer)
        return types.CreateMessageResult(role="assistant", content=content, model="m")

    async def talk(client: Any) -> None:
        said = texts(await client.call_tool("ask", {"text": "who?"}))
        assert asked == ["who?"]
        # A blocked answer is an error for the server, which would wait for it for ever.
        assert ("by [0]" in said) if answer != "bad" else (REASON in said)

    sdk.run("legacy", talk, sampling_callback=sample)
