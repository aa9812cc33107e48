"""RateLimit with a real Redis, which is killed and started as it goes."""

import logging
import re
from collections.abc import Mapping
from itertools import count

import anyio
import pytest
from anyio.lowlevel import checkpoint
from fastapi import FastAPI, WebSocket
from websockets import ConnectionClosed, InvalidStatus
from websockets.asyncio.client import connect

from asgi_agents import (
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    AgentsError,
    Block,
    CircuitBreakerConfig,
    ConfigureEvent,
    FailureModeName,
    RequestHeadersEvent,
    protect,
)
from asgi_agents.agents import RateLimit
from asgi_agents.errors import AgentConnectionError
from asgi_agents.testing import request_headers_event, request_metadata, websocket_frame_event
from tests.support.asgi import App, Client
from tests.support.servers import serve

from .redis_server import RedisServer

_NUMBERS = count()
# Seconds after which a test that hangs has failed.
PATIENCE = 60


# The client of Redis runs on asyncio alone; one test says what happens on trio.
@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def limits(url: str, text: str, agent_id: str, **options: str) -> RateLimit:
    agent = RateLimit(text, storage=url, **options)  # type: ignore[arg-type]
    await agent.on_configure(ConfigureEvent(agent_id=agent_id))
    return agent


def asked(ip: str = "192.0.2.7", **headers: str) -> RequestHeadersEvent:
    return request_headers_event(headers=headers, metadata=request_metadata(client_ip=ip))


async def status(agent: RateLimit, event: RequestHeadersEvent) -> int:
    answer = await agent.on_request_headers(event)
    return answer.decision.status if isinstance(answer.decision, Block) else 200


def told(answer: AgentResponse) -> dict[str, str]:
    return {op.name: op.value for op in answer.response_headers}


@pytest.mark.parametrize("strategy", ["fixed-window", "sliding-window-counter"])
async def test_all_processes_count_together(running_redis: RedisServer, strategy: str) -> None:
    agent_id = f"rate-{next(_NUMBERS)}"
    workers = [await limits(running_redis.url, "3/hour", agent_id, strategy=strategy) for _ in range(3)]
    answers = [await worker.on_request_headers(asked()) for worker in workers]
    assert [told(answer)["ratelimit-remaining"] for answer in answers] == ["2", "1", "0"]
    denied = [await worker.on_request_headers(asked()) for worker in workers]
    for answer in denied:
        assert isinstance(answer.decision, Block)
        assert answer.decision.status == 429
        assert answer.decision.headers is not None
        assert 0 < int(answer.decision.headers["retry-after"]) <= 3600
        assert told(answer)["ratelimit-reset"] == answer.decision.headers["retry-after"]
    assert await status(workers[0], asked("192.0.2.8")) == 200


async def test_agents_of_one_redis_count_for_themselves(running_redis: RedisServer) -> None:
    first, second = [await limits(running_redis.url, "1/hour", f"rate-{next(_NUMBERS)}") for _ in range(2)]
    assert [await status(first, asked()), await status(second, asked()), await status(first, asked())] == [
        200,
        200,
        429,
    ]


async def test_messages_are_counted_there_too(running_redis: RedisServer) -> None:
    agent_id = f"rate-{next(_NUMBERS)}"
    workers = [await limits(running_redis.url, "9/hour", agent_id, messages="2/hour") for _ in range(2)]
    frame = websocket_frame_event("a", correlation_id="test")
    for worker in workers:
        await worker.on_request_headers(asked())
        assert await worker.on_websocket_frame(frame) is None
    answers = [await worker.on_websocket_frame(frame) for worker in workers]
    assert [answer is None or answer.is_allow for answer in answers] == [False, False]


async def outcome(url: str) -> tuple[int, Mapping[str, str]]:
    """What becomes of a session: 101 if what is sent in it comes back, else the code that it is closed with; or the
    status and the headers of the answer to its handshake.
    """
    try:
        async with connect(f"{url.replace('http', 'ws')}ws", proxy=None) as session:
            await session.send("a")
            assert await session.recv() == "a"
            return 101, {}
    except InvalidStatus as refused:
        return refused.response.status_code, dict(refused.response.headers)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else 0, {}


async def test_websockets_of_a_real_server_are_limited(running_redis: RedisServer) -> None:
    app = FastAPI()

    @app.websocket("/ws")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    limit = RateLimit("4/hour", messages="2/hour", storage=running_redis.url, namespace=f"rate-{next(_NUMBERS)}")
    protect(app, agents=[AgentConfig("rate", limit, timeout=30.0)])
    with serve(app) as url:
        outcomes = [await outcome(url) for _ in range(6)]
    # First the messages are used up, then the handshakes.
    assert [status for status, _ in outcomes] == [101, 101, 1008, 1008, 429, 429]
    headers = outcomes[-1][1]
    assert headers["ratelimit-remaining"] == "0"
    assert 0 < int(headers["retry-after"]) <= 3600


async def test_redis_learns_neither_users_nor_tokens(running_redis: RedisServer) -> None:
    agent = await limits(running_redis.url, "9/hour", "rate", by="header:x-token")
    await agent.on_request_headers(asked("203.0.113.77", **{"x-token": "hunter2"}))
    keys = running_redis.command("KEYS", "*")
    assert b"rate/" in keys
    assert b"hunter2" not in keys
    assert b"203.0.113.77" not in keys


async def test_counters_do_not_stay_in_redis(running_redis: RedisServer) -> None:
    agent = await limits(running_redis.url, "9/second", f"rate-{next(_NUMBERS)}")
    await agent.on_request_headers(asked())
    keys = [word for word in running_redis.command("KEYS", "*rate-*second*").decode().split() if word[0] not in "*$"]
    assert keys
    assert all(running_redis.command("PTTL", key)[:2] not in (b":-", b"") for key in keys)


