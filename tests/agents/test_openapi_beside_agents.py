"""OpenApiValidation next to agents that set headers for the app, as the ready-made ones do."""

from typing import Annotated, Any

import pytest
from fastapi import Cookie, FastAPI, Header
from fastapi.testclient import TestClient

from asgi_agents import Agent, AgentConfig, AgentResponse, HeaderOp, RequestHeadersEvent
from asgi_agents.agents import ApiKey, BasicAuth, OpenApiValidation, hash_password
from tests.unjudged.asking import config, protect

PROBLEM = "application/problem+json"
KEY = {"x-api-key": "s3cret"}


def orders() -> FastAPI:
    app = FastAPI()

    @app.get("/orders")
    async def of(x_user: Annotated[str, Header(max_length=8)], limit: int = 1) -> str:
        return x_user

    @app.get("/token")
    async def token(x_token: Annotated[int, Header()]) -> int:
        return x_token

    @app.get("/session")
    async def session(session: Annotated[int, Cookie()]) -> int:
        return session

    return app


class Sets(Agent):
    """Sets headers."""

    def __init__(self, **headers: str) -> None:
        self._ops = [HeaderOp.set(name.replace("_", "-"), value) for name, value in headers.items()]

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        return AgentResponse.allow(request_headers=self._ops)


def client_of(*agents: AgentConfig, **options: Any) -> TestClient:
    app = orders()
    protect(app, agents=[*agents, config(OpenApiValidation(app), "openapi", **options)])
    return TestClient(app)


@pytest.mark.parametrize("after", [[], ["api-key"]], ids=["together", "after"])
def test_a_header_that_an_agent_sets_is_none_that_a_client_has_to_send(after: list[str]) -> None:
    with client_of(config(ApiKey({"s3cret": "alice"}), "api-key"), after=after) as client:
        assert client.get("/orders", headers=KEY).json() == "alice"
        assert client.get("/orders", headers={**KEY, "x-user": "x" * 99}).json() == "alice"
        refused = client.get("/orders?limit=x", headers=KEY)
        assert [error["at"] for error in refused.json()["errors"]] == ["limit"], "all else is judged"
        # Another header of the client is judged on the same app.
        assert client.get("/token", headers={**KEY, "x-token": "x"}).headers["content-type"] == PROBLEM
        stranger = client.get("/orders?limit=x" if after else "/orders")
        assert stranger.status_code == 401


@pytest.mark.parametrize("order", [0, 1], ids=["before", "behind"])
def test_the_order_of_the_agents_does_not_matter(order: int) -> None:
    app = orders()
    agents = [config(ApiKey({"s3cret": "alice"}), "api-key"), config(OpenApiValidation(app), "openapi")]
    protect(app, agents=agents[::-1] if order else agents)
    with TestClient(app) as client:
        assert client.get("/orders", headers=KEY).json() == "alice"


def test_basic_auth_too() -> None:
    with client_of(config(BasicAuth({"alice": hash_password("s3cret")}), "basic")) as client:
        assert client.get("/orders", auth=("alice", "s3cret")).json() == "alice"


@pytest.mark.parametrize("name", ["X-Token", "x_token"])
@pytest.mark.parametrize("declared", ["sets", "replaces"])
def test_what_the_client_sends_in_such_a_header_is_not_judged(declared: str, name: str) -> None:
    with client_of(config(Sets(x_token="7"), "sets", **{declared: {"x-token"}})) as client:
        for headers in ({}, {name: "no number"}, {name: "1"}):
            assert client.get("/token", headers=headers).json() == 7


@pytest.mark.parametrize("declared", ["sets", "replaces"])
def test_what_an_agent_has_set_before_is_judged(declared: str) -> None:
    with client_of(config(Sets(x_token="no number"), "sets", **{declared: {"x-token"}}), after=["sets"]) as client:
        refused = client.get("/token", headers={"x-token": "1"})
        assert refused.headers["content-type"] == PROBLEM
        assert [error["at"] for error in refused.json()["errors"]] == ["x-token"]


def test_cookies_that_an_agent_sets_are_not_judged_of_the_client() -> None:
    with client_of(config(Sets(cookie="session=7"), "sets", replaces={"cookie"})) as client:
        assert client.get("/session").json() == 7
        assert client.get("/session", headers={"cookie": "session=x"}).json() == 7


def test_a_shadow_agent_sets_nothing_and_the_client_is_held_to_the_header() -> None:
    with client_of(config(Sets(x_token="7"), "sets", sets={"x-token"}, enforce=False)) as client:
        assert client.get("/token").headers["content-type"] == PROBLEM
        assert client.get("/token", headers={"x-token": "1"}).json() == 1


def test_what_no_agent_is_known_to_set_is_the_clients() -> None:
    with client_of(config(Sets(x_token="7"), "sets")) as client:
        assert client.get("/token").headers["content-type"] == PROBLEM
    with client_of(config(Sets(x_token="7"), "sets"), after=["sets"]) as client:
        assert client.get("/token").json() == 7
