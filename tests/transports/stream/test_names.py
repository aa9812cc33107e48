"""Names that lead to several addresses, and then to others. In virtual time, with real sockets."""

import gc
import random
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import trustme

from asgi_agents import AgentConnectionError, AgentError, EventType, LoadBalancing
from asgi_agents.transports.stream import StreamClient
from tests.support.names import LOOPBACK, no_such_name, resolving

from .instances import calling, endpoints, service
from .peer import ALL_EVENTS, Peer, Received, handshake
from .pools import (
    allow,
    chunk,
    complete,
    connected,
    failing,
    head,
    lines,
    response_head,
    settle,
    until,
    warnings,
)

pytestmark = pytest.mark.usefixtures("chance")
# Seconds after which a change of DNS has come through: the interval, and a moment.
SOON = 5.2


@pytest.fixture
def chance() -> None:
    """What chance decides is decided alike in each run."""
    random.seed(7)


def hosts(*numbers: int) -> list[str]:
    return [LOOPBACK[number - 1] for number in numbers]


async def ask(client: StreamClient, number: int | str, count: int = 1) -> None:
    """So many requests of one event each, that are over then."""
    for turn in range(count):
        correlation_id = f"{number}-{turn}"
        await client.call(head(correlation_id))
        client.forget(correlation_id)


class Calls:
    """Who was called how often. A behaviour of agents."""

    def __init__(self, then: Callable[[Received], Awaitable[None]] = allow) -> None:
        self.by_host: Counter[str] = Counter()
        self._then = then

    async def __call__(self, event: Received) -> None:
        self.by_host[event.link.peer.host] += 1  # type: ignore[attr-defined]
        await self._then(event)


# What a name leads to


async def test_each_address_is_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, waf=hosts(1, 2, 3))
    async with service() as waf, calling(waf.url, connections=2) as client:
        await connected(client, 6)
        assert waf.open == [2, 2, 2, 0, 0]
        assert endpoints(client) == dict.fromkeys(waf.urls(1, 2, 3), "up")


async def test_a_single_address_is_one_endpoint_by_its_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "asgi_agents")
    names = resolving(monkeypatch, waf=hosts(1))
    async with service() as waf, calling(waf.url, connections=2) as client:
        pool = await connected(client, 2)
        assert endpoints(client) == {waf.url: "up"}
        await ask(client, "a", 20)
        await anyio.sleep(60)
        assert len(names.lookups) > 10
        assert waf.accepted == [2, 0, 0, 0, 0]
        assert len(pool.rotation.endpoints) == 1
    assert lines(caplog) == [f"agent 'waf' at {waf.url}: connected"]


async def test_a_name_that_grows_keeps_its_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch, waf=hosts(1))
    async with service() as waf, calling(waf.url) as client:
        pool = await connected(client)
        names.answers["waf.test"] = hosts(3, 1, 2)
        await anyio.sleep(SOON)
        assert endpoints(client) == dict.fromkeys(waf.urls(3, 1, 2), "up")
        assert {connection.address for connection in pool.connections} == set(waf.urls(1, 2, 3))
        names.answers["waf.test"] = hosts(1)
        await anyio.sleep(SOON)
        assert endpoints(client) == {waf.url: "up"}
        assert [connection.address for connection in pool.connections] == [waf.url]
        assert waf.accepted == [1, 1, 1, 0, 0]


@pytest.mark.slow
async def test_three_become_five_become_two_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch, waf=hosts(1, 2, 3))
    calls = Calls()
    async with service(behaviour=calls) as waf, calling(waf.url, connections=2) as client:
        await connected(client, 6)
        stopping = False
        answered = Counter[str]()

        async def keep_asking(number: int) -> None:
            turn = 0
            while not stopping:
                turn += 1
                await client.call(head(f"{number}-{turn}"))
                await client.call(response_head(f"{number}-{turn}"))
                client.forget(f"{number}-{turn}")
                answered[str(number)] += 1
                await anyio.sleep(0.2)

        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(keep_asking, number)
            await anyio.sleep(2)
            assert set(calls.by_host) == set(hosts(1, 2, 3))
            for now in ((1, 2, 3, 4, 5), (4, 5), (2,), (1, 3)):
                names.answers["waf.test"] = hosts(*now)
                await anyio.sleep(SOON)
                calls.by_host.clear()
                await anyio.sleep(4)
                assert set(calls.by_host) == set(hosts(*now))
            stopping = True
    assert min(answered.values()) > 100