async def test_the_connections_of_an_event_loop_are_closed_with_it(running_redis: RedisServer) -> None:
    def connections() -> int:
        return running_redis.command("CLIENT", "LIST").count(b"\nid=")

    before = connections()
    agent = await limits(running_redis.url, "9/hour", f"rate-{next(_NUMBERS)}")
    for _ in range(20):
        await agent.on_request_headers(asked())
    assert connections() == before + 1
    await agent._counters._connections._connected.aclose()  # type: ignore[attr-defined]
    with anyio.fail_after(PATIENCE):
        while connections() > before:  # noqa: ASYNC110 - a process of its own
            await anyio.sleep(0.001)


async def ask(app: AgentMiddleware) -> tuple[int | None, bool]:
    """The status of an answer, and whether it was counted in Redis."""
    client = Client()
    with anyio.fail_after(PATIENCE):
        await client.call(app)
    return client.status, client.header(b"ratelimit-remaining") is not None


def guarded(agent: RateLimit, mode: FailureModeName, timeout: float = 30.0) -> AgentMiddleware:
    breaker = CircuitBreakerConfig(reset_timeout=0.05, success_threshold=1)
    config = AgentConfig("rate", agent, failure_mode=mode, circuit_breaker=breaker, timeout=timeout)
    return AgentMiddleware(App(), manager=AgentManager([config]))


async def becomes(app: AgentMiddleware, wanted: tuple[int, bool]) -> None:
    """Ask until the answer is that."""
    with anyio.fail_after(PATIENCE):
        while await ask(app) != wanted:  # noqa: ASYNC110 - of a process of its own
            await anyio.sleep(0.005)


MODES = pytest.mark.parametrize(("mode", "while_down"), [("closed", (503, False)), ("open", (200, False))])


@MODES
async def test_redis_that_is_down_at_start_is_the_failure_mode_and_no_crash(
    redis: RedisServer, mode: FailureModeName, while_down: tuple[int, bool], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "asgi_agents")
    app = guarded(RateLimit("2/hour", storage=redis.url), mode)
    async with app.manager:
        assert [await ask(app) for _ in range(3)] == [while_down] * 3
        assert re.search(
            r"Redis at \S+ has failed: ConnectionError \((Connection refused|No such file or directory)\)", caplog.text
        )
        assert redis.url not in caplog.text
        redis.start()
        await becomes(app, (429, True))


@MODES
async def test_redis_that_is_killed_under_load_and_comes_back(
    redis: RedisServer, mode: FailureModeName, while_down: tuple[int, bool]
) -> None:
    redis.start()
    app = guarded(RateLimit("1000000/hour", storage=redis.url), mode)
    seen: list[tuple[int | None, bool]] = []
    down: list[tuple[int | None, bool]] = []
    over = False

    async def load() -> None:
        while not over:
            seen.append(await ask(app))
            await checkpoint()

    async with app.manager, anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(load)
        for _ in range(3):
            await becomes(app, (200, True))
            redis.kill()
            await becomes(app, while_down)
            down += [await ask(app) for _ in range(20)]
            redis.start()
        await becomes(app, (200, True))
        over = True
    # Nobody was told anything else, and nothing reached the server as an exception.
    assert set(down) == {while_down}
    assert set(seen) == {(200, True), while_down}
    metrics = app.manager.metrics["rate"]
    assert (metrics.in_flight, metrics.waiting) == (0, 0)
    assert metrics.outcomes["error"] > 0


@MODES
async def test_redis_that_does_not_answer_is_the_failure_mode(
    redis: RedisServer, mode: FailureModeName, while_down: tuple[int, bool]
) -> None:
    redis.start()
    app = guarded(RateLimit("1000/hour", storage=redis.url), mode, timeout=0.2)
    async with app.manager:
        await becomes(app, (200, True))
        redis.halt()
        assert await ask(app) == ((504, False) if mode == "closed" else while_down)
        redis.go_on()
        await becomes(app, (200, True))


async def test_a_call_that_is_late_leaves_no_answer_for_another(redis: RedisServer) -> None:
    """What Redis has been asked it answers, however late. Nobody else may be given that."""
    redis.start()
    agent = await limits(redis.url, "1000/hour", "rate", by="header:x-n")
    for _ in range(5):
        await agent.on_request_headers(asked(**{"x-n": "late"}))
    for number in range(5):
        redis.halt()
        with anyio.move_on_after(0.05):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(agent.on_request_headers, asked(**{"x-n": "late"}))
        redis.go_on()
        answer = await agent.on_request_headers(asked(**{"x-n": f"other {number}"}))
        assert told(answer)["ratelimit-remaining"] == "999"


async def test_on_trio_it_says_that_it_needs_asyncio(running_redis: RedisServer) -> None:
    def on_trio() -> str:
        async def ask() -> str:
            with pytest.raises(AgentsError) as error:
                await limits(running_redis.url, "1/hour", "rate")
            return str(error.value)

        return anyio.run(ask, backend="trio")

    text = await anyio.to_thread.run_sync(on_trio)
    assert text == (
        "RateLimit with Redis needs asyncio, where alone the client of Redis runs; on trio expected storage='memory'"
    )


async def test_what_redis_says_is_not_in_the_failure(redis: RedisServer) -> None:
    redis.start()
    redis.command("CONFIG", "SET", "requirepass", "hunter2")
    with pytest.raises(AgentConnectionError, match=r"Redis at .* has failed: AuthenticationError$"):
        await limits(redis.url, "1/hour", "rate")
