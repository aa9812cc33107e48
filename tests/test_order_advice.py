"""What the log says of agents that read headers before, or without, the agent that sets them."""

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    AgentRoute,
    ConfigurationError,
    EventType,
    HeaderOp,
    guard_router,
    protect,
)
from asgi_agents.agents import ApiKey, JwtAuth, Opa, RateLimit
from asgi_agents.routing.order_advice import set_around, setting_around
from asgi_agents.transports.http import HttpTransport

_USER = "trusts 'x-user', which no agent before it"


class Reader(Agent):
    """Says of a header that it reads it, or trusts it."""

    def __init__(self, read: Collection[str] = (), trusted: Collection[str] = ()) -> None:
        self.read_headers, self.trusted_headers = read, trusted

    async def on_request_headers(self, event: Any) -> None:
        return None


class Setter(Agent):
    async def on_request_headers(self, event: Any) -> AgentResponse:
        return AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice")])


class OfBodies(Agent):
    async def on_request_body_chunk(self, event: Any) -> None:
        return None


async def endpoint(request: Any) -> PlainTextResponse:
    return PlainTextResponse("")


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return found


def start(app: Any) -> None:
    with TestClient(app) as client:
        client.get("/o")
        client.get("/o")


def started(caplog: pytest.LogCaptureFixture, agents: Sequence[AgentConfig], **options: Any) -> list[str]:
    app = Starlette(routes=[Route("/o", endpoint), Route("/p", endpoint)])
    protect(app, agents=agents, **options)
    start(app)
    return told(caplog)


def auth(agent_id: str = "auth", agent: Any = None, **options: Any) -> AgentConfig:
    return AgentConfig(agent_id, agent or Setter(), **{"sets": {"x-user"}, **options})


