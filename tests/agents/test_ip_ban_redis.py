"""IpBan with a real Redis, which is killed and started as it goes."""

import logging
from collections.abc import Mapping
from ipaddress import ip_address
from itertools import count
from types import MappingProxyType
from typing import Any

import anyio
import pytest

from asgi_agents import (
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentsError,
    Block,
    CircuitBreakerConfig,
    ConfigurationError,
    ConfigureEvent,
    FailureModeName,
)
from asgi_agents.agent import may_suspend
from asgi_agents.agents import IpBan
from asgi_agents.testing import request_complete_event, request_headers_event, request_metadata, response_headers_event
from tests.support.asgi import App, Client

from .redis_server import RedisServer

_NUMBERS = count()
# Seconds after which a test that hangs has failed.
PATIENCE = 60


# The client of Redis runs on asyncio alone; one test says what happens on trio.
@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def name() -> str:
    return f"ban-{next(_NUMBERS)}"


async def worker(url: str, agent_id: str, **options: Any) -> IpBan:
    agent = IpBan(storage=url, **{"within": 3600, "duration": 3600} | options)
    await agent.on_configure(ConfigureEvent(agent_id=agent_id))
    return agent


async def passes(
    agent: IpBan,
    ip: str = "192.0.2.7",
    uri: str = "/",
    status: int = 404,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> bool:
    """Whether a request gets through, which ends with that status then."""
    event = request_headers_event(uri=uri, headers=headers, metadata=request_metadata(client_ip=ip))
    answer = await agent.on_request_headers(event)
    if answer is None:
        await agent.on_request_complete(
            request_complete_event(correlation_id=event.correlation_id, status=status),
        )
        return True
    assert isinstance(answer.decision, Block)
    assert answer.decision.headers is not None
    assert 0 < int(answer.decision.headers["retry-after"]) <= 3600
    return False


async def test_all_processes_count_and_ban_together(running_redis: RedisServer, name: str) -> None:
    workers = [await worker(running_redis.url, name, after=3, decoys=["/.env"]) for _ in range(2)]
    assert [await passes(workers[number % 2]) for number in range(5)] == [True, True, True, False, False]
    assert not await passes(workers[0], "2001:db8:0:1::1", "/.env")
    assert not await passes(workers[1], "2001:db8:0:1:ffff::1")
    assert await passes(workers[1], "2001:db8:0:2::1")
    assert await passes(workers[1], "192.0.2.8")


async def test_one_strike_may_be_enough(running_redis: RedisServer, name: str) -> None:
    agent = await worker(running_redis.url, name, after=1)
    assert [await passes(agent) for _ in range(3)] == [True, False, False]


async def test_a_page_of_others_has_nobody_banned_there_either(running_redis: RedisServer, name: str) -> None:
    agent = await worker(running_redis.url, name, after=2)
    page = {"sec-fetch-site": "cross-site"}
    assert [await passes(agent, headers=page) for _ in range(4)] == [True, True, False, False]
    assert [await passes(agent) for _ in range(4)] == [True, True, False, False]


async def test_agents_of_one_redis_ban_for_themselves(running_redis: RedisServer, name: str) -> None:
    first, second = [await worker(running_redis.url, each, after=1) for each in (name, f"{name}-other")]
    same = await worker(running_redis.url, "any", after=1, namespace=name)
    assert await passes(first)
    assert [await passes(first), await passes(second, status=200), await passes(same)] == [False, True, False]


async def test_a_ban_says_why_and_can_be_lifted(running_redis: RedisServer, name: str) -> None:
    agent = await worker(running_redis.url, name, after=2, decoys=["/.env"])
    assert not await passes(agent, uri="/.env")
    event = request_headers_event(metadata=request_metadata(client_ip="192.0.2.7"))
    answer = await agent.on_request_headers(event)
    assert answer is not None
    assert [*answer.audit.rule_ids] == ["decoy:/.env"]
    await agent.lift("192.0.2.7")
    assert await passes(agent)
    await agent.lift("192.0.2.7")
    assert [await passes(agent) for _ in range(3)] == [True, True, False]


async def test_a_ban_ends_and_leaves_nothing(running_redis: RedisServer, name: str) -> None:
    agent = await worker(running_redis.url, name, after=2, duration=0.05)
    assert [await passes(agent) for _ in range(3)] == [True, True, False]
    with anyio.fail_after(PATIENCE):
        while not await passes(agent, status=200):  # noqa: ASYNC110 - the clock of another process
            await anyio.sleep(0.005)
    # What led to it does not count again.
    assert await passes(agent)
    assert await passes(agent, status=200)
    keys = [key for key in keys_of(running_redis) if name in key]
    assert keys
    assert all(running_redis.command("PTTL", key)[:2] not in (b":-", b"") for key in keys)


async def test_calls_of_redis_are_seen_to_wait(running_redis: RedisServer, name: str) -> None:
    agent = await worker(running_redis.url, name)
    assert all(may_suspend(hook) for hook in (agent.on_request_headers, agent.on_request_complete))


async def test_no_address_is_to_be_read_in_redis(running_redis: RedisServer, name: str) -> None:
    agent = await worker(running_redis.url, name, after=2, decoys=["/.env"])
    await passes(agent, "203.0.113.77")
    await passes(agent, "203.0.113.78", "/.env")
    keys = running_redis.command("KEYS", "*")
    assert name.encode() in keys
    assert b"203.0.113.7" not in keys


@pytest.mark.parametrize(("mode", "while_down"), [("closed", 503), ("open", 200)])
async def test_redis_that_is_down_is_the_failure_mode(
    redis: RedisServer, mode: FailureModeName, while_down: int
) -> None:
    agent = IpBan(decoys=["/.env"], storage=redis.url)
    breaker = CircuitBreakerConfig(reset_timeout=0.05, success_threshold=1)
    config = AgentConfig("ban", agent, failure_mode=mode, circuit_breaker=breaker, timeout=30.0)
    app = AgentMiddleware(App(), manager=AgentManager([config]))

    async def ask(path: str) -> int | None:
        client = Client(path=path)
        with anyio.fail_after(PATIENCE):
            await client.call(app)
        return client.status

    async def becomes(path: str, status: int) -> None:
        with anyio.fail_after(PATIENCE):
            while await ask(path) != status:  # noqa: ASYNC110 - of a process of its own
                await anyio.sleep(0.005)

    async with app.manager:
        assert [await ask("/") for _ in range(3)] == [while_down] * 3
        redis.start()
        await becomes("/.env", 403)
        assert await ask("/") == 403
        redis.kill()
        await becomes("/", while_down)
        redis.start()
        # Redis has forgotten it.
        await becomes("/", 200)


async def test_of_requests_that_were_under_way_no_more_are_answered_than_lead_to_a_ban(
    running_redis: RedisServer, name: str
) -> None:
    workers = [await worker(running_redis.url, name, after=3) for _ in range(2)]
    answered: list[bool] = []

    async def end(number: int) -> None:
        answer = await workers[number % 2].on_response_headers(
            response_headers_event(correlation_id=str(number), status=404)
        )
        answered.append(answer is None or answer.is_allow)

    for number in range(50):
        event = request_headers_event(metadata=request_metadata(client_ip="192.0.2.7", correlation_id=str(number)))
        assert await workers[number % 2].on_request_headers(event) is None
    async with anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(end, number)
    assert answered.count(True) == 3
    # Those that come later are refused as well.
    for number in range(40, 50):
        await end(number)
    assert answered.count(True) == 3
    # Nor an answer of any other kind: it may be the one that all of them were for.
    other = request_headers_event(metadata=request_metadata(client_ip="192.0.2.8", correlation_id="right"))
    assert await workers[0].on_request_headers(other) is None
    for _ in range(3):
        assert await passes(workers[1], "192.0.2.8")
    answer = await workers[0].on_response_headers(response_headers_event(correlation_id="right", status=200))
    assert answer is not None
    assert not answer.is_allow


@pytest.mark.parametrize("after", [1, 2])
async def test_what_was_under_way_makes_a_ban_no_longer_and_is_logged_once(
    running_redis: RedisServer, name: str, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asgi_agents")
    agent = await worker(running_redis.url, name, after=after)
    # So many that one would be left over, if they were counted again from one.
    for number in range(11):
        event = request_headers_event(metadata=request_metadata(client_ip="192.0.2.7", correlation_id=str(number)))
        assert await agent.on_request_headers(event) is None
    for number in range(11):
        await agent.on_request_complete(request_complete_event(correlation_id=str(number), status=404))
        if number == after - 1:
            (key,) = [key for key in keys_of(running_redis) if f":ban:{name}:" in key]
            running_redis.command("PEXPIRE", key, "60000")
    assert 0 < int(running_redis.command("PTTL", key).strip(b":\r\n")) <= 60_000
    assert len([text for text in caplog.messages if "is banned" in text]) == 1
    # Nor is anything left of it that would count when the ban is over.
    assert [each for each in keys_of(running_redis) if name in each] == [key]


def keys_of(server: RedisServer) -> list[str]:
    return [word for word in server.command("KEYS", "*").decode().split() if word[0] not in "*$"]


async def test_a_ban_is_lifted_where_it_is_known_whose_it_is(running_redis: RedisServer, name: str) -> None:
    agent = await worker(running_redis.url, name, after=1)
    assert [await passes(agent), await passes(agent)] == [True, False]
    script = IpBan(storage=running_redis.url)
    with pytest.raises(ConfigurationError, match=r"lift before .*; expected IpBan\(namespace=\.\.\.\)"):
        await script.lift("192.0.2.7")
    assert not await passes(agent)
    await IpBan(storage=running_redis.url, namespace=name).lift(ip_address("192.0.2.7"))
    assert await passes(agent, status=200)


async def test_on_trio_it_says_that_it_needs_asyncio(running_redis: RedisServer) -> None:
    def on_trio() -> str:
        async def ask() -> str:
            with pytest.raises(AgentsError) as error:
                await worker(running_redis.url, "ban")
            return str(error.value)

        return anyio.run(ask, backend="trio")

    text = await anyio.to_thread.run_sync(on_trio)
    assert text.startswith("IpBan with Redis needs asyncio")


@pytest.mark.parametrize("within", [0.1, 0.999, 1.5])
def test_strikes_are_counted_for_the_time_that_was_given_or_not_at_all(within: float) -> None:
    with pytest.raises(ConfigurationError, match=f"IpBan: within={within}, expected whole seconds where Redis counts"):
        IpBan(within=within, storage="redis://127.0.0.1")
    IpBan(within=within)
    IpBan(within=60.0, storage="redis://127.0.0.1")
