"""An agent that comes after another is shown what that has made of the head, and the client can't speak for either."""

import asyncio
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asgi_agents import AgentManager, AgentResponse, BreakerState, ConfigurationError, FailureMode, HeaderOp, Route
from asgi_agents.manager import registry_of
from tests.support.asgi import VIRTUAL_TIME, App, Client, Held, Probe, SlowProbe, guarded

from .asking import Echo, Session, ask, ask_again, config

ALICE = AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice"), HeaderOp.remove("x-api-key")])
GIVEN = [(b"x-user", b"mallory"), (b"x-api-key", b"key"), (b"x-other", b"1")]
BLOCK = AgentResponse.block(403)


def heard(agent: Probe) -> list[tuple[str | None, str | None]]:
    return [(event.header("x-user"), event.header("x-api-key")) for event in agent.of("request_headers")]


def fails(event: object) -> AgentResponse:
    raise LookupError


@pytest.mark.parametrize("kind", [Probe, SlowProbe])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("websocket", [False, True])
async def test_a_later_agent_sees_what_the_app_will_see(kind: type[Probe], first: bool, websocket: bool) -> None:
    keys, limiter, beside = kind(request_headers=ALICE), kind(request_headers=None), kind(request_headers=None)
    agents = [config(keys, "api-key"), config(limiter, "limiter", after=["api-key"]), config(beside, "beside")]
    app, echo = App(), Echo()
    if websocket:
        await Session(headers=GIVEN).call(guarded(echo, *(agents if first else agents[::-1])))
    else:
        await ask(app, *(agents if first else agents[::-1]), client=Client(headers=GIVEN))
    assert [value for name, value in app.headers + echo.headers if name == b"x-user"] == [b"alice"]
    assert heard(limiter) == [("alice", None)]
    assert heard(beside) == heard(keys) == [("mallory", "key")]


async def test_every_stage_adds_to_what_the_next_one_sees() -> None:
    def adding(value: str) -> AgentResponse:
        return AgentResponse.allow(request_headers=[HeaderOp.add("x-seen", value)])

    a, b, c = (Probe(request_headers=adding(name)) for name in "abc")
    app = App()
    agents = [config(c, "c", after=["b", "a"]), config(b, "b", after=("a",)), config(a, "a")]
    await ask(app, *agents)
    seen = [[*probe.of("request_headers")[0].headers.get("x-seen", ())] for probe in (a, b, c)]
    assert seen == [[], ["a"], ["a", "b"]]
    assert sorted(value for name, value in app.headers if name == b"x-seen") == [b"a", b"b", b"c"]


@pytest.mark.parametrize(("answer", "failure_mode", "status", "asked"), [
    (BLOCK, FailureMode.CLOSED, 403, []),
    (AgentResponse.redirect("/"), FailureMode.CLOSED, 302, []),
    (fails, FailureMode.CLOSED, 503, []),
    (fails, FailureMode.OPEN, 200, [("mallory", "key")]),
])  # fmt: skip
async def test_a_stage_is_reached_only_through_those_before_it(
    answer: Any, failure_mode: FailureMode, status: int, asked: list[Any]
) -> None:
    limiter = Probe(request_headers=None)
    first = config(Probe(request_headers=answer), "api-key", failure_mode=failure_mode)
    client = await ask(App(), config(limiter, "limiter", after=["api-key"]), first, client=Client(headers=GIVEN))
    assert (client.status, heard(limiter)) == (status, asked)


async def cancels_its_own_task(event: object) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await checkpoint()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
# The first of them is asked in the task of the request, which would be cancelled with it.
@pytest.mark.parametrize("names", ["abcd", "acbd", "adcb"])
@pytest.mark.parametrize("chain", [{"c": ["b"]}, {"c": ["b"], "d": ["c"]}, {"d": ["b", "c"]}])
@pytest.mark.parametrize("denying", ["c", "d"])
async def test_a_call_that_came_to_nothing_leaves_nobody_unasked(
    names: str, chain: dict[str, list[str]], denying: str
) -> None:
    reactions: dict[str, Any] = {"b": cancels_its_own_task, denying: BLOCK}
    agents = [
        config(
            SlowProbe(request_headers=reactions.get(name)),
            name,
            after=chain.get(name, []),
            failure_mode=FailureMode.OPEN if name == "b" else FailureMode.CLOSED,
        )
        for name in names
    ]
    app = App()
    client = await ask(app, *agents)
    assert (client.status, app.calls) == (403, 0)


async def test_a_shadow_agent_changes_nothing_for_those_after_it() -> None:
    limiter = Probe(request_headers=None)
    shadow = config(Probe(request_headers=ALICE), "api-key", enforce=False)
    await ask(App(), shadow, config(limiter, "limiter", after=["api-key"]), client=Client(headers=GIVEN))
    assert heard(limiter) == [("mallory", "key")]


