"""What is put in the wrong place says where it belongs."""

import functools
from typing import Any, cast

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route as AppRoute
from starlette.testclient import TestClient

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentContext,
    AgentManager,
    AgentMiddleware,
    ConfigurationError,
    NoAgentContextError,
    Route,
    protect,
    status_app,
)
from asgi_agents.messages.naming import named


class Waf(Agent):
    async def on_request_headers(self, event: Any) -> None: ...


def config() -> AgentConfig:
    return AgentConfig("waf", Waf())


async def own_agents(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(AgentContext.of(request).decision.is_allow))


def an_app() -> Starlette:
    return Starlette(routes=[AppRoute("/guarded", own_agents), AppRoute("/open", own_agents)])


def test_the_middleware_in_place_of_a_function_says_so_with_the_first_request() -> None:
    from starlette.middleware.base import BaseHTTPMiddleware

    app = an_app()
    app.add_middleware(BaseHTTPMiddleware, dispatch=cast(Any, AgentMiddleware))  # as app.middleware("http") does

    with pytest.raises(ConfigurationError, match=r'as @app\.middleware\("http"\) does .*protect\(app, agents='):
        TestClient(app).get("/open")


@pytest.mark.parametrize("other", [[], "waf", AgentManager()], ids=["list", "text", "manager"])
def test_nothing_comes_by_position_beside_the_app(other: Any) -> None:
    with pytest.raises(ConfigurationError, match="beside the app, expected arguments by name"):
        AgentMiddleware(an_app(), other)


@pytest.mark.parametrize("app", [None, "app", 1])
def test_what_is_no_app_is_not_wrapped(app: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"AgentMiddleware: app is .*, expected an ASGI app"):
        AgentMiddleware(app, agents=[config()])


@pytest.mark.parametrize(
    "given", [[config()], (), None, "waf", AgentManager], ids=["list", "tuple", "none", "text", "class"]
)
def test_the_status_page_says_how_a_manager_is_made(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"expected an AgentManager: manager = AgentManager\("):
        status_app(given)


def test_and_where_the_middleware_has_its_own() -> None:
    with pytest.raises(ConfigurationError, match="expected its AgentManager, which is in its attribute manager"):
        status_app(protect(an_app(), agents=[config()]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given", [Waf(), Waf, "waf", None, {"waf": Waf()}], ids=["agent", "class", "id", "None", "dict"]
)
async def test_what_is_no_agent_config_is_nowhere_taken_for_one(given: Any) -> None:
    manager = AgentManager([config()])
    with pytest.raises(ConfigurationError, match=r"AgentManager: agents contains .*, expected AgentConfig\("):
        protect(an_app(), agents=[given])
    with pytest.raises(ConfigurationError, match=r"AgentManager\.add_agent: config=.*, expected AgentConfig\("):
        await manager.add_agent(given)
    with pytest.raises(ConfigurationError, match=r"AgentManager\.replace_agent: config=.*, expected AgentConfig\("):
        await manager.replace_agent(given)


def test_an_agent_config_in_a_route_is_refused_with_its_id() -> None:
    with pytest.raises(ConfigurationError, match=r"\AAgentRoute\('/a'\): agents contains .*, expected its id: 'waf'"):
        Route("/a", [config()])  # type: ignore[list-item]
    with pytest.raises(
        ConfigurationError, match=r"\AAgentMiddleware: default_agents contains .*, expected its id: 'waf'"
    ):
        protect(an_app(), agents=[config()], default_agents=[config()])  # type: ignore[list-item]


def test_a_handler_finds_its_agents_or_is_told_that_there_are_none() -> None:
    app = an_app()
    protect(app, agents=[config()], routes=[Route("/guarded", ["waf"])])
    client = TestClient(app)

    assert client.get("/guarded").text == "True"
    with pytest.raises(NoAgentContextError, match="'/open' asks for its agents, and this path has none"):
        client.get("/open")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("waf", "'waf'"),
        (1.5, "1.5"),
        (None, "None"),
        ("x" * 200, "'" + "x" * 79 + "..."),
        (Waf, "the class Waf"),
        (Waf(), "a Waf"),
        (config(), "an AgentConfig"),
        (an_app, "the function an_app"),
        (functools.partial(an_app), "a partial"),
        ([{"token": "s3cret"}], "a list"),
    ],
    ids=range(10),
)
def test_a_value_is_named_as_a_user_would_point_at_it(value: object, name: str) -> None:
    assert named(value) == name