TRUSTS = Reader(trusted=["X-User"])
READS = Reader(read=["X_User"])


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("reader", [TRUSTS, READS], ids=["trusts", "reads"])
def test_an_agent_that_is_asked_at_the_same_time_as_the_one_that_sets_its_header_is_told(
    reader: Agent, order: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert started(caplog, [auth(), AgentConfig("rate", reader)][::order]) == [
        "agent 'rate' reads 'x-user' before 'auth' has set it, and so without it; write AgentConfig('rate', ...,"
        " after=['auth'])"
    ]


def test_several_that_set_it_are_all_named(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = started(caplog, [auth("a"), AgentConfig("rate", TRUSTS), auth("b")])

    assert "before 'a', 'b' have set it" in line
    assert "after=['a', 'b']" in line


@pytest.mark.parametrize("reader", [TRUSTS, READS], ids=["trusts", "reads"])
def test_one_that_comes_after_it_is_not_told(reader: Agent, caplog: pytest.LogCaptureFixture) -> None:
    assert started(caplog, [auth(), AgentConfig("rate", reader, after=["auth"])]) == []


def test_it_may_come_after_it_by_way_of_another_one(caplog: pytest.LogCaptureFixture) -> None:
    between = AgentConfig("between", Setter(), after=["auth"])
    assert started(caplog, [auth(), between, AgentConfig("rate", TRUSTS, after=["between"])]) == []


def test_but_not_by_way_of_one_that_is_not_on_the_route(caplog: pytest.LogCaptureFixture) -> None:
    agents = [auth(), AgentConfig("between", Setter(), after=["auth"]), AgentConfig("rate", TRUSTS, after=["between"])]
    (line,) = started(caplog, agents, routes=[AgentRoute("/o", ["auth", "rate"])], default_agents=agents_of(agents))

    assert line.startswith("agent 'rate' reads 'x-user' on '/o' before 'auth' has set it")


def agents_of(agents: Sequence[AgentConfig]) -> list[str]:
    return [agent.id for agent in agents]


def test_a_header_that_nobody_sets_is_told_of_who_trusts_it(caplog: pytest.LogCaptureFixture) -> None:
    assert started(caplog, [AgentConfig("rate", TRUSTS)]) == [
        "agent 'rate' trusts 'x-user', which no agent before it sets, so that clients choose it; name it in sets of the"
        " agent that sets it, and that agent in after of AgentConfig('rate')"
    ]
    assert started(caplog, [AgentConfig("rate", READS)]) == []


@pytest.mark.parametrize(
    "other",
    [
        lambda: AgentConfig("auth", Setter()),
        lambda: auth(enforce=False),
        lambda: auth(agent=OfBodies()),
        lambda: AgentConfig("auth", Setter(), sets={"x-plan"}),
    ],
    ids=["does not say so", "shadow", "too late", "another one"],
)
def test_an_agent_that_does_not_set_it_for_others_changes_nothing(
    other: Callable[[], AgentConfig], caplog: pytest.LogCaptureFixture
) -> None:
    lines = started(caplog, [other(), AgentConfig("rate", TRUSTS, after=["auth"])])

    assert [line for line in lines if _USER in line] != []


def test_what_an_agent_replaces_is_set_by_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    exchanging = AgentConfig("auth", Setter(), replaces={"x-user"})
    assert started(caplog, [exchanging, AgentConfig("rate", TRUSTS, after=["auth"])]) == []


def test_an_agent_elsewhere_sets_what_its_configuration_says(caplog: pytest.LogCaptureFixture) -> None:
    remote = HttpTransport("http://127.0.0.1:9/")
    agents = [auth(agent=remote, events={EventType.REQUEST_HEADERS}), AgentConfig("rate", TRUSTS, after=["auth"])]
    app = Starlette(routes=[Route("/o", endpoint)])
    protect(app, agents=agents)
    start(app)

    assert not any(_USER in line for line in told(caplog))


def test_each_agent_is_told_once_with_the_first_of_its_routes(caplog: pytest.LogCaptureFixture) -> None:
    agents = [auth(), AgentConfig("rate", TRUSTS, after=["auth"])]
    routes = [AgentRoute("/o", ["rate"]), AgentRoute("/p", [("rate", "open")])]

    assert started(caplog, agents, routes=routes, default_agents=["auth", "rate"]) == [
        "agent 'rate' trusts 'x-user', which no agent before it on '/o' (and 1 more) sets, so that clients choose it;"
        " add 'auth' there, which sets it"
    ]


def test_what_no_route_matches_is_looked_at_too(caplog: pytest.LogCaptureFixture) -> None:
    agents = [auth(), AgentConfig("rate", TRUSTS, after=["auth"])]
    (line,) = started(caplog, agents, routes=[AgentRoute("/o", ["auth", "rate"])], default_agents=["rate"])

    assert "no agent before it on paths that match no route sets" in line


def test_so_are_policies_of_endpoints(caplog: pytest.LogCaptureFixture) -> None:
    app, router = FastAPI(), APIRouter()
    router.add_api_route("/o", endpoint)
    guard_router(router, "rate")
    app.include_router(router)
    protect(app, agents=[auth(), AgentConfig("rate", TRUSTS, after=["auth"])])
    start(app)

    assert any(f"{_USER} on '/o' sets" in line for line in told(caplog))


def test_an_after_that_never_has_an_effect_is_told(caplog: pytest.LogCaptureFixture) -> None:
    agents = [AgentConfig("a", Reader()), AgentConfig("b", Reader(), after=["a"])]

    assert started(caplog, agents, routes=[AgentRoute("/o", ["b"])], default_agents=["a"]) == [
        "AgentConfig('b'): after has no effect for 'a', because no route has both agents; add 'a' to the routes of 'b',"
        " or leave it out"
    ]
    assert started(caplog, agents, routes=[AgentRoute("/o", ["b"])], default_agents=["a", "b"]) == []


def rate_behind(inner: Any) -> AgentMiddleware:
    return AgentMiddleware(inner, agents=[AgentConfig("rate", TRUSTS)])


def around_the_start() -> Any:
    return AgentMiddleware(rate_behind(Starlette(routes=[Route("/o", endpoint)])), agents=[auth()])


def around_a_mount() -> Any:
    app = Starlette(routes=[Mount("/", rate_behind(Starlette(routes=[Route("/o", endpoint)])))])
    return AgentMiddleware(app, agents=[auth()])


@pytest.mark.parametrize("make", [around_the_start, around_a_mount])
def test_the_agents_of_a_middleware_around_have_set_it_by_then(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    start(make())

    assert told(caplog) == []
    assert set_around() == frozenset()


def test_those_of_a_middleware_within_have_not(caplog: pytest.LogCaptureFixture) -> None:
    inner = AgentMiddleware(Starlette(routes=[Route("/o", endpoint)]), agents=[auth()])
    start(rate_behind(inner))

    assert any(_USER in line for line in told(caplog))


def test_what_is_set_around_is_forgotten_behind_it() -> None:
    with setting_around({"a"}):
        with setting_around({"b"}):
            assert set_around() == {"a", "b"}
        assert set_around() == {"a"}
    assert set_around() == frozenset()


@pytest.mark.parametrize("field", ["read_headers", "trusted_headers"])
@pytest.mark.parametrize("given", ["x-user", 5, ["x user"], [5]])
def test_what_is_no_list_of_names_is_refused(field: str, given: Any) -> None:
    agent = Reader()
    setattr(agent, field, given)
    with pytest.raises(ConfigurationError, match=rf"AgentConfig\('a'\): Reader\.{field}"):
        AgentManager([AgentConfig("a", agent)])


@pytest.mark.parametrize(
    ("agent", "read", "trusted"),
    [
        (lambda: RateLimit("1/minute"), set(), set()),
        (lambda: RateLimit("1/minute", by="user"), {"x-user"}, {"x-user"}),
        (lambda: RateLimit("1/minute", by=["path", "user"], user_header="X-Who"), {"x-who"}, {"x-who"}),
        (lambda: RateLimit("1/minute", by=["header:x-plan", "ip"]), {"x-plan"}, set()),
        (lambda: Opa("http://127.0.0.1:8181/v1/data/a"), {"x-user", "x-scopes"}, set()),
    ],
)
def test_the_ready_made_agents_say_what_they_read(agent: Any, read: set[str], trusted: set[str]) -> None:
    made = agent()
    assert (set(made.read_headers), set(made.trusted_headers)) == (read, trusted)


READY_MADE = {
    "rate by user": lambda **options: AgentConfig("it", RateLimit("1/minute", by="user"), **options),
    "rate by header": lambda **options: AgentConfig("it", RateLimit("1/minute", by="header:x-user"), **options),
    "opa": lambda **options: AgentConfig("it", Opa("http://127.0.0.1:9/v1/data/a"), **options),
}
SETTERS: dict[str, Callable[[], Agent]] = {
    "api-key": lambda: ApiKey({"k": "alice"}),
    "jwt": lambda: JwtAuth("http://127.0.0.1:9/keys", audience="a", issuer="b", allow_http=True),
}


@pytest.mark.parametrize("setter", SETTERS)
@pytest.mark.parametrize("reader", READY_MADE)
@pytest.mark.parametrize("after", [True, False])
def test_ready_made_agents_are_put_in_order(
    reader: str, setter: str, after: bool, caplog: pytest.LogCaptureFixture
) -> None:
    agents = [AgentConfig("who", SETTERS[setter]()), READY_MADE[reader](after=["who"] if after else [])]
    lines = [line for line in started(caplog, agents) if "'x-user'" in line]

    assert len(lines) == (0 if after else 1)