async def test_what_waits_for_nobody_is_asked_at_once() -> None:
    held = {name: Held() for name in ("api-key", "beside", "limiter")}
    agents = [
        config(SlowProbe(request_headers=reaction), name, **({"after": ["api-key"]} if name == "limiter" else {}))
        for name, reaction in held.items()
    ]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, App(), *agents)
        await held["api-key"].reached.wait()
        await held["beside"].reached.wait()
        assert held["limiter"].calls == 0
        held["api-key"].gate.set()
        # Not for the one beside, which it has not asked to come after.
        await held["limiter"].reached.wait()
        held["beside"].gate.set()
        held["limiter"].gate.set()


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], ids=["virtual time"])
async def test_a_deadline_begins_with_its_stage() -> None:
    async def slow(event: object) -> None:
        await anyio.sleep(0.9)

    names = ["a", "b", "c"]
    after = [[], ["a"], ["b"]]
    agents = [
        config(SlowProbe(request_headers=slow), n, timeout=1.0, after=a) for n, a in zip(names, after, strict=True)
    ]
    client = await ask(App(), *agents)
    assert client.status == 200


@pytest.mark.parametrize("after", [{"a": ["a"]}, {"a": ["b"], "b": ["a"]}, {"a": ["b"], "b": ["c"], "c": ["a"]},
                                   {"a": ["nobody"]}, {"a": "b"}, {"a": ["b", 1]}])  # fmt: skip
def test_cycles_and_unknown_agents_are_refused(after: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="after"):
        AgentManager([config(Probe(request_headers=None), name, after=after.get(name, [])) for name in "abc"])


async def test_agents_that_are_not_on_the_route_are_not_waited_for() -> None:
    limiter = Probe(request_headers=None)
    agents = [config(Probe(request_headers=ALICE), "api-key"), config(limiter, "limiter", after=["api-key"])]
    await ask(App(), *agents, routes=[Route("/", ["limiter"])], client=Client(headers=GIVEN))
    assert heard(limiter) == [("mallory", "key")]


SPELLINGS = [b"x-user", b"X-User", b"x_user", b"X_USER", b"x-USER"]


def open_breaker(middleware: Any) -> None:
    breaker = registry_of(middleware.manager).guard("api-key").breaker
    assert breaker is not None
    while breaker.state is not BreakerState.OPEN:
        trial = breaker.acquire()
        assert trial is not None
        breaker.failure(trial)


CASES: dict[str, tuple[Any, dict[str, Any], bytes | None]] = {
    "it sets them": (ALICE, {}, b"alice"),
    "it sets nothing": (None, {}, None),
    "it fails open": (fails, {"failure_mode": FailureMode.OPEN}, None),
    "its breaker is open": (ALICE, {"failure_mode": FailureMode.OPEN}, None),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(("answer", "options", "expected"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("sets", [{"x-user"}, ["X-User", "x-role"]], ids=["lower", "upper"])
async def test_a_client_can_t_set_what_an_agent_sets(
    spelling: bytes, answer: Any, options: dict[str, Any], expected: bytes | None, sets: Any, request: Any
) -> None:
    given = [(spelling, b"mallory"), (b"x-other", b"1"), (spelling, b"root")]
    keys, before, later = Probe(request_headers=answer), Probe(request_headers=None), Probe(request_headers=None)
    app, echo = App(), Echo()

    def make(app: Any) -> Any:
        own = config(keys, "api-key", sets=sets, **options)
        return guarded(app, config(before, "before"), own, config(later, "later", after=["api-key"]))

    for middleware, connection in ((make(app), Client(headers=given)), (make(echo), Session(headers=given))):
        if "breaker" in request.node.callspec.id:
            open_breaker(middleware)
        await (ask_again(middleware, connection) if isinstance(connection, Client) else connection.call(middleware))
    for headers in (app.headers, echo.headers):
        users = [value for name, value in headers if name.lower().replace(b"_", b"-") == b"x-user"]
        assert users == ([] if expected is None else [expected])
        assert (b"x-other", b"1") in headers
    for probe in (before, keys):
        for event in probe.of("request_headers"):
            assert not {name for name in event.headers if name.replace("_", "-") == "x-user"}
    assert {event.header("x-user") for event in later.of("request_headers")} == {expected and expected.decode()}


async def test_only_where_that_agent_is_asked_and_enforces() -> None:
    keys = Probe(request_headers=None)
    for options, route in [({"enforce": False}, ["api-key"]), ({}, ["beside"])]:
        app = App()
        agents = [config(keys, "api-key", sets={"x-user"}, **options), config(Probe(request_headers=None), "beside")]
        await ask(app, *agents, routes=[Route("/", route)], client=Client(headers=GIVEN))
        assert app.header(b"x-user") == b"mallory"


async def test_also_where_it_hears_no_heads() -> None:
    app = App()
    agent = config(
        Probe(request_body=AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice")])), sets={"x-user"}
    )
    for body, user in ((None, None), (b"hello", b"alice")):
        await ask(app, agent, client=Client("POST", headers=GIVEN, body=body))
        assert app.header(b"x-user") == user