# Draining


async def test_an_address_that_has_left_gets_no_new_call_and_those_under_way_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = resolving(monkeypatch, waf=hosts(1))
    async with service(behaviour=None) as waf, calling(waf.url) as client, anyio.create_task_group() as tasks:
        await connected(client)
        old, new = waf.instances[:2]
        ended = []

        async def call(name: str) -> None:
            await client.call(head(name))
            client.forget(name)
            ended.append(name)

        tasks.start_soon(call, "a")
        event = await old.next()
        names.answers["waf.test"] = hosts(2)
        await anyio.sleep(SOON)
        assert waf.open[:2] == [1, 1]
        assert endpoints(client) == {waf.url: "up", old.url: "draining"}

        tasks.start_soon(call, "b")
        await (await new.next()).answer()
        await until(lambda: ended == ["b"])
        assert old.unread == 0

        await event.answer()
        await until(lambda: waf.open[:2] == [0, 1])
        assert ended == ["b", "a"]
        assert endpoints(client) == {waf.url: "up"}


async def test_the_events_of_a_request_stay_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch, waf=hosts(1))
    calls = Calls()
    async with service(behaviour=calls) as waf, calling(waf.url, drain_timeout=30.0) as client:
        await connected(client)
        await client.call(head("a"))
        names.answers["waf.test"] = hosts(2)
        await anyio.sleep(SOON)
        for index in range(3):
            await client.call(chunk("a", index=index))
        await client.call(complete("a"))
        await ask(client, "b", 3)
        assert calls.by_host == {LOOPBACK[0]: 5, LOOPBACK[1]: 3}
        assert waf.open[:2] == [1, 1]
        client.forget("a")
        await until(lambda: waf.open[:2] == [0, 1])


async def test_a_request_that_takes_too_long_goes_on_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch, waf=hosts(1))
    calls = Calls()
    async with service(behaviour=calls) as waf, calling(waf.url, drain_timeout=10.0) as client:
        await connected(client)
        await client.call(head("a"))
        names.answers["waf.test"] = hosts(2)
        await anyio.sleep(SOON)
        await client.call(chunk("a"))
        assert calls.by_host == {LOOPBACK[0]: 2}
        await anyio.sleep(10)
        assert waf.open[:2] == [0, 1]
        await client.call(chunk("a", index=1))
        assert calls.by_host == {LOOPBACK[0]: 2, LOOPBACK[1]: 1}


async def test_an_address_that_comes_back_while_it_drains_is_connected_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch, waf=hosts(1, 2))
    async with service() as waf, calling(waf.url, drain_timeout=60.0) as client:
        await connected(client, 2)
        for number in range(10):
            await client.call(head(f"{number}"))
        names.answers["waf.test"] = hosts(2)
        await anyio.sleep(SOON)
        names.answers["waf.test"] = hosts(1, 2)
        await anyio.sleep(SOON)
        assert waf.open[:2] == [2, 1]
        for number in range(10):
            client.forget(f"{number}")
        await until(lambda: waf.open[:2] == [1, 1])
        assert endpoints(client) == dict.fromkeys(waf.urls(1, 2), "up")


async def test_an_address_that_could_not_be_reached_leaves_nothing_when_it_goes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = resolving(monkeypatch, waf=hosts(1, 2))
    async with service(2) as waf, calling(waf.url) as client:
        await connected(client)
        await until(lambda: endpoints(client) == dict(zip(waf.urls(1, 2), ("up", "down"), strict=True)))
        names.answers["waf.test"] = hosts(1)
        await anyio.sleep(SOON)
        assert endpoints(client) == {waf.url: "up"}
        caplog.clear()
        await anyio.sleep(60)
        assert lines(caplog) == []


