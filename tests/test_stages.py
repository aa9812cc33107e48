"""Agents that are asked after others, and the headers that are theirs alone to set."""

import random
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentContext,
    AgentManager,
    AgentResponse,
    ConfigurationError,
    EventType,
    FailureMode,
    HeaderOp,
    RequestHeadersEvent,
    Route,
)
from asgi_agents.evaluation.stages import find_cycle, order_of
from asgi_agents.manager import registry_of
from asgi_agents.transports import InProcessTransport
from tests.support.asgi import VIRTUAL_TIME, App, Client, Held, Probe, SlowProbe, guarded, settle
from tests.support.sample_events import head

ALICE = AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice")])


def websocket_scope(headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    return {
        "type": "websocket",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": headers,
        "subprotocols": [],
        "extensions": {},
        "state": {},
    }


async def over_http(headers: list[tuple[bytes, bytes]], *agents: AgentConfig) -> Any:
    app = App()
    await Client(headers=headers).call(guarded(app, *agents))
    return app.headers


async def over_http_with_body(headers: list[tuple[bytes, bytes]], *agents: AgentConfig) -> Any:
    app = App()
    client = Client("POST", headers=headers, body=b"body")
    await client.call(guarded(app, *agents, AgentConfig("body", Probe(request_body=None))))
    return app.headers


async def over_websocket(headers: list[tuple[bytes, bytes]], *agents: AgentConfig) -> Any:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(scope["headers"])
        await send({"type": "websocket.accept"})

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        pass

    call: Any = guarded(app, *agents)
    await call(websocket_scope(headers), receive, send)
    return seen


async def over_manager(headers: list[tuple[bytes, bytes]], *agents: AgentConfig) -> Any:
    fields: dict[str, list[str]] = {}
    for name, value in headers:
        fields.setdefault(name.decode(), []).append(value.decode())
    await AgentManager(agents).process_request_headers(head(headers=fields))
    return None


WAYS = [over_http, over_http_with_body, over_websocket, over_manager]
Way = Callable[..., Awaitable[Any]]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def past(request: pytest.FixtureRequest) -> Way:
    """All ways that a head takes to its agents; the headers that the app sees, where there is one."""
    way: Way = request.param
    return way


@pytest.fixture(params=[Probe, SlowProbe], ids=["prompt", "slow"])
def probe(request: pytest.FixtureRequest) -> type[Probe]:
    kind: type[Probe] = request.param
    return kind


# After


async def test_an_agent_is_shown_the_head_with_the_changes_of_those_that_it_comes_after(
    past: Way, probe: type[Probe]
) -> None:
    key, limiter, waf = probe(request_headers=ALICE), probe(request_headers=None), probe(request_headers=None)
    seen = await past(
        [(b"x-user", b"mallory")],
        AgentConfig("limiter", limiter, after=["key"]),
        AgentConfig("key", key),
        AgentConfig("waf", waf),
    )
    assert limiter.of("request_headers")[0].headers["x-user"] == ("alice",)
    # Those that name nobody hear the client's own.
    assert key.of("request_headers")[0].header("x-user") == "mallory"
    assert waf.of("request_headers")[0].header("x-user") == "mallory"
    if seen is not None:
        assert [value for name, value in seen if name == b"x-user"] == [b"alice"]


async def test_changes_are_shown_along_a_chain_in_its_order(past: Way, probe: type[Probe]) -> None:
    def adds(value: str) -> Probe:
        return probe(request_headers=AgentResponse.allow(request_headers=[HeaderOp.add("x-seen", value)]))

    first, second, third, beside = adds("first"), adds("second"), probe(request_headers=None), adds("beside")
    seen = await past(
        [(b"x-seen", b"client")],
        AgentConfig("beside", beside),
        AgentConfig("third", third, after=["second"]),
        AgentConfig("second", second, after=["first"]),
        AgentConfig("first", first),
    )
    assert second.of("request_headers")[0].headers["x-seen"] == ("client", "first")
    # Both, the one it does not name included; not of the one that it does not come after.
    assert third.of("request_headers")[0].headers["x-seen"] == ("client", "first", "second")
    if seen is not None:
        assert [value for name, value in seen if name == b"x-seen"] == [b"client", b"beside", b"first", b"second"]


async def test_agents_of_a_stage_are_asked_in_parallel_and_shown_each_its_own_head() -> None:
    one, other = Held(), Held()
    seeing_one, seeing_other = SlowProbe(request_headers=one), SlowProbe(request_headers=other)
    middleware = guarded(
        App(),
        AgentConfig("a", Probe(request_headers=ALICE)),
        AgentConfig("b", Probe(request_headers=AgentResponse.allow(request_headers=[HeaderOp.remove("x-user")]))),
        AgentConfig("one", seeing_one, after=["a"]),
        AgentConfig("other", seeing_other, after=["b"]),
    )
    client = Client(headers=[(b"x-user", b"mallory")])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await one.reached.wait()
        await other.reached.wait()
        one.gate.set()
        other.gate.set()
    assert client.status == 200
    assert seeing_one.of("request_headers")[0].header("x-user") == "alice"
    assert seeing_other.of("request_headers")[0].header("x-user") is None


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME])
async def test_an_agent_waits_only_where_it_says_so() -> None:
    held, late = Held(), SlowProbe(request_headers=None)
    beside = SlowProbe(request_headers=None)
    middleware = guarded(
        App(),
        AgentConfig("slow", SlowProbe(request_headers=held), timeout=60),
        AgentConfig("late", late, after=["slow"], timeout=0.5),
        AgentConfig("beside", beside),
    )
    client = Client()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await held.reached.wait()
        await settle()
        assert (len(beside.heard), len(late.heard)) == (1, 0)
        # Its own deadline has not begun.
        await anyio.sleep(30)
        held.gate.set()
    assert client.status == 200
    assert len(late.heard) == 1


