"""In which apps a recording finds agents, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount

from asgi_agents import (
    AgentConfig,
    AgentMiddleware,
    ConfigurationError,
    FailureMode,
    UnknownAgentError,
    protect,
)
from asgi_agents.recording import record

from .judges import Heads, Judge, answering, ask, exchanges_in, fail, guarded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traffic.jsonl"


def _wrapped() -> Any:
    return guarded(Heads(lambda event: None))


def _protected() -> Any:
    app = FastAPI()
    protect(app, agents=[AgentConfig("waf", Heads(lambda event: None))])
    return app


def _added() -> Any:
    app = Starlette(middleware=[Middleware(AgentMiddleware, agents=[AgentConfig("waf", Heads(lambda event: None))])])
    app.mount("/inner", answering())
    return app


def _mounted() -> Any:
    return Starlette(routes=[Mount("/inner", _wrapped())])


@pytest.mark.parametrize("make", [_wrapped, _protected, _added, _mounted])
async def test_the_agents_of_an_app_are_found_wherever_they_stand(make: Callable[[], Any], path: Path) -> None:
    app = make()
    async with record(app, path):
        await ask(app, "/inner/x")
    assert [exchange.about.agent for exchange in exchanges_in(path)] == ["waf"]


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"bodies": 1}, ConfigurationError, "record: bodies=1, expected True or False"),
        ({"redact": "x"}, ConfigurationError, "record: redact='x', expected a function or None"),
        ({"agents": "waf"}, ConfigurationError, r"record: agents='waf', expected a list: \['waf'\]"),
        ({"max_bytes": 100}, ConfigurationError, "record: max_bytes=100, expected a whole number of at least 4096"),
        ({"agents": ["waf", "pii"]}, UnknownAgentError, "record: no agent has the id 'pii'; there are: waf"),
        ({"app": FastAPI()}, ConfigurationError, "record: app=a FastAPI, in which there are no agents"),
        ({"app": None}, ConfigurationError, "record: app=None, in which there are no agents"),
    ],
)
def test_what_can_not_work_is_refused(
    settings: dict[str, Any], kind: type[Exception], message: str, path: Path
) -> None:
    given = {"app": guarded(Judge()), **settings}
    with pytest.raises(kind, match=message):
        record(given.pop("app"), path, **given).start()
    assert not path.exists()


def test_failure_modes_are_those_of_the_app_while_it_is_recorded(path: Path) -> None:
    """A recording passes on what it is given, whatever that is."""

    async def run() -> list[int]:
        statuses = []
        for mode in (FailureMode.OPEN, FailureMode.CLOSED):
            app = guarded(Heads(lambda event: fail(ValueError())), failure_mode=mode)
            async with record(app, path):
                statuses.append(await ask(app, "/"))
        return statuses

    assert anyio.run(run) == [200, 503]