async def test_agents_of_the_older_kits_are_followed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are asked one event at a time on a connection, and connections are made as they are needed."""
    names = resolving(monkeypatch, waf=hosts(1, 2))
    calls = Calls()
    events = frozenset({EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK})
    async with (
        service(behaviour=calls, framing="envelope") as waf,
        calling(waf.url, framing="envelope", connections=4, events=events) as client,
    ):
        await connected(client, 2)
        await client.call(head("a"))
        [old] = calls.by_host
        names.answers["waf.test"] = [*({*hosts(1, 2)} - {old}), LOOPBACK[2]]
        await anyio.sleep(SOON)
        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(ask, client, number)
        await client.call(chunk("a"))
        assert calls.by_host[old] == 2
        assert calls.by_host.total() == 8
        client.forget("a")
        await until(lambda: not waf.instances[LOOPBACK.index(old)].links)


# Failures


async def test_a_name_that_can_not_be_found_fails_calls_and_is_found_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = resolving(monkeypatch, waf=no_such_name())
    async with service() as waf, calling(waf.url) as client:
        for _ in range(2):
            with pytest.raises(AgentConnectionError, match=rf"\A{waf.url}: gaierror: .*Name or service not known\Z"):
                await client.call(head("a"))
        with pytest.raises(AgentConnectionError, match="gaierror"):
            await client.connect()
        assert endpoints(client) == {waf.url: "down"}
        names.answers["waf.test"] = hosts(1, 2)
        await anyio.sleep(SOON)
        assert endpoints(client) == dict.fromkeys(waf.urls(1, 2), "up")
        await ask(client, "b", 5)
    [line] = warnings(caplog)
    assert line.startswith(f"agent 'waf' at {waf.url}: gaierror: ")


async def test_a_call_before_the_first_lookup_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch, waf=hosts(1, 2))
    async with service() as waf, calling(waf.url) as client:
        await client.call(head("a"))
        assert len(names.lookups) == 1


@pytest.mark.parametrize("answer", [no_such_name(), ()])
async def test_while_a_name_can_not_be_looked_up_its_instances_are_called(
    answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = resolving(monkeypatch, waf=hosts(1, 2))
    async with service() as waf, calling(waf.url) as client:
        await connected(client, 2)
        names.answers["waf.test"] = answer
        await anyio.sleep(60)
        await ask(client, "a", 10)
        # Lost connections are made again.
        for link in [link for instance in waf.instances for link in instance.links]:
            await link.aclose()
        await until(lambda: waf.open[:2] == [1, 1])
        await ask(client, "b", 10)


async def test_a_lost_connection_has_the_name_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch, waf=hosts(1, 2))
    async with service() as waf, calling(waf.url) as client:
        await connected(client, 2)
        await anyio.sleep(1.5)
        names.answers["waf.test"] = hosts(2, 3)
        [link] = waf.instances[0].links
        await link.aclose()
        # Long before it would have been looked up anyway.
        await anyio.sleep(0.5)
        assert set(endpoints(client)) == set(waf.urls(2, 3))


async def test_calls_are_not_held_up_by_an_instance_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, waf=hosts(1, 2, 3))
    async with service(2) as waf, calling(waf.url) as client:
        await connected(client, 2)
        await ask(client, "a", 30)
        assert waf.accepted[1] == 0


async def test_when_all_that_are_left_are_gone_calls_fail_with_their_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = resolving(monkeypatch, waf=hosts(1))
    async with service(2, 3) as waf, calling(waf.url, drain_timeout=60.0) as client:
        await connected(client)
        await client.call(head("old"))
        names.answers["waf.test"] = hosts(2, 3)
        await anyio.sleep(SOON)
        # What still drains is of no use to others.
        with pytest.raises(AgentConnectionError) as caught:
            await client.call(head("new"))
        assert all(url in str(caught.value) for url in waf.urls(2, 3))
        await client.call(chunk("old"))


async def test_the_faults_of_very_many_instances_are_a_short_message(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, waf=[f"127.0.1.{number}" for number in range(1, 51)])
    async with service() as waf, calling(waf.url) as client:
        with pytest.raises(AgentConnectionError) as caught:
            await client.connect()
    assert str(caught.value).endswith("; and 45 more")


# Balancing


async def test_members_get_equal_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, waf=hosts(1, 2, 3, 4))
    calls = Calls()
    async with service(behaviour=calls) as waf, calling(waf.url) as client:
        await connected(client, 4)
        await ask(client, "a", 400)
        assert all(60 < count < 140 for count in calls.by_host.values())


async def test_one_that_is_slow_gets_less(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, waf=hosts(1, 2, 3))
    slow = LOOPBACK[0]

    async def answer(event: Received) -> None:
        # The peer reads on only then: what it is asked meanwhile waits.
        await anyio.sleep(0.2 if event.link.peer.host == slow else 0.002)  # type: ignore[attr-defined]
        await event.answer()

    calls = Calls(answer)
    async with service(behaviour=calls) as waf, calling(waf.url) as client:
        await connected(client, 3)

        async def client_of_ours(number: int) -> None:
            await ask(client, number, 50)

        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(client_of_ours, number)
        assert sum(calls.by_host.values()) == 300
        assert calls.by_host[slow] < 30


@pytest.mark.parametrize(
    ("given", "expected"), [(None, LoadBalancing.POWER_OF_TWO), ("round_robin", LoadBalancing.ROUND_ROBIN)]
)
async def test_another_kind_of_balancing_can_be_chosen(
    given: Any, expected: LoadBalancing, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = resolving(monkeypatch, waf=hosts(1))
    chosen: list[LoadBalancing] = []
    async with service() as waf, calling(waf.url, load_balancing=given) as client:
        pool = await connected(client)
        balance = pool.rotation.balance

        def balanced(kind: LoadBalancing) -> None:
            chosen.append(kind)
            balance(kind)

        monkeypatch.setattr(pool.rotation, "balance", balanced)
        names.answers["waf.test"] = hosts(1, 2)
        await anyio.sleep(SOON)
        names.answers["waf.test"] = hosts(2)
        await anyio.sleep(SOON)
    assert chosen == ([] if given else [LoadBalancing.POWER_OF_TWO, LoadBalancing.ROUND_ROBIN])
    assert expected in (*chosen, LoadBalancing.ROUND_ROBIN)


async def test_members_whose_calls_fail_are_ejected_as_long_as_half_of_them_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolving(monkeypatch, waf=hosts(1, 2, 3, 4, 5))
    async with service() as waf, calling(waf.url) as client:
        await connected(client, 5)
        for number in (1, 2, 3):
            waf.instances[number - 1].behaviour = failing
        outcomes = Counter[str]()
        for number in range(300):
            try:
                await ask(client, number)
                outcomes["answered"] += 1
            except AgentError:
                outcomes["failed"] += 1
        states = Counter(endpoints(client).values())
        assert states == {"ejected": 2, "up": 3}
        # The third of them stays, and is asked less than others.
        before = outcomes["failed"]
        for number in range(300, 400):
            try:
                await ask(client, number)
            except AgentError:
                outcomes["failed"] += 1
        assert outcomes["failed"] - before < 30


# Mixed


async def test_names_and_addresses_in_one_list(monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch, waf=hosts(2, 3), other=hosts(3, 4))
    there = Peer(behaviour=allow)
    async with service() as waf, there.listening():
        other = waf.url.replace("waf", "other")
        async with calling(there.url, waf.urls(1)[0], waf.url, other) as client:
            await connected(client, 5)
            # What two names lead to is there once.
            assert list(endpoints(client)) == [there.url, *waf.urls(1, 2, 3, 4)]
            names.answers["waf.test"] = hosts(1, 2)
            await anyio.sleep(SOON)
            assert list(endpoints(client)) == [there.url, *waf.urls(1, 2, 3, 4)]
            names.answers["other.test"] = hosts(4, 5)
            await anyio.sleep(SOON)
            assert list(endpoints(client)) == [there.url, *waf.urls(1, 2, 4, 5)]
            assert waf.accepted == [1] * 5


@pytest.mark.parametrize("interval", [None, 5.0])
async def test_addresses_are_never_looked_up(interval: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch)
    async with service() as waf:
        urls = [*waf.urls(1, 2), f"tcp://localhost:{waf.port}"]
        async with calling(*urls, resolve_interval=interval) as client:
            await connected(client, 3)
            assert list(endpoints(client)) == urls
            await anyio.sleep(20)
    assert names.lookups == []


@pytest.mark.real_time
async def test_without_an_interval_a_name_is_looked_up_for_each_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch)
    url = "tcp://agent.invalid:9000"
    async with calling(url, resolve_interval=None) as client:
        with pytest.raises(AgentConnectionError, match="gaierror"):
            await client.connect()
        assert endpoints(client) == {url: "down"}
    assert names.lookups == []


@pytest.mark.parametrize("addresses", [hosts(1), hosts(1, 2)])
async def test_the_certificate_has_to_name_the_name(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, waf=addresses, other=addresses)
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("waf.test").configure_cert(server)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trusting)
    async with service(tls=server) as waf:
        async with calling(waf.url, tls=True, verify=trusting) as client:
            await connected(client, len(addresses))
            await ask(client, "a", 3)
        async with calling(waf.url.replace("waf", "other"), tls=True, verify=trusting) as client:
            with pytest.raises(AgentConnectionError, match="certificate"):
                await client.connect()


# Instances that differ


async def test_what_an_instance_that_has_gone_receives_needs_a_verdict_until_the_others_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its successor has not said yet what it receives. Until then its events must not pass."""
    names = resolving(monkeypatch, waf=hosts(1, 2))
    heads_only = handshake(events=frozenset({EventType.REQUEST_HEADERS}))
    async with service(3) as waf, calling(waf.url) as client:
        waf.instances[0].greeting = heads_only
        await connected(client, 2)
        assert client.hears >= ALL_EVENTS
        names.answers["waf.test"] = hosts(1, 3)
        await anyio.sleep(SOON)
        assert client.hears >= ALL_EVENTS
        await ask(client, "a")
        with pytest.raises(AgentConnectionError, match=waf.urls(3)[0]):
            await client.call(chunk("b"))
        async with waf.instances[2].listening():
            await anyio.sleep(SOON)
            await client.call(chunk("c"))
        names.answers["waf.test"] = hosts(1)
        await anyio.sleep(SOON)
        assert client.hears == {EventType.REQUEST_HEADERS}


