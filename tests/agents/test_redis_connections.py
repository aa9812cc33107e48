"""URLs of Redis: what can not work is refused at once, and what would change how answers are read is not taken."""

import re
from itertools import count
from typing import Any

import pytest

from asgi_agents import AgentResponse, ConfigurationError, ConfigureEvent
from asgi_agents.agents import IpBan, RateLimit
from asgi_agents.testing import request_headers_event, request_metadata

from .redis_server import RedisServer

_NUMBERS = count()


# The client of Redis runs on asyncio alone.
@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("make", [lambda url: IpBan(storage=url), lambda url: RateLimit("1/hour", storage=url)])
@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@127.0.0.1:port",
        "redis://:hunter2@127.0.0.1?db=first",
        "redis://:hunter2@127.0.0.1?max_connections=-1",
        "redis://:hunter2@127.0.0.1?nonsense=hunter2",
        "redis://:hunter2@127.0.0.1?protocol=9",
        "redis://:hunter2@127.0.0.1?connection_class=hunter2",
        "redis://:hunter2@127.0.0.1?parser_class=hunter2",
        "redis://:hunter2@127.0.0.1?ssl_cert_reqs=none",
        "unix:///run/redis.sock?host=hunter2&nonsense=1",
        "rediss://:hunter2@127.0.0.1?ssl_cert_reqs=hunter2",
        "rediss://:hunter2@127.0.0.1?ssl_ca_certs=/hunter2",
        "rediss://:hunter2@127.0.0.1?ssl_min_version=hunter2",
        "rediss://:hunter2@127.0.0.1?ssl_ciphers=hunter2",
    ],
)
def test_a_url_that_can_not_work_is_a_configuration_error(make: Any, url: str) -> None:
    with pytest.raises(
        ConfigurationError, match="storage is no URL that the client of Redis can read, or has"
    ) as error:
        make(url)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        *("redis://h", "redis://user:secret@h:6380/3?socket_timeout=1&health_check_interval=10&client_name=shop"),
        *("unix:///run/redis.sock?db=1", "rediss://h?ssl_cert_reqs=required&ssl_check_hostname=True"),
    ],
)
def test_a_url_that_may_work_is_taken_and_nobody_is_asked(url: str) -> None:
    IpBan(storage=url)
    RateLimit("1/hour", storage=url)


@pytest.mark.parametrize("option", ["decode_responses=True", "encoding=utf-16", "encoding=nonsense", "retry=hunter2"])
async def test_what_a_url_says_of_how_answers_are_read_is_not_taken(running_redis: RedisServer, option: str) -> None:
    url, name = f"{running_redis.url}?{option}", f"options-{next(_NUMBERS)}"
    ban, rate = IpBan(decoys=["/.env"], storage=url), RateLimit("1/hour", storage=url)
    event = request_headers_event(uri="/.env", metadata=request_metadata(client_ip="192.0.2.7"))
    answers: list[AgentResponse | None] = []
    for agent in (ban, rate):
        await agent.on_configure(ConfigureEvent(agent_id=name))
        answers += [await agent.on_request_headers(event) for _ in range(2)]
    assert [None if answer is None else answer.is_allow for answer in answers] == [False, False, True, False]
    assert answers[1] is not None
    assert [*answers[1].audit.rule_ids] == ["decoy:/.env"]
    # Under the names that all others know.
    assert re.search(name.encode(), running_redis.command("KEYS", "asgi-agents*"))
