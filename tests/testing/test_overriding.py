"""Other agents in the places of those of an app: where they are found, and that all is as before afterwards."""

import gc
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, cast
from weakref import ref

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    AgentRoute,
    AgentsError,
    CircuitBreakerConfig,
    ConfigurationError,
    EventType,
    FailureMode,
    GuardrailResponse,
    HeaderOp,
    HttpTransport,
    RequestHeadersEvent,
    UnknownAgentError,
    protect,
)
from asgi_agents.guardrails import Guardrail
from asgi_agents.registry import AgentRegistry
from asgi_agents.testing import (
    FakeAgent,
    agent_down,
    assert_blocked_by,
    assert_failed_open,
    breaker_open,
    override_agents,
)

from .apps import GUARDED, NOBODY, aget, get, left_as_it_was, protected, remote, shop

BLOCK = AgentResponse.block(403, "no")


class Listens(Agent):
    """A real agent in the process."""

    def __init__(self) -> None:
        self.asked = 0

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        self.asked += 1
        return None


@pytest.mark.parametrize("make", GUARDED.values(), ids=GUARDED)
def test_an_agent_is_found_wherever_it_is_before_the_app_starts_and_put_back(make: Callable[[], ASGIApp]) -> None:
    app, fake = make(), FakeAgent()
    with left_as_it_was(app):
        with override_agents(app, waf=fake):
            assert get(app).text == "lamp"
            assert [event.uri for event in fake.received_of(RequestHeadersEvent)] == ["/orders"]
        with override_agents(app, waf=FakeAgent(BLOCK)):
            assert_blocked_by(get(app), "waf")
    assert (get(app).status_code, len(fake.received)) == (503, 1)


@pytest.mark.parametrize("make", GUARDED.values(), ids=GUARDED)
async def test_it_is_so_in_coroutine_functions(make: Callable[[], ASGIApp]) -> None:
    app = make()
    with left_as_it_was(app), override_agents(app, waf=FakeAgent(BLOCK)):
        assert_blocked_by(await aget(app), "waf")
    assert (await aget(app)).status_code == 503


def test_an_app_that_runs_has_its_agents_replaced_and_back() -> None:
    real = Listens()
    app = protected(AgentConfig("waf", real))
    with TestClient(app) as client, left_as_it_was(app):
        assert client.get("/orders").status_code == 200
        with override_agents(app, waf=FakeAgent(BLOCK)):
            assert client.get("/orders").status_code == 403
        assert client.get("/orders").status_code == 200
    assert real.asked == 2


def test_an_agent_that_is_replaced_before_the_app_starts_is_not_connected() -> None:
    app = protected(remote(require_at_startup=True, config={"rules": 1}))
    fake = FakeAgent()
    with override_agents(app, waf=fake):
        assert get(app).status_code == 200
    assert fake.configurations == [{"rules": 1}]
    with pytest.raises(AgentsError, match="required at startup"):
        get(app)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("enter", [agent_down, breaker_open, lambda app, waf: override_agents(app, waf=FakeAgent())])
def test_overrides_are_undone_after_exceptions(enter: Callable[..., Any], error: type[BaseException]) -> None:
    app = protected()
    with left_as_it_was(app), pytest.raises(error), enter(app, "waf"):  # noqa: PT012 - the block is left by it
        get(app)
        raise error


def test_the_innermost_of_nested_overrides_counts() -> None:
    app = protected()
    with left_as_it_was(app), override_agents(app, waf=FakeAgent(AgentResponse.block(401))):
        assert get(app).status_code == 401
        with override_agents(app, waf=FakeAgent(AgentResponse.block(402))):
            assert get(app).status_code == 402
            with agent_down(app, "waf"):
                assert get(app).status_code == 503
            assert get(app).status_code == 402
        assert get(app).status_code == 401


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
def test_overrides_may_end_in_any_order(order: list[int]) -> None:
    """As fixtures of several scopes, or an ExitStack in a fixture, may have it."""
    app = protected()
    with left_as_it_was(app):
        stacks = [ExitStack() for _ in order]
        for number, stack in enumerate(stacks):
            stack.enter_context(override_agents(app, waf=FakeAgent(AgentResponse.block(410 + number))))
        left = {0, 1, 2}
        for number in order:
            assert get(app).status_code == 410 + max(left)
            stacks[number].close()
            left.remove(number)
    assert get(app).status_code == 503


def test_all_middlewares_that_have_the_agent_get_the_new_one() -> None:
    inner = shop()
    inner.add_middleware(AgentMiddleware, agents=[remote("waf"), remote("only-inside")])
    app = Starlette(routes=[Mount("/inside", inner), *shop().routes])
    protect(app, agents=[remote("waf"), remote("only-outside", failure_mode="open")])
    fake = FakeAgent()
    with left_as_it_was(app), override_agents(app, {"only-inside": FakeAgent(BLOCK)}, waf=fake) as recorded:
        response = get(app, "/inside/orders")
        assert_blocked_by(response, "only-inside")
        assert_failed_open(response, "only-outside")
    assert len(fake.received) == 2
    assert [record.decided_by for record in recorded.records] == [None, "only-inside"]


