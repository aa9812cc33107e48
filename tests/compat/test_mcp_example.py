"""The MCP server of the example, which no SDK has written, as the SDK's client sees it."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from example_app.app import create_app
from tests.guardrails.clients import PATIENCE
from tests.support.servers import serve

pytest.importorskip("mcp", reason="the MCP SDK is not installed: '.[compat]'")

from .mcp_sdk import MODES, MCPError, connected

HEADERS = {"authorization": "Bearer key-of-alice"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve(create_app(token_delay=0.01), lifespan="on") as url:
        yield f"{url.rstrip('/')}/mcp"


def run(url: str, mode: str, talk: Callable[[Any], Awaitable[None]]) -> None:
    async def talking() -> None:
        async with asyncio.timeout(3 * PATIENCE), connected(url, mode, PATIENCE, headers=HEADERS) as client:
            await talk(client)

    asyncio.run(talking())


@pytest.mark.parametrize("mode", MODES)
def test_the_client_lists_calls_and_is_told_the_reason_of_a_denial(url: str, mode: str) -> None:
    async def talk(client: Any) -> None:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["find_orders", "refund_order"]
        for tool, arguments, reason in (
            ("refund_order", {"order": 1, "amount": 80}, "no refund over 50"),
            ("delete_order", {"order": 1}, "nothing is deleted"),
        ):
            with pytest.raises(MCPError, match=reason):
                await client.call_tool(tool, arguments)
        refund = await client.call_tool("refund_order", {"order": 1, "amount": 20})
        assert json.loads(refund.content[0].text) == {"refunded": 20}

    run(url, mode, talk)


@pytest.mark.parametrize("mode", MODES)
def test_the_client_hears_of_progress_and_reads_a_redacted_result(url: str, mode: str) -> None:
    async def talk(client: Any) -> None:
        heard: list[Any] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            heard.append((done, message))

        result = await client.call_tool("find_orders", {"item": ""}, progress_callback=progress)
        assert heard == [(1, "that of [email]"), (2, "that of [email]")]
        orders = json.loads(result.content[0].text)["orders"]
        assert {(order["email"], order["card"]) for order in orders} == {("[email]", "[card]")}

    run(url, mode, talk)
