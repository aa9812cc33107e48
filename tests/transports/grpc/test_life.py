"""What is left when calls and channels are over, and what an app does with an agent behind gRPC."""

import asyncio
import gc
import os
import threading
import time
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentMiddleware,
    AgentResponse,
    Event,
    EventType,
    FailureMode,
    GrpcTransport,
    HeaderOp,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
)
from tests.serve.grpc.client import serving
from tests.support.sample_events import head
from tests.transports.stream.pools import until

from .peer import Heard, Peer, answer, block

pytestmark = pytest.mark.anyio


class Waf(Agent):
    """Stamps, blocks, and fails in the ways that the wire can't say."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        if event.header("x-bad"):
            return AgentResponse.block(403, "no", headers={"x-why": "bad"})
        return AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice")])

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        return AgentResponse.block(422, "evil") if b"evil" in event.data else None

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        if b"route" in event.data:
            return AgentResponse.allow(routing_metadata={"pool": "b"})
        return AgentResponse.block(502, "leak") if b"secret" in event.data else None


def ask(client: Any, event: Event) -> Any:
    return client.call(event, time.monotonic() + 60)


@pytest.mark.slow
async def test_ten_thousand_calls_over_one_channel_give_everything_back(anyio_backend_name: str) -> None:
    async with serving(Waf()) as served:
        client = GrpcTransport(served.address, connections=1).bind("waf")

        async def many(prefix: str, count: int) -> None:
            for number in range(count):
                assert (await ask(client, head(f"{prefix}-{number}"))) is not None
                client.forget(f"{prefix}-{number}")

        async def round_of(count: int, name: str) -> None:
            async with anyio.create_task_group() as tasks:
                for each in range(20):
                    tasks.start_soon(many, f"{name}-{each}", count // 20)

        await round_of(1000, "warm")
        gc.collect()
        tracemalloc.start()
        try:
            before, tasks = tracemalloc.get_traced_memory()[0], len(asyncio_tasks(anyio_backend_name))
            await round_of(10_000, "r")
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        [endpoint] = client.statistics()[0]
        assert (endpoint.in_flight, endpoint.late_answers, endpoint.unmatched_answers) == (0, 0, 0)
        assert (endpoint.connections, endpoint.state) == (1, "up")
        pool: Any = client._pools.peek()  # type: ignore[attr-defined]
        [connection] = pool.connections
        assert (len(connection.pending_calls), connection.requests, pool.rotation.affinities.connections) == (
            0,
            set(),
            {},
        )
        assert len(asyncio_tasks(anyio_backend_name)) <= tasks
        # Ten bytes a call would be 100 KB.
        assert grown < 100_000
        await client.aclose()


def asyncio_tasks(backend: str) -> set[Any]:
    return set(asyncio.all_tasks()) if backend == "asyncio" else set()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
async def test_what_is_closed_leaves_no_task_thread_or_socket(anyio_backend_name: str) -> None:
    async def once() -> None:
        with Peer(lambda event: None).on_a_socket() as path:
            client = GrpcTransport(f"grpc+unix://{path}", connections=3).bind(
                "waf", events=frozenset({EventType.REQUEST_HEADERS})
            )
            await client.connect()
            with anyio.move_on_after(0.02):
                await ask(client, head())
            await client.aclose()

    # What the libraries keep once they were used.
    await once()
    gc.collect()
    tasks = asyncio_tasks(anyio_backend_name)
    opened, running = descriptors(), threading.active_count()
    for _ in range(3):
        await once()
    gc.collect()
    await until(lambda: threading.active_count() <= running and descriptors() <= opened)
    assert asyncio_tasks(anyio_backend_name) == tasks


class App:
    """A guarded app, and how it says what it was sent."""

    def __init__(self, transport: GrpcTransport, **settings: Any) -> None:
        app = Starlette(routes=[Route("/{rest:path}", self._echo, methods=["GET", "POST"])])
        self.asgi = AgentMiddleware(app, agents=[AgentConfig("waf", transport, timeout=60.0, **settings)])

    async def _echo(self, request: Request) -> Response:
        body = await request.body()
        return PlainTextResponse(request.headers.get("x-user", "nobody") + " " + (body or b"-").decode())


@pytest.mark.parametrize("lifespan", [True, False])
def test_an_app_behind_our_own_server(lifespan: bool, anyio_backend_name: str, tmp_path: Path) -> None:
    """Without a lifespan each request has an event loop of its own."""
    stop: list[Any] = []
    path = tmp_path / "s"
    ready = threading.Event()

    async def serve() -> None:
        async with serving(Waf(), f"unix://{path}"):
            stop.append(asyncio.get_running_loop())
            over = asyncio.Event()
            stop.append(over)
            ready.set()
            await over.wait()

    thread = threading.Thread(target=partial(anyio.run, serve))
    thread.start()
    assert ready.wait(60)
    try:
        app = App(GrpcTransport(f"grpc+unix://{path}", connections=2)).asgi
        client = TestClient(app, backend=anyio_backend_name)  # type: ignore[arg-type]
        if lifespan:
            client.__enter__()
        try:
            assert client.get("/").text == "alice -"
            blocked = client.get("/", headers={"x-bad": "1"})
            assert (blocked.status_code, blocked.text, blocked.headers["x-why"]) == (403, "no", "bad")
            assert client.post("/", content=b"good").text == "alice good"
            assert client.post("/", content=b"evil").status_code == 422
            assert client.post("/", content=b"secret").status_code == 502
            # What the wire can't say is a failure, and the agent fails closed.
            assert client.post("/", content=b"route").status_code == 503
        finally:
            if lifespan:
                client.__exit__(None, None, None)
    finally:
        stop[0].call_soon_threadsafe(stop[1].set)
        thread.join(60)


@pytest.mark.parametrize(("mode", "status"), [(FailureMode.CLOSED, 503), (FailureMode.OPEN, 200)])
def test_an_agent_that_is_not_there_is_treated_by_its_failure_mode(mode: FailureMode, status: int) -> None:
    transport = GrpcTransport("grpc+unix:///nowhere/s", connect_timeout=1.0)
    app = App(transport, failure_mode=mode, events={EventType.REQUEST_HEADERS}, circuit_breaker=None).asgi
    with TestClient(app) as client:
        assert client.get("/").status_code == status


def test_a_block_of_an_agent_of_the_rust_kit_is_no_failure() -> None:
    def behave(event: Heard) -> bytes:
        return answer(event.correlation_id, block(503, "closed"))

    with Peer(behave).on_a_socket() as path:
        transport = GrpcTransport(f"grpc+unix://{path}")
        app = App(transport, failure_mode=FailureMode.OPEN, events={EventType.REQUEST_HEADERS}).asgi
        with TestClient(app) as client:
            response = client.get("/")
    assert (response.status_code, response.text) == (503, "closed")
