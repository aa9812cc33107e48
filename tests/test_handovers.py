"""Agents that are replaced while they are given another configuration: who is asked, who waits, and what is in force.

An agent that is one object, or at one address, has one configuration, whichever guard hands it over.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import pytest

from asgi_agents import Agent, AgentConfig, AgentError, AgentResponse, EventType, FailureMode, HttpTransport

from .test_former_guards import Case, Way, as_object, each_way, guarded, over_http, over_stream, until

# What puts an agent in place that is configured first


async def replace(case: Case, config: AgentConfig) -> None:
    await case.manager.replace_agent(config, drain_timeout=1)


async def reload(case: Case, config: AgentConfig) -> None:
    await case.change(config)


Put = Callable[[Case, AgentConfig], Awaitable[None]]
each_put = pytest.mark.parametrize("put", [replace, reload], ids=lambda put: put.__name__)


# What is under way meanwhile, and takes five seconds


async def a_push(case: Case, mark: str) -> None:
    await case.manager.push_config("a", {"mark": mark, "seconds": 5})


async def a_replacement(case: Case, mark: str) -> None:
    await replace(case, case.make("a", mark, seconds=5))


async def a_reload(case: Case, mark: str) -> None:
    await reload(case, case.make("a", mark, seconds=5))


UnderWay = Callable[[Case, str], Awaitable[None]]
each_under_way = pytest.mark.parametrize(
    "under_way", [a_push, a_replacement, a_reload], ids=lambda under_way: under_way.__name__
)


# Nobody is put in place who was not asked


class Refusing(Agent):
    """An agent that takes no configuration."""

    async def on_configure(self, event: object) -> AgentResponse:
        return AgentResponse.block(400, "no such rules")

    async def on_request_headers(self, event: object) -> None: ...


def _unreachable(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


# An agent that can't be configured, for an id whose agent is reached like that.
FAILING: Final[list[tuple[Way, Callable[[], Any]]]] = [
    (over_http, lambda: HttpTransport("http://typo", transport=httpx.MockTransport(_unreachable))),
    (over_http, lambda: "unix:///nowhere/typo.sock"),
    (over_stream, lambda: "unix:///nowhere/typo.sock"),
    (over_stream, lambda: HttpTransport("http://typo", transport=httpx.MockTransport(_unreachable))),
    (as_object, Refusing),
    (as_object, lambda: "unix:///nowhere/typo.sock"),
]


@pytest.mark.parametrize(("way", "transport"), FAILING)
@each_under_way
@each_put
async def test_one_that_fails_is_not_put_in_place_while_the_other_is_given_the_same(
    tmp_path: Path, way: Way, transport: Callable[[], Any], under_way: UnderWay, put: Put
) -> None:
    async with guarded(way, tmp_path, "v1") as case, anyio.create_task_group() as tasks:
        tasks.start_soon(under_way, case, "v2")
        await until(lambda: case.judge.asking > 0)
        failing = AgentConfig(
            "a",
            transport(),
            events={EventType.REQUEST_HEADERS},
            failure_mode=FailureMode.OPEN,
            config={"mark": "v2", "seconds": 5},
        )
        with pytest.raises(AgentError):
            await put(case, failing)
        await case.check("v2")


@each_under_way
@each_put
@each_way
async def test_one_that_gives_the_same_as_the_other_was_given_meanwhile_is_configured(
    tmp_path: Path, way: Way, under_way: UnderWay, put: Put
) -> None:
    async with guarded(way, tmp_path, "v1") as case, anyio.create_task_group() as tasks:
        tasks.start_soon(under_way, case, "v2")
        await until(lambda: case.judge.asking > 0)
        await put(case, case.make("a", "v2", seconds=5))
        # Before anybody calls it, or looks after it.
        assert case.registry.guard("a").configured
        await case.check("v2")