def test_middlewares_that_share_a_manager_share_the_override() -> None:
    manager = AgentManager([remote()])
    inner, app = shop(), Starlette()
    inner.add_middleware(AgentMiddleware, manager=manager, routes=[AgentRoute("/orders", ["waf"])])
    app.mount("/inside", inner)
    protect(app, manager=manager, routes=[AgentRoute("/other", ["waf"])])
    fake = FakeAgent()
    with left_as_it_was(app), override_agents(app, waf=fake):
        assert get(app, "/inside/orders").status_code == 200
    assert len(fake.received) == 1


def test_the_routes_and_their_failure_modes_stay() -> None:
    app = protected(
        remote("waf"),
        routes=[AgentRoute("/orders", [("waf", FailureMode.OPEN)], methods=["POST"]), AgentRoute("/orders", ["waf"])],
    )
    with agent_down(app, "waf"), TestClient(app) as client:
        assert client.get("/orders").status_code == 503
        assert_failed_open(client.post("/orders"), "waf")
    with override_agents(app, waf=FakeAgent()) as recorded, TestClient(app) as client:
        client.get("/orders")
        client.get("/elsewhere")
    assert [record.route for record in recorded.records] == ["/orders"]


def test_limits_deadlines_and_the_breaker_of_the_configuration_hold_for_the_fake() -> None:
    app = protected(remote(circuit_breaker=CircuitBreakerConfig(failure_threshold=2), timeout=0.25))
    guard_before = state(app)
    with override_agents(app, waf=FakeAgent(ConnectionError())), TestClient(app) as client:
        assert [client.get("/orders").text for _ in range(3)] == ["Agent unavailable"] * 2 + ["Service unavailable"]
        assert manager_of(app).statistics()["waf"].breaker == "open"
        assert manager_of(app).metrics["waf"].outcomes == {"error": 2, "breaker_open": 1}
    assert state(app) == guard_before == ("closed", 0)


def manager_of(app: Starlette) -> AgentManager:
    from asgi_agents.placement import middlewares_of

    [middleware] = middlewares_of(app)
    return middleware.manager


def state(app: Starlette) -> tuple[object, int]:
    manager = manager_of(app)
    return manager.statistics()["waf"].breaker, manager.metrics["waf"].calls