async def test_each_instance_gets_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch, waf=hosts(1))
    async with service() as waf, calling(waf.url, config={"words": ["x"]}) as client:
        await connected(client)
        names.answers["waf.test"] = hosts(1, 2, 3)
        await anyio.sleep(SOON)
        assert [instance.handshakes[0]["config"] for instance in waf.instances[:3]] == [{"words": ["x"]}] * 3


# The end


async def test_nothing_is_left_when_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch, waf=hosts(1, 2, 3))
    async with service() as waf:
        async with calling(waf.url) as client:
            await connected(client, 3)
            await client.call(head("a"))
            names.answers["waf.test"] = hosts(2, 3)
            await anyio.sleep(SOON)
        await settle()
        assert waf.open == [0] * 5
        count = len(names.lookups)
        await anyio.sleep(60)
        assert len(names.lookups) == count


async def test_it_can_be_closed_before_the_first_lookup_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(host: str, port: int) -> list[str]:
        await anyio.sleep_forever()
        return []

    monkeypatch.setattr("asgi_agents.transports.discovery.watch.look_up", never)
    async with calling("tcp://waf.test:9000") as client:
        with anyio.move_on_after(10) as scope:
            await client.connect()
        assert scope.cancelled_caught
        assert endpoints(client) == {"tcp://waf.test:9000": "connecting"}


async def test_years_of_changes_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch, waf=hosts(1))
    async with service() as waf, calling(waf.url, resolve_interval=0.2) as client:
        pool = await connected(client)
        for turn in range(30):
            names.answers["waf.test"] = hosts(1 + turn % 5, 1 + (turn + 1) % 5)
            await anyio.sleep(0.3)
            for instance in waf.instances:
                for link in tuple(instance.links):
                    await link.say(2)
        names.answers["waf.test"] = hosts(1)
        await until(lambda: sum(waf.open) == 1)
        assert len(pool.endpoints._connectors) == len(pool.endpoints._by_key) == len(pool.endpoints._members) == 1
        assert pool.endpoints.leaving == []
        gc.collect()
        assert len(pool._health_log._logged) <= 1
