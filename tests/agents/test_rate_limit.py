"""RateLimit in memory, on both event loops."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from limits.aio.storage import Storage
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentResponse,
    Block,
    ConfigurationError,
    ConfigureEvent,
    RequestHeadersEvent,
    protect,
)
from asgi_agents.agents import ApiKey, RateLimit
from asgi_agents.agents.memory_storage import MemoryStorage
from asgi_agents.testing import (
    request_complete_event,
    request_headers_event,
    request_metadata,
    websocket_frame_event,
)

from .clock import Clock


def asked(
    ip: str = "192.0.2.7", uri: str = "/", headers: Mapping[str, str] = {}, *, route: str | None = None, name: str = "c"
) -> RequestHeadersEvent:
    metadata = request_metadata(client_ip=ip, route_id=route, correlation_id=name)
    return request_headers_event(uri=uri, headers=dict(headers), metadata=metadata)


def headers_of(answer: AgentResponse) -> dict[str, str]:
    """What the client is told."""
    assert all(op.always for op in answer.response_headers)
    more = answer.decision.headers if isinstance(answer.decision, Block) else None
    return {op.name: op.value for op in answer.response_headers} | dict(more or {})


async def statuses(agent: RateLimit, *events: RequestHeadersEvent) -> list[int]:
    answers = [await agent.on_request_headers(event) for event in events]
    return [answer.decision.status if isinstance(answer.decision, Block) else 200 for answer in answers]


async def test_so_many_requests_pass_and_all_are_told_what_is_left(clock: Clock) -> None:
    agent = RateLimit("2/minute")
    policy = {"ratelimit-limit": "2", "ratelimit-policy": "2;w=60"}
    first = await agent.on_request_headers(asked())
    assert headers_of(first) == {**policy, "ratelimit-remaining": "1", "ratelimit-reset": "60"}
    clock.now += 10.5
    second = await agent.on_request_headers(asked())
    assert headers_of(second) == {**policy, "ratelimit-remaining": "0", "ratelimit-reset": "50"}
    denied = await agent.on_request_headers(asked())
    assert isinstance(denied.decision, Block)
    assert denied.decision.status == 429
    assert denied.audit.reason_codes == ("rate_limited",)
    assert headers_of(denied) == {
        **policy,
        "ratelimit-remaining": "0",
        "ratelimit-reset": "50",
        "retry-after": "50",
    }
    # Whoever comes back when it is told gets through, and not before.
    clock.now += 49
    assert await statuses(agent, asked()) == [429]
    clock.now += 1
    assert await statuses(agent, asked(), asked(), asked()) == [200, 200, 429]


async def test_of_several_limits_the_nearest_is_told(clock: Clock) -> None:
    agent = RateLimit("4/hour; 2 per second")
    policy = "2;w=1, 4;w=3600"
    told = [headers_of(await agent.on_request_headers(asked())) for _ in range(3)]
    assert {each["ratelimit-policy"] for each in told} == {policy}
    assert [each["ratelimit-remaining"] for each in told] == ["1", "0", "0"]
    assert told[2]["retry-after"] == "1"
    clock.now += 1
    # What was denied for one limit does not count for the others.
    assert await statuses(agent, asked(), asked(), asked()) == [200, 200, 429]
    clock.now += 1
    denied = headers_of(await agent.on_request_headers(asked()))
    assert (denied["ratelimit-limit"], denied["retry-after"]) == ("4", "3598")


async def test_a_sliding_window_has_no_change_to_wait_for(clock: Clock) -> None:
    fixed, sliding = RateLimit("10/minute"), RateLimit("10/minute", strategy="sliding-window-counter")
    clock.now += 55
    for agent in (fixed, sliding):
        assert await statuses(agent, *[asked()] * 10) == [200] * 10
        assert await statuses(agent, asked()) == [429]
    clock.now += 6
    # Nearly all of the minute before still counts.
    assert await statuses(sliding, asked(), asked()) == [200, 429]
    clock.now += 29
    assert await statuses(sliding, *[asked()] * 5) == [200] * 4 + [429]
    clock.now += 120
    assert await statuses(sliding, *[asked()] * 11) == [200] * 10 + [429]


OTHER_SPELLINGS = ["/a/b/", "//a/b", "/a//b", "/a/./b", "/./a/b", "/a/c/../b", "/a/%2e%2e/a/b", "%2fa%2fb", "/a/b//?c"]
BOTH, ONE = [200, 200], [200, 429]


@pytest.mark.parametrize("strategy", ["fixed-window", "sliding-window-counter"])
async def test_a_window_that_begins_has_all_of_its_time_before_it(clock: Clock, strategy: Any) -> None:
    clock.now -= clock.now % 3600
    agent = RateLimit("1/hour", strategy=strategy)
    answers = [await agent.on_request_headers(asked()) for _ in range(2)]
    assert [headers_of(answer)["ratelimit-reset"] for answer in answers] == ["3600", "3600"]
    assert isinstance(answers[1].decision, Block)
    assert answers[1].decision.headers is not None
    assert answers[1].decision.headers["retry-after"] == "3600"


@pytest.mark.parametrize(
    ("by", "first", "second", "expected"),
    [
        ("ip", asked("192.0.2.7"), asked("192.0.2.8"), BOTH),
        ("ip", asked("192.0.2.7"), asked("::ffff:192.0.2.7"), ONE),
        # One customer of a provider has all of a /64.
        ("ip", asked("2001:db8:0:1::1"), asked("2001:db8:0:1:ffff::2"), ONE),
        ("ip", asked("2001:db8:0:1::1"), asked("2001:db8:0:2::1"), BOTH),
        ("ip", asked("fe80::1%eth0"), asked("fe80::1%eth1"), ONE),
        # Whoever has no address shares a counter with all who have none.
        ("ip", asked(""), asked("garbage"), ONE),
        ("user", asked(headers={"x-user": "alice"}), asked(headers={"x-user": "bob"}), BOTH),
        ("user", asked("192.0.2.7", headers={"x-user": "a"}), asked("192.0.2.8", headers={"x-user": "a"}), ONE),
        ("user", asked("192.0.2.7"), asked("192.0.2.8"), BOTH),
        ("user", asked("192.0.2.7"), asked("192.0.2.7", headers={"x-user": ""}), ONE),
        # A name is no address.
        ("user", asked("192.0.2.7"), asked("192.0.2.9", headers={"x-user": "ip 192.0.2.7"}), BOTH),
        ("header:X-Tenant", asked(headers={"x-tenant": "a"}), asked(headers={"x-tenant": "b"}), BOTH),
        ("header:X-Tenant", asked(headers={"x-tenant": "a"}), asked(headers={"x-tenant": "a", "x-user": "b"}), ONE),
        ("path", asked(uri="/a"), asked(uri="/b"), BOTH),
        ("path", asked("192.0.2.7", "/a?b=1"), asked("192.0.2.8", "/%61?b=2"), ONE),
        ("route", asked(uri="/a/1", route="/a/{id}"), asked(uri="/a/2", route="/a/{id}"), ONE),
        ("route", asked(route="/a/{id}"), asked(route="/b/{id}"), BOTH),
        ("route", asked(route=None), asked(route="None"), ONE),
        *[("path", asked(uri="/a/b"), asked(uri=uri), ONE) for uri in OTHER_SPELLINGS],
        ("path", asked(uri="/a/b"), asked(uri="/a%2fc/b"), BOTH),
        ("path", asked(uri="/"), asked(uri="//?"), ONE),
        ("path", asked(uri="/a"), asked(uri="/a%0A"), ONE),
        ("path", asked(uri="/a/"), asked(uri="/a/%0a?b"), ONE),
        ("path", asked(uri="/a"), asked(uri="/a%0Ab"), BOTH),
        (["ip", "path"], asked("192.0.2.7", "/a"), asked("192.0.2.7", "/b"), BOTH),
        (["ip", "path"], asked("192.0.2.7", "/a"), asked("192.0.2.8", "/a"), BOTH),
        (["ip", "path"], asked("192.0.2.7", "/a"), asked("192.0.2.7", "/a"), ONE),
    ],
)
async def test_what_is_counted_together(
    by: Any, first: RequestHeadersEvent, second: RequestHeadersEvent, expected: list[int], clock: Clock
) -> None:
    assert await statuses(RateLimit("1/minute", by=by), first, second) == expected


async def test_an_address_is_that_of_the_client_behind_trusted_proxies(clock: Clock) -> None:
    agent = RateLimit("1/minute", trusted_proxies=["10.0.0.0/8"])
    events = [asked("10.0.0.1", headers={"x-forwarded-for": told}) for told in ("203.0.113.1, 192.0.2.7", "192.0.2.7")]
    assert await statuses(agent, *events) == [200, 429]
    # Nobody gets a counter of its own by making addresses up.
    assert await statuses(RateLimit("1/minute"), *events) == [200, 429]
    assert await statuses(agent, asked("192.0.2.9", headers={"x-forwarded-for": "1.1.1.1"}), asked("192.0.2.9")) == [
        *(200, 429)
    ]


def test_in_memory_no_request_waits() -> None:
    for strategy in ("fixed-window", "sliding-window-counter"):
        with pytest.raises(StopIteration):
            RateLimit("1/minute", strategy=strategy).on_request_headers(asked()).send(None)


# In an app


class Denies(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        return AgentResponse.block(403) if event.uri == "/denied" else None


def client_of(*agents: AgentConfig) -> TestClient:
    app = FastAPI()

    @app.get("/")
    async def hello() -> str:
        return "hello"

    @app.websocket("/ws")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)
            await websocket.send_text(text)

    protect(app, agents=agents)
    return TestClient(app)


def test_every_response_says_what_is_left_also_where_another_agent_denies() -> None:
    client = client_of(AgentConfig("rate", RateLimit("3/hour")), AgentConfig("deny", Denies()))
    answers = [client.get(path) for path in ("/", "/missing", "/denied", "/")]
    assert [answer.status_code for answer in answers] == [200, 404, 403, 429]
    assert [answer.headers["ratelimit-remaining"] for answer in answers] == ["2", "1", "0", "0"]
    assert ["retry-after" in answer.headers for answer in answers] == [False, False, False, True]


def test_a_user_has_a_counter_whatever_the_client_pretends() -> None:
    client = client_of(
        AgentConfig("api-key", ApiKey({"k1": "alice", "k2": "bob"}), sets={"x-user"}),
        AgentConfig("rate", RateLimit("1/hour", by="user"), after=["api-key"]),
    )
    asks = [("k1", "alice"), ("k1", "bob"), ("k2", "alice"), ("k2", "mallory")]
    answers = [client.get("/", headers={"x-api-key": key, "x-user": user}) for key, user in asks]
    assert [answer.status_code for answer in answers] == [200, 429, 200, 429]
    # Not asked, where the agent before it denies.
    assert client.get("/").status_code == 401


def test_a_handshake_counts_as_a_request() -> None:
    client = client_of(AgentConfig("rate", RateLimit("2/hour")))
    assert client.get("/").status_code == 200
    with client.websocket_connect("/ws") as session:
        session.send_text("a")
        assert session.receive_text() == "a"
    with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect("/ws"):
        pass
    assert (denied.value.status_code, denied.value.headers["ratelimit-remaining"]) == (429, "0")
    assert 0 < int(denied.value.headers["retry-after"]) <= 3600


def test_messages_of_a_client_count_in_all_of_its_sessions() -> None:
    client = client_of(AgentConfig("rate", RateLimit("100/hour", messages="3/hour")))
    with client.websocket_connect("/ws") as first, client.websocket_connect("/ws") as second:
        for session in (first, second, first):
            session.send_text("a")
            # The app's own messages don't count.
            assert (session.receive_text(), session.receive_text()) == ("a", "a")
        second.send_text("b")
        with pytest.raises(WebSocketDisconnect) as closed:
            second.receive_text()
    assert (closed.value.code, closed.value.reason) == (1008, "Too many messages")


async def test_messages_of_a_session_whose_handshake_was_not_counted_have_a_counter(clock: Clock) -> None:
    agent = RateLimit("9/hour", messages="1/minute")
    frame = websocket_frame_event("a", correlation_id="unknown")
    assert await agent.on_websocket_frame(frame) is None
    answer = await agent.on_websocket_frame(frame)
    assert answer is not None
    assert not answer.is_allow


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ("2001:db8::1", "2001:db8::2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.7", "::ffff:192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("", "", True),
    ],
)
async def test_such_messages_are_counted_by_the_same_addresses_as_requests(
    clock: Clock, first: str, second: str, together: bool
) -> None:
    agent = RateLimit("1/hour", messages="1/hour")
    assert await statuses(agent, asked(first, name="a"), asked(second, name="b")) == [200, 429 if together else 200]
    frames = [websocket_frame_event("a", correlation_id=f"of {ip}", client_ip=ip) for ip in (first, second)]
    answers = [await agent.on_websocket_frame(frame) for frame in frames]
    assert [answer is None for answer in answers] == [True, not together]


SESSION, REQUEST = "session", "request"


@pytest.mark.parametrize(
    "reuse",
    [
        [REQUEST],
        [REQUEST, "request ends"],
        [REQUEST, "request ends", "request ends"],
        ["request ends"],
        [REQUEST, REQUEST, "request ends"],
        [REQUEST] * 40,
    ],
    ids=str,
)
@pytest.mark.parametrize("other", ["192.0.2.7", "192.0.2.8"])
async def test_a_client_gets_no_more_messages_by_naming_connections_of_several_processes_alike(
    clock: Clock, reuse: list[str], other: str
) -> None:
    """Ids are unique within a process. A served agent may be asked by several, and clients may choose ids."""
    agent = RateLimit("1000/hour", messages="5/hour")
    passed = 0
    for number in range(10):
        name = f"n{number}"
        await agent.on_request_headers(asked("192.0.2.7", name=name))
        for step in reuse:
            if step == REQUEST:
                await agent.on_request_headers(asked(other, "/other", name=name))
            else:
                await agent.on_request_complete(request_complete_event(correlation_id=name))
        for _ in range(10):
            frame = websocket_frame_event("a", correlation_id=name, client_ip="192.0.2.7")
            passed += await agent.on_websocket_frame(frame) is None
    # The limit of each address, and one of the sessions from there that are not known any more.
    assert passed <= 5 * (len({"192.0.2.7", other}) + 1)


async def test_of_connections_that_have_ended_nothing_is_kept(clock: Clock) -> None:
    agent = RateLimit("1000/hour", messages="1/minute", max_keys=10)
    for number in range(100):
        await agent.on_request_headers(asked(name=str(number)))
    # An agent that is down is not told of the end.
    assert len(agent._open) == 10
    for number in range(100):
        await agent.on_request_complete(request_complete_event(correlation_id=str(number)))
    assert len(agent._open) == 0


# Memory


def test_a_file_has_one_counter_however_its_path_is_written(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("large")
    app = Starlette(routes=[Mount("/a", StaticFiles(directory=tmp_path))])
    protect(app, agents=[AgentConfig("rate", RateLimit("1/day", by="path"))])
    client = TestClient(app)
    assert client.get("/a/b").text == "large"
    for uri in ("/a//b", "/a/%2e/b", "/a/x/%2e%2e/b"):
        assert client.get(uri).status_code == 429, uri


@pytest.mark.parametrize("strategy", ["fixed-window", "sliding-window-counter"])
async def test_a_client_at_its_limit_is_not_forgotten_while_it_goes_on(clock: Clock, strategy: Any) -> None:
    agent = RateLimit("2/hour", max_keys=100, strategy=strategy)
    assert await statuses(agent, *[asked("192.0.2.1")] * 2) == [200, 200]
    for number in range(1000):
        if number % 40 == 0:
            assert await statuses(agent, asked("192.0.2.1")) == [429]
        await agent.on_request_headers(asked(f"198.18.{number >> 8}.{number & 255}"))


async def test_a_key_is_short_whatever_it_was_made_of(clock: Clock) -> None:
    agent = RateLimit("2/hour", by=["header:x-token", "path"])
    await agent.on_request_headers(asked(uri="/" + "p" * 50_000, headers={"x-token": "hunter2" * 10_000}))
    storage = agent._counters._limiter.storage  # type: ignore[attr-defined]
    (key,) = storage._counts
    assert len(key) < 80
    assert "hunter2" not in key


@pytest.mark.parametrize("reset", [lambda storage: storage.reset(), lambda storage: storage.clear("a")])
async def test_the_storage_is_one_of_the_librarys(reset: Callable[[MemoryStorage], Any], clock: Clock) -> None:
    storage = MemoryStorage(10)
    assert isinstance(storage, Storage)
    assert await storage.check()
    assert [await storage.incr("a", 60), await storage.incr("a", 60, 3), await storage.get("a")] == [1, 4, 4]
    assert await storage.get_expiry("a") == clock.now + 60
    await reset(storage)
    assert await storage.get("a") == 0
    assert await storage.get_expiry("a") == clock.now
    assert await storage.acquire_sliding_window_entry("a", 1, 60)
    assert not await storage.acquire_sliding_window_entry("a", 1, 60)
    await storage.clear_sliding_window("a", 60)
    assert await storage.acquire_sliding_window_entry("a", 1, 60)


# Configuration


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"limits": "often"}, "limits='often', expected such as '100/minute'"),
        ({"limits": ""}, "limits=''"),
        ({"limits": 100}, "limits=100"),
        ({"limits": "0/minute"}, "limits='0/minute'"),
        ({"messages": "1/fortnight"}, "messages='1/fortnight'"),
        ({"by": "name"}, "by='name', expected 'ip'"),
        ({"by": "header:"}, "by='', expected the name of a header"),
        ({"by": "header:a b"}, "by='a b', expected the name of a header"),
        ({"by": []}, "by=a list"),
        ({"by": ["ip", 1]}, "by contains an int"),
        (
            {"storage": "memcached://:hunter2@127.0.0.1"},
            "storage has the scheme memcached://, expected 'memory' or a URL with redis://, rediss://, unix://",
        ),
        ({"storage": "hunter2"}, "storage is text that begins with no scheme, expected 'memory' or a URL"),
        ({"storage": f"{'hunter2' * 9}://h"}, "storage is text that begins with no scheme, expected"),
        ({"storage": None}, "storage is None, expected 'memory' or a URL"),
        ({"storage": "redis://127.0.0.1:port"}, "storage is no URL that the client of Redis can read"),
        ({"strategy": "moving"}, "strategy='moving', expected one of fixed-window, sliding-window-counter"),
        ({"strategy": ["fixed-window"]}, "strategy=a list"),
        ({"max_keys": 0}, "max_keys=0"),
        ({"trusted_proxies": "10.0.0.1"}, "trusted_proxies='10.0.0.1', expected a list"),
        ({"user_header": "host"}, "user_header='host'"),
    ],
)
def test_what_can_not_work_is_a_configuration_error(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^RateLimit: .*{message}"):
        RateLimit(**{"limits": "1/minute"} | given)


def test_a_password_of_redis_is_not_quoted() -> None:
    for url in ("valkey://:hunter2@127.0.0.1", "redis://:hunter2@127.0.0.1:x", "redis://:hunter2@["):
        with pytest.raises(ConfigurationError) as error:
            RateLimit("1/minute", storage=url)
        assert "hunter2" not in str(error.value)


async def test_an_agent_is_configured_without_a_storage_to_ask() -> None:
    await RateLimit("1/minute").on_configure(ConfigureEvent(agent_id="rate"))