def test_what_an_agent_may_set_stays() -> None:
    async def user(request: Any) -> Any:
        from starlette.responses import PlainTextResponse

        return PlainTextResponse(request.headers.get("x-user", "nobody"))

    app = Starlette()
    app.add_route("/", user)
    protect(app, agents=[remote("auth", sets={"x-user"})])
    alice = FakeAgent(AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice")]))
    for fake, expected in ((alice, "alice"), (FakeAgent(), "nobody")):
        with override_agents(app, auth=fake):
            assert get(app, "/", headers={"x-user": "root"}).text == expected


def test_a_guardrail_asks_the_new_agent() -> None:
    app = shop()
    guardrail = Guardrail("pii", on={"input"}, hold=10, action="block")
    protect(app, agents=[remote("pii", events={EventType.GUARDRAIL_INSPECT})], guardrails=[guardrail])
    clean, dirty = FakeAgent(), FakeAgent(guardrail_inspect=GuardrailResponse(detected=True))
    for fake, expected in ((clean, 200), (dirty, 400)):
        with override_agents(app, pii=fake), TestClient(app) as client:
            assert client.post("/orders", json={"text": "my mail"}).status_code == expected
        assert fake.received


def test_an_agent_that_a_guardrail_can_not_ask_is_refused() -> None:
    app = shop()
    config = remote("pii", events={EventType.GUARDRAIL_INSPECT, EventType.REQUEST_HEADERS})
    protect(app, agents=[config], guardrails=[Guardrail("pii", on={"input"}, hold=10)])
    refused = pytest.raises(ConfigurationError, match="guardrail_inspect")
    with left_as_it_was(app), refused, override_agents(app, pii=Listens()):
        pytest.fail("it was entered")


@pytest.mark.parametrize("config", [remote(), remote("waf", "tcp://127.0.0.1:1"), AgentConfig("waf", Listens())])
def test_an_agent_is_where_the_one_is_whose_place_it_has(config: AgentConfig) -> None:
    app = protected(config)
    where = manager_of(app).statistics()["waf"].transport
    for override in (override_agents(app, waf=FakeAgent()), agent_down(app, "waf"), breaker_open(app, "waf")):
        with override:
            assert manager_of(app).statistics()["waf"].transport == where


def test_requests_that_have_begun_keep_their_agents() -> None:
    asked, go_on = threading.Event(), threading.Event()

    async def wait(event: object) -> AgentResponse:
        import anyio.to_thread

        asked.set()
        await anyio.to_thread.run_sync(go_on.wait)
        return AgentResponse.block(418)

    app = protected()
    found: list[int] = []
    with TestClient(app) as client:
        with override_agents(app, waf=FakeAgent(wait)), override_agents(app):
            thread = threading.Thread(target=lambda: found.append(client.get("/orders").status_code))
            thread.start()
            assert asked.wait(30)
        assert client.get("/orders").status_code == 503
        go_on.set()
        thread.join(30)
    assert found == [418]


def test_a_plain_agent_receives_what_both_are_for() -> None:
    app = protected(remote(events={EventType.REQUEST_HEADERS, EventType.RESPONSE_HEADERS}))
    listens = Listens()
    with override_agents(app, waf=listens):
        assert get(app).status_code == 200
    assert listens.asked == 1


class Answers(Agent):
    """Receives nothing of what the agent of the tests receives."""

    async def on_response_headers(self, event: object) -> None: ...


class Deaf:
    """A transport that delivers none of what the replaced agent receives."""

    kind = "deaf"
    remote = False
    events = frozenset({EventType.RESPONSE_HEADERS})
    carries = frozenset(EventType)

    def may_suspend(self, event_type: EventType) -> bool:
        return False

    async def call(self, event: object) -> None: ...

    async def aclose(self) -> None: ...


class Misspelt(Agent):
    async def on_request_header(self, event: object) -> None: ...


@pytest.mark.parametrize(
    ("enter", "error", "message"),
    [
        (
            lambda app: override_agents(app, wfa=FakeAgent()),
            UnknownAgentError,
            "no agent has the id 'wfa'; there are: waf",
        ),
        (
            lambda app: agent_down(app, "waf", "b"),
            UnknownAgentError,
            "agent_down: no agent has the id 'b'; there are: waf",
        ),
        (lambda app: breaker_open(app, ""), UnknownAgentError, "breaker_open: no agent has the id ''"),
        (lambda app: agent_down(app), ConfigurationError, "agent_down: no agent, expected the id of at least one"),
        (lambda app: breaker_open(app), ConfigurationError, "breaker_open: no agent, expected the id of at least one"),
        (
            lambda app: override_agents(app, waf=cast(Any, FakeAgent)),
            ConfigurationError,
            "waf=the class FakeAgent, expected an Agent",
        ),
        (
            lambda app: override_agents(app, waf=cast(Any, NOBODY)),
            ConfigurationError,
            "expected an Agent, such as FakeAgent(), or a transport that keeps no connections, such as RecordedAgent(",
        ),
        (
            # It has connections of its own, which nobody would make and close.
            lambda app: override_agents(app, waf=cast(Any, HttpTransport(NOBODY))),
            ConfigurationError,
            "expected an Agent, such as FakeAgent(), or a transport",
        ),
        (
            lambda app: override_agents(app, waf=cast(Any, Deaf)),
            ConfigurationError,
            "waf=the class Deaf, expected an Agent",
        ),
        (
            lambda app: override_agents(app, waf=Deaf()),
            ConfigurationError,
            "Deaf would receive no events, expected any of: request_headers",
        ),
        (
            lambda app: override_agents(app, waf=Misspelt()),
            ConfigurationError,
            "is no hook, expected on_request_headers",
        ),
        (
            lambda app: override_agents(app, waf=Answers()),
            ConfigurationError,
            "Answers would receive no events, expected",
        ),
        (
            lambda app: override_agents(app, {"waf": FakeAgent()}, waf=FakeAgent()),
            ConfigurationError,
            "'waf' is given twice",
        ),
        (
            lambda app: override_agents(app, waf=FakeAgent(response_headers=BLOCK)),
            ConfigurationError,
            "there is a script for response_headers, which this agent does not receive, expected any of: request",
        ),
        (lambda app: override_agents(shop(), waf=FakeAgent()), ConfigurationError, "no AgentMiddleware was found in"),
        (lambda app: override_agents(cast(Any, None)), ConfigurationError, "no AgentMiddleware was found in None"),
    ],
)
def test_what_can_not_be_is_refused_and_nothing_is_replaced(
    enter: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    app = protected()
    with left_as_it_was(app), pytest.raises(error) as caught, enter(app):
        pytest.fail("it was entered")
    assert message in str(caught.value)


def test_of_several_overrides_none_is_made_where_one_is_refused() -> None:
    app = protected(remote("a"), remote("b", circuit_breaker=None))
    refused = pytest.raises(ConfigurationError, match="'b' has circuit_breaker=None")
    with left_as_it_was(app), refused, breaker_open(app, "a", "b"):
        pytest.fail("it was entered")


@pytest.mark.parametrize("fails_at", [1, 2])
def test_what_goes_wrong_while_agents_are_replaced_leaves_nothing_behind(
    fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = protected(remote("a"), remote("b"))
    put, calls = AgentRegistry.put, 0

    def fail(self: AgentRegistry, guard: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise KeyboardInterrupt
        put(self, guard)

    monkeypatch.setattr(AgentRegistry, "put", fail)
    with left_as_it_was(app), pytest.raises(KeyboardInterrupt), override_agents(app, a=FakeAgent(), b=FakeAgent()):
        pytest.fail("it was entered")


@pytest.mark.parametrize("agents", [{}, {"waf": FakeAgent()}])
def test_an_app_that_was_overridden_is_forgotten(agents: Mapping[str, Agent]) -> None:
    app = protected()
    with override_agents(app, agents):
        get(app)
    gone = ref(app)
    del app
    gc.collect()
    assert gone() is None