@pytest.mark.parametrize(
    "answer",
    [
        AgentResponse.block(403, "no"),
        AgentResponse.redirect("/elsewhere"),
        # It hears no body that could make it take that back.
        AgentResponse.block(403, "no", needs_more=True),
        AgentResponse(version=1),
    ],
    ids=["block", "redirect", "needs_more", "failure"],
)
async def test_nobody_is_asked_after_an_agent_that_has_stopped_the_request(
    past: Way, probe: type[Probe], answer: AgentResponse
) -> None:
    late = probe(request_headers=AgentResponse.block(418, "late"))
    seen = await past(
        [], AgentConfig("late", late, after=["first"]), AgentConfig("first", probe(request_headers=answer))
    )
    assert late.heard == []
    assert not seen


async def test_a_provisional_denial_does_not_keep_later_agents_from_being_asked(probe: type[Probe]) -> None:
    first = probe(request_headers=AgentResponse.block(403, "no", needs_more=True), request_body=AgentResponse.allow())
    late, app = probe(request_headers=None), App()
    client = Client("POST", body=b"body")
    await client.call(guarded(app, AgentConfig("first", first), AgentConfig("late", late, after=["first"])))
    assert client.status == 200
    assert len(late.heard) == 1


async def test_after_an_agent_that_failed_open_the_next_is_asked_without_its_changes(
    past: Way, probe: type[Probe]
) -> None:
    late = probe(request_headers=None)
    failing = AgentConfig("first", probe(request_headers=AgentResponse(version=1)), failure_mode=FailureMode.OPEN)
    await past([(b"x-user", b"mallory")], failing, AgentConfig("late", late, after=["first"]))
    assert late.of("request_headers")[0].header("x-user") == "mallory"


async def test_changes_of_a_shadow_agent_are_shown_to_nobody(past: Way, probe: type[Probe]) -> None:
    late = probe(request_headers=None)
    shadow = AgentConfig("first", probe(request_headers=ALICE), enforce=False)
    await past([(b"x-user", b"mallory")], shadow, AgentConfig("late", late, after=["first"]))
    assert late.of("request_headers")[0].header("x-user") == "mallory"


async def test_agents_that_are_not_on_the_route_are_not_waited_for(probe: type[Probe]) -> None:
    late, app = probe(request_headers=None), App()
    middleware = guarded(
        app,
        AgentConfig("key", probe(request_headers=ALICE)),
        AgentConfig("late", late, after=["key"]),
        routes=[Route("/", agents=["late"])],
    )
    await Client(headers=[(b"x-user", b"mallory")]).call(middleware)
    assert late.of("request_headers")[0].header("x-user") == "mallory"
    assert registry_of(middleware.manager).resolved_route(["late"]).head_order is None


