"""Who may configure an agent that is served: its clients, or nobody. One rule, whatever way they come."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from starlette.responses import PlainTextResponse

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentMiddleware,
    AgentResponse,
    ConfigureEvent,
    EventType,
    RequestHeadersEvent,
)
from asgi_agents.errors import ConfigurationError
from asgi_agents.serve import agent_app, serve_grpc, serve_stream
from asgi_agents.serve.hooks import Hooks
from asgi_agents.transports import HttpTransport, StreamTransport
from tests.support.servers import serve

pytest.importorskip("grpc", reason="grpcio is not installed: pip install '.[grpc]'")

from asgi_agents.serve.grpc.agent import AgentService


class Levels(Agent):
    def __init__(self) -> None:
        self.taken: list[Any] = []

    async def on_configure(self, event: ConfigureEvent) -> None:
        self.taken.append(event.config)

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        return None


@asynccontextmanager
async def _served(start: Callable[..., Any]) -> AsyncIterator[str]:
    async with anyio.create_task_group() as tasks:
        yield await tasks.start(start)
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def over_stream(agent: Agent, path: Path, configurable: bool, framing: Any = "v2") -> AsyncIterator[Any]:
    start = partial(serve_stream, agent, f"unix://{path}", configurable=configurable, framing=framing)
    async with _served(start) as address:
        yield StreamTransport(address, framing=framing)


@asynccontextmanager
async def over_grpc(agent: Agent, path: Path, configurable: bool) -> AsyncIterator[Any]:
    service = AgentService(agent, configurable=configurable)
    async with _served(partial(serve_grpc, [service], f"unix://{path}")):
        yield f"grpc+unix://{path}"


@asynccontextmanager
async def over_http(agent: Agent, path: Path, configurable: bool) -> AsyncIterator[Any]:
    with serve(agent_app(agent, configurable=configurable)) as url:
        yield HttpTransport(url)


WAYS: dict[str, Callable[[Agent, Path, bool], AbstractAsyncContextManager[Any]]] = {
    "stream": over_stream,
    "older framing": partial(over_stream, framing="envelope"),
    "http": over_http,
    "grpc": over_grpc,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("configurable", [True, False])
async def test_a_clients_configuration_is_taken_or_refused(
    way: str, configurable: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Levels()
    async with WAYS[way](agent, tmp_path / "a.sock", configurable) as transport:
        for config, status in ((None, 200), ({"level": 3}, 200 if configurable else 503)):
            app = AgentMiddleware(
                PlainTextResponse("served"),
                agents=[AgentConfig("waf", transport, events={EventType.REQUEST_HEADERS}, config=config, timeout=30.0)],
            )
            async with (
                app.manager,
                httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client,
            ):
                assert (await client.get("/")).status_code == status
    # Each connection may bring it.
    assert agent.taken == [{"level": 3}] * len(agent.taken)
    assert bool(agent.taken) is configurable
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert any("it is configured where it is served, and by no client" in line for line in told) is not configurable


@pytest.mark.parametrize("given", ["no", 0, None])
async def test_what_is_neither_is_an_error(given: Any) -> None:
    async def over_the_stream() -> None:
        await serve_stream(Levels(), "tcp://127.0.0.1:0", configurable=given)

    async def over_grpc() -> None:
        AgentService(Levels(), configurable=given)

    async def over_http() -> None:
        agent_app(Levels(), configurable=given)

    for serve_it, where in ((over_the_stream, "serve_stream"), (over_grpc, "AgentService"), (over_http, "agent_app")):
        with pytest.raises(ConfigurationError, match=f"{where}: configurable={given!r}, expected True or False"):
            await serve_it()


async def test_a_client_that_tries_again_and_again_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    hooks = Hooks(Levels(), configurable=False)
    with caplog.at_level(logging.WARNING, "asgi_agents.serve"):
        for level in range(20):
            answer = await hooks.answer(ConfigureEvent(agent_id="a", config={"level": level}), lambda each: each, {})
            assert isinstance(answer, AgentResponse)
            assert not answer.is_allow
    assert [record.message for record in caplog.records] == [
        "Levels: a client's configuration is refused (logged once a minute)"
    ]