async def test_the_first_in_route_order_decides_among_those_that_were_asked(probe: type[Probe]) -> None:
    client = Client()
    middleware = guarded(
        App(),
        AgentConfig("late", probe(request_headers=AgentResponse.block(418, "late")), after=["key"]),
        AgentConfig("key", probe(request_headers=None)),
        AgentConfig("later", probe(request_headers=AgentResponse.block(419, "later")), after=["key"]),
    )
    await client.call(middleware)
    context: AgentContext = client.scope["state"]["agents"]
    assert client.status == 418
    assert [verdict.agent_id for verdict in context.decision.verdicts][:2] == ["key", "late"]


async def test_an_agent_that_hears_no_heads_still_stands_between_others(probe: type[Probe]) -> None:
    """`late` comes after `key` by way of one that is on the route."""
    late = probe(request_headers=None)
    middleware = guarded(
        App(),
        AgentConfig("late", late, after=["body"]),
        AgentConfig("body", probe(request_body=None), after=["key"]),
        AgentConfig("key", probe(request_headers=ALICE)),
    )
    await Client(headers=[(b"x-user", b"mallory")]).call(middleware)
    assert late.of("request_headers")[0].header("x-user") == "alice"


class Clocked(Agent):
    """Writes down when it was asked, and when it answered."""

    def __init__(self, diary: list[tuple[str, str]], agent_id: str, pauses: int) -> None:
        self.diary, self.agent_id, self.pauses = diary, agent_id, pauses

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        self.diary.append((self.agent_id, "asked"))
        self.diary.append((self.agent_id, ",".join(sorted(event.headers.get("x-seen", ())))))
        for _ in range(self.pauses):
            await checkpoint()
        self.diary.append((self.agent_id, "answered"))
        return AgentResponse.allow(request_headers=[HeaderOp.add("x-seen", self.agent_id)])


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_the_agents_name_each_is_asked_after_them_and_shown_their_changes(seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 - not for secrets
    ids = [f"a{number}" for number in range(6)]
    ranks = dice.sample(ids, 6)
    names = {agent: [other for other in ranks[: ranks.index(agent)] if dice.random() < 0.4] for agent in ids}
    diary: list[tuple[str, str]] = []
    configs = [AgentConfig(each, Clocked(diary, each, dice.randrange(3)), after=names[each]) for each in ids]
    manager = AgentManager(configs)
    route = dice.sample(ids, dice.randint(2, 6))

    def before(agent: str) -> set[str]:
        on_route = [name for name in names[agent] if name in route]
        return set(on_route).union(*map(before, on_route))

    def level(agent: str) -> int:
        return 1 + max((level(name) for name in before(agent)), default=-1)

    decision = await manager.process_request_headers(head(), route)

    # Each behind those that it comes after; else as the route has them.
    order = sorted(route, key=lambda agent: (level(agent), route.index(agent)))
    assert [verdict.agent_id for verdict in decision.verdicts] == order
    assert [op.value for op in decision.request_headers] == order
    for agent in route:
        asked = diary.index((agent, "asked"))
        assert diary[asked + 1] == (agent, ",".join(sorted(before(agent))))
        for other in before(agent):
            assert diary.index((other, "answered")) < asked


@pytest.mark.parametrize("agents", [{"a": ["b"], "b": ["a"]}, {"a": ["b"], "b": ["c"], "c": ["a"]}])
def test_a_cycle_is_refused(agents: dict[str, list[str]]) -> None:
    with pytest.raises(ConfigurationError, match=r"AgentConfig\('a'\): after makes a cycle, expected none: a -> b"):
        AgentManager([AgentConfig(each, Probe(request_headers=None), after=after) for each, after in agents.items()])


def test_an_agent_that_there_is_not_is_refused() -> None:
    config = AgentConfig("a", Probe(request_headers=None), after=["b"])
    with pytest.raises(ConfigurationError, match=r"AgentConfig\('a'\): after contains 'b', which is no agent.*: a"):
        AgentManager([config])


async def test_agents_that_come_later_are_held_to_the_same(probe: type[Probe]) -> None:
    def config(agent_id: str, *after: str) -> AgentConfig:
        return AgentConfig(agent_id, probe(request_headers=None), after=after)

    manager = AgentManager([config("a")])
    with pytest.raises(ConfigurationError, match="no agent"):
        await manager.add_agent(config("b", "c"))
    await manager.add_agent(config("b", "a"))
    with pytest.raises(ConfigurationError, match="cycle"):
        await manager.replace_agent(config("a", "b"))
    with pytest.raises(ConfigurationError, match="no agent"):
        await manager.replace_agent(config("a", "c"))
    assert registry_of(manager).resolved_route(None).head_order is not None
    # Whoever names it then comes after nobody.
    await manager.remove_agent("a")
    assert registry_of(manager).resolved_route(None).head_order is None
    with pytest.raises(ConfigurationError, match="cycle"):
        await manager.add_agent(config("a", "b"))
    await manager.add_agent(config("a"))
    assert registry_of(manager).resolved_route(None).head_order is not None


async def test_an_agent_that_was_removed_while_its_successor_was_configured_is_missed() -> None:
    configuring = Held()

    class Configured(Agent):
        async def on_configure(self, event: Any) -> None:
            await configuring(event)

        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            pass

    manager = AgentManager(
        [AgentConfig("a", Probe(request_headers=None)), AgentConfig("b", Probe(request_headers=None))]
    )
    failed: list[ConfigurationError] = []

    async def replace() -> None:
        try:
            await manager.replace_agent(AgentConfig("b", Configured(), after=["a"]))
        except ConfigurationError as exc:
            failed.append(exc)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(replace)
        await configuring.reached.wait()
        await manager.remove_agent("a")
        configuring.gate.set()
    assert len(failed) == 1
    assert isinstance(registry_of(manager).guard("b").config.after, tuple)
    assert tuple(registry_of(manager).guard("b").config.after) == ()


@pytest.mark.parametrize(
    ("after", "cycle"),
    [
        ({}, None),
        ({"a": ["x"]}, None),
        ({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}, None),
        ({"a": ["a"]}, ["a"]),
        ({"a": ["b"], "b": ["c"], "c": ["b"]}, ["b", "c"]),
        ({str(n): [str(n + 1)] for n in range(5000)}, None),
    ],
    ids=range(6),
)
def test_a_cycle_is_found(after: dict[str, list[str]], cycle: list[str] | None) -> None:
    assert find_cycle(after) == cycle


def test_where_nobody_on_the_route_is_named_all_are_asked_at_once() -> None:
    assert order_of({"a": [], "b": ["c"]}, ["a", "b"]) is None
    assert order_of({"a": [], "b": ["a"]}, ["b"]) is None


# Sets

SPELLINGS = [b"x-user", b"x_user", b"X-User", b"X_USER", b"x-User"]


@pytest.mark.parametrize("spelt", SPELLINGS, ids=repr)
@pytest.mark.parametrize("given", ["x-user", "X_User"])
async def test_a_header_that_an_agent_sets_is_taken_out_of_the_clients_request(
    past: Way, probe: type[Probe], spelt: bytes, given: str
) -> None:
    key, other = probe(request_headers=None), probe(request_headers=None)
    seen = await past(
        [(spelt, b"mallory"), (b"x-users", b"kept")],
        AgentConfig("other", other),
        AgentConfig("key", key, sets={given}),
    )
    for agent in (key, other):
        assert set(agent.of("request_headers")[0].headers) - {"content-length"} == {"x-users"}
    if seen is not None:
        assert [pair for pair in seen if pair[0] != b"content-length"] == [(b"x-users", b"kept")]


async def test_what_the_agent_sets_itself_arrives(probe: type[Probe]) -> None:
    config = AgentConfig("key", probe(request_headers=ALICE), sets={"x-user"})
    for way in (over_http, over_http_with_body, over_websocket):
        seen = await way([(b"x-user", b"mallory"), (b"x_user", b"mallory")], config)
        assert [pair for pair in seen if pair[0] != b"content-length"] == [(b"x-user", b"alice")]


async def test_a_client_cannot_set_the_header_where_the_agent_fails_open(past: Way, probe: type[Probe]) -> None:
    failing = probe(request_headers=AgentResponse(version=1))
    config = AgentConfig("key", failing, sets={"x-user"}, failure_mode=FailureMode.OPEN)
    seen = await past([(b"x-user", b"mallory")], config)
    assert not [pair for pair in seen or () if pair[0] == b"x-user"]


@pytest.mark.parametrize(
    ("reactions", "enforce", "kept"),
    [
        ({"request_headers": None}, True, False),
        ({"request_body": None}, True, False),
        ({"request_headers": None}, False, True),
        ({"response_headers": None}, True, True),
        ({"complete": None}, True, True),
    ],
)
async def test_it_is_taken_out_where_the_enforcing_agent_is_asked_about_requests(
    reactions: dict[str, Any], enforce: bool, kept: bool
) -> None:
    config = AgentConfig("key", Probe(**reactions), sets={"x-user"}, enforce=enforce)
    assert (await over_http([(b"x-user", b"mallory")], config) != []) is kept


async def test_it_stays_where_the_agent_is_not_on_the_route(probe: type[Probe]) -> None:
    app = App()
    middleware = guarded(
        app,
        AgentConfig("key", probe(request_headers=None), sets={"x-user"}),
        AgentConfig("other", probe(request_headers=None)),
        routes=[Route("/", agents=["other"])],
    )
    await Client(headers=[(b"x-user", b"mallory")]).call(middleware)
    assert app.headers == [(b"x-user", b"mallory")]


async def test_those_around_the_middleware_keep_the_clients_headers(probe: type[Probe]) -> None:
    client = Client(headers=[(b"x-user", b"mallory")])
    given = client.scope["headers"]
    await client.call(guarded(App(), AgentConfig("key", probe(request_headers=None), sets={"x-user"})))
    assert client.scope["headers"] is given == [(b"x-user", b"mallory")]
    assert isinstance(client.scope["state"]["agents"], AgentContext)


# Configuration


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"after": "key"}, r"after='key', expected a list of ids"),
        ({"after": 1}, r"after=1, expected a list of ids"),
        ({"after": [1]}, r"after contains 1, expected ids"),
        ({"after": [["b"]]}, r"after contains \['b'\], expected ids"),
        ({"after": ["a"]}, r"after contains 'a', expected other agents than itself"),
        ({"sets": "x-user"}, r"sets='x-user', expected a set of header names"),
        ({"sets": 1}, r"sets=1, expected a set of header names"),
        ({"sets": {"x user"}}, r"sets contains 'x user', expected names of headers"),
        ({"sets": {b"x-user"}}, r"sets contains b'x-user', expected names of headers"),
        ({"sets": {"Content_Length"}}, r"sets contains 'Content_Length', which belongs to the server"),
        ({"sets": {"sec-websocket-key"}}, r".*which belongs to the server"),
        ({"sets": {"host"}}, r"sets contains 'host', expected may_set_host=True"),
        ({"replaces": "x-user"}, r"replaces='x-user', expected a set of header names"),
        ({"replaces": {"x user"}}, r"replaces contains 'x user', expected names of headers"),
        ({"replaces": {"Content_Length"}}, r"replaces contains 'Content_Length', which belongs to the server"),
        ({"replaces": {"host"}}, r"replaces contains 'host', expected may_set_host=True"),
    ],
)
def test_a_wrong_value_is_named(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigurationError, match=r"AgentConfig\('a'\): " + fault):
        AgentConfig("a", Probe(request_headers=None), **options)


def test_both_are_normalised() -> None:
    config = AgentConfig(
        "a", Probe(request_headers=None), after=iter(["b", "c"]), sets=["X_User", "x-user", "host"], may_set_host=True
    )
    assert (config.after, config.sets) == (("b", "c"), frozenset({"x-user", "host"}))
    assert EventType.REQUEST_HEADERS in (config.hears or ())


def test_an_agent_names_the_headers_that_are_its_own() -> None:
    agent = Probe(request_headers=None)
    agent.own_headers = ["X_User"]
    assert AgentConfig("a", agent).sets == {"x-user"}
    assert AgentConfig("a", agent, sets={"x-plan"}).sets == {"x-user", "x-plan"}
    assert AgentConfig("a", InProcessTransport(agent)).sets == {"x-user"}
    agent.replaced_headers = ["Cookie"]
    assert AgentConfig("a", agent, replaces={"X_Token"}).replaces == {"cookie", "x-token"}
    agent.own_headers = "x-user"
    with pytest.raises(ConfigurationError, match=r"AgentConfig\('a'\): sets='x-user', expected a set of header names"):
        AgentConfig("a", agent)
