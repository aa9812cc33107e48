"""Agents behind HTTP whose host leads to several addresses, and then to others. In virtual time, with real sockets."""

import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import anyio
import pytest
import trustme
from anyio.abc import ByteStream
from anyio.streams.tls import TLSListener

from asgi_agents import (
    AgentConfig,
    AgentConnectionError,
    AgentError,
    AgentManager,
    AgentProtocolError,
    AgentResponse,
    ConfigurationError,
    EventType,
    GuardrailInspectEvent,
    HttpTransport,
)
from asgi_agents.guardrail_services.service import ServiceEndpoint
from asgi_agents.transports.http1.pool import Http1Pool
from asgi_agents.transports.named_pool import NamedPool
from tests.support.listening import serving
from tests.support.names import LOOPBACK, free_port, no_such_name, resolving
from tests.support.sample_events import head

from .test_http import CHUNK, RawAgent, raw_answer, read_request

SOON = 5.2
AUTHORITY = trustme.CA()

pytestmark = pytest.mark.usefixtures("http_client", "chance")


@pytest.fixture
def chance() -> None:
    """What chance decides is decided alike in each run."""
    random.seed(7)


class Instance(RawAgent):
    """At an address of its own. ``answer`` is what it answers: None: never anything; nothing: it hangs up."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(self._behave, f"http://{host}:{port}")
        self.host = host
        self.calls = 0
        self.answer: bytes | None = raw_answer()
        self.gate = anyio.Event()
        self.gate.set()
        self.heads: list[bytes] = []

    async def _behave(self, stream: ByteStream) -> None:
        while True:
            await read_request(stream)
            self.calls += 1
            if self.answer is None:
                await anyio.sleep_forever()
            await self.gate.wait()
            if not self.answer:
                return
            await stream.send(self.answer)


class Service:
    """Five instances at one port."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://waf.test:{port}/"
        self.instances = [Instance(host, port) for host in LOOPBACK]

    @property
    def calls(self) -> list[int]:
        return [instance.calls for instance in self.instances]

    @property
    def open(self) -> list[int]:
        return [instance.open for instance in self.instances]

    def urls(self, *numbers: int) -> list[str]:
        return [self.instances[number - 1].url for number in numbers]

    def forget(self) -> None:
        for instance in self.instances:
            instance.calls = 0


@asynccontextmanager
async def service(*absent: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Service]:
    made = Service(free_port())
    async with AsyncExitStack() as stack:
        for number, instance in enumerate(made.instances, 1):
            if number in absent:
                continue
            listener: Any = await anyio.create_tcp_listener(local_host=instance.host, local_port=made.port)
            if tls is not None:
                listener = TLSListener(listener, tls, standard_compatible=False)
            await stack.enter_async_context(serving(listener, instance.connection))
        yield made


def hosts(*numbers: int) -> list[str]:
    return [LOOPBACK[number - 1] for number in numbers]


def pool_of(transport: HttpTransport) -> Any:
    return transport._connections.peek()  # type: ignore[union-attr]


def states(transport: HttpTransport) -> dict[str, str]:
    return {each.address: each.state for each in transport.statistics()}


@asynccontextmanager
async def reaching(url: str, **options: Any) -> AsyncIterator[HttpTransport]:
    transport = HttpTransport(url, **options)
    async with aclosing(transport):
        yield transport


async def call(transport: HttpTransport, times: int = 1) -> None:
    for _ in range(times):
        assert await transport.call(CHUNK) == AgentResponse()


# What a name leads to


async def test_calls_are_spread_over_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch, waf=hosts(1, 2, 3))
    async with service() as waf, reaching(waf.url) as transport:
        await call(transport, 150)
        assert waf.calls[3:] == [0, 0]
        assert all(25 < calls < 75 for calls in waf.calls[:3])
        assert states(transport) == dict.fromkeys(waf.urls(1, 2, 3), "up")
        assert sum(each.connections for each in transport.statistics()) == sum(waf.open) == 3
        assert len(names.lookups) == 1


async def test_a_single_address_is_called_as_if_it_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing between the transport and the pool of connections to it."""
    resolving(monkeypatch, waf=hosts(2))
    async with service() as waf, reaching(waf.url) as transport:
        await call(transport, 10)
        pool = pool_of(transport)
        [lane] = pool._lanes.values()
        assert pool.send == lane.pool.send
        assert waf.calls == [0, 10, 0, 0, 0]
        assert waf.instances[1].accepted == 1
        assert transport.statistics() == ()


async def test_an_address_and_this_machine_are_never_looked_up(
    monkeypatch: pytest.MonkeyPatch, http_client: str
) -> None:
    names = resolving(monkeypatch)
    async with service() as waf:
        for host in ("127.0.0.1", "localhost"):
            async with reaching(f"http://{host}:{waf.port}/") as transport:
                await call(transport)
                assert not isinstance(pool_of(transport), NamedPool)
                assert isinstance(pool_of(transport), Http1Pool) == (http_client == "http1")
    assert names.lookups == []


@pytest.mark.real_time
async def test_without_an_interval_each_connection_looks_the_name_up(monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch)
    async with reaching("http://agent.invalid/", resolve_interval=None) as transport:
        with pytest.raises(AgentConnectionError):
            await transport.call(CHUNK)
    assert names.lookups == []


async def test_the_agent_is_told_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, waf=hosts(1, 2))
    heads = []

    async def behave(stream: ByteStream) -> None:
        data = b""
        while not data.endswith(b"}"):
            data += await stream.receive()
        heads.append(data.partition(b"\r\n\r\n")[0].lower())
        await stream.send(raw_answer())

    async with service() as waf:
        for instance in waf.instances:
            instance.behave = behave
        async with reaching(waf.url) as transport:
            await call(transport, 4)
    assert all(b"\r\nhost: waf.test:%d" % waf.port in each for each in heads)
    assert len(heads) == 4


@pytest.mark.parametrize("addresses", [hosts(1), hosts(1, 2)])
async def test_the_certificate_has_to_name_the_name(addresses: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch, waf=addresses, other=addresses)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("waf.test").configure_cert(server)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(trusting)
    async with service(tls=server) as waf:
        async with reaching(f"https://waf.test:{waf.port}/", verify=trusting) as transport:
            await transport.connect()
            await call(transport, 3)
        async with reaching(f"https://other.test:{waf.port}/", verify=trusting) as transport:
            for attempt in (transport.connect, lambda: transport.call(CHUNK)):
                with pytest.raises(AgentConnectionError, match="certificate"):
                    await attempt()
    assert {name for _, name in names.lookups} == {"waf.test", "other.test"}


# Changes


@pytest.mark.slow
async def test_three_become_five_become_two_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch, waf=hosts(1, 2, 3))
    async with service() as waf, reaching(waf.url) as transport:
        stopping = False

        async def keep_calling() -> None:
            while not stopping:
                await call(transport)
                await anyio.sleep(0.2)

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(keep_calling)
            await anyio.sleep(1)
            for now in ((1, 2, 3, 4, 5), (4, 5), (2,), (1, 3)):
                names.answers["waf.test"] = hosts(*now)
                await anyio.sleep(SOON)
                waf.forget()
                await anyio.sleep(4)
                assert [number for number, calls in enumerate(waf.calls, 1) if calls] == list(now)
                assert [number for number, count in enumerate(waf.open, 1) if count] == list(now)
            stopping = True


async def test_a_call_under_way_to_an_address_that_has_left_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch, waf=hosts(1))
    async with service() as waf, reaching(waf.url) as transport:
        old = waf.instances[0]
        old.gate = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, transport)
            await anyio.sleep(0.1)
            assert old.calls == 1
            names.answers["waf.test"] = hosts(2)
            await anyio.sleep(SOON)
            await call(transport, 5)
            assert waf.calls[:2] == [1, 5]
            assert old.open == 1
            old.gate.set()
        await old.has_open(0)


async def test_what_a_name_has_led_to_last_holds_while_it_can_not_be_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = resolving(monkeypatch, waf=hosts(1, 2))
    async with service() as waf, reaching(waf.url) as transport:
        await call(transport)
        names.answers["waf.test"] = no_such_name()
        await anyio.sleep(60)
        await call(transport, 10)


async def test_a_name_that_can_not_be_found_is_a_connection_error_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch, waf=no_such_name())
    async with service() as waf, reaching(waf.url) as transport:
        for _ in range(2):
            for attempt in (transport.connect, lambda: transport.call(CHUNK)):
                with pytest.raises(AgentConnectionError, match=r"\Agaierror: .*Name or service not known\Z"):
                    await attempt()
        names.answers["waf.test"] = hosts(1)
        await anyio.sleep(1.1)
        await transport.connect()
        await call(transport)


async def test_a_lost_single_address_is_looked_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch, waf=hosts(2))
    async with service(1) as waf, reaching(waf.url) as transport:
        await call(transport)
        names.answers["waf.test"] = hosts(1)
        await anyio.sleep(SOON)
        names.answers["waf.test"] = hosts(3)
        await anyio.sleep(1.1)
        with pytest.raises(AgentConnectionError, match="Connect"):
            await transport.call(CHUNK)
        await anyio.sleep(0.1)
        await call(transport)
        assert waf.calls[2] == 1


# Failures


async def test_a_call_whose_connection_can_not_be_made_goes_to_another_member(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolving(monkeypatch, waf=hosts(1, 2, 3))
    async with service(1, 3) as waf, reaching(waf.url) as transport:
        await transport.connect()
        await call(transport, 20)
        assert waf.calls == [0, 20, 0, 0, 0]
        faults = {each.address: each.fault for each in transport.statistics()}
        assert [address for address, fault in faults.items() if "Connect" in fault] == waf.urls(1, 3)


async def test_where_no_member_can_be_reached_a_call_fails_once_all_were_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, waf=hosts(1, 2, 3))
    async with service(1, 2, 3) as waf, reaching(waf.url) as transport:
        for attempt in (transport.connect, lambda: transport.call(CHUNK)):
            with pytest.raises(AgentConnectionError, match="Connect"):
                await attempt()
        assert states(transport) == dict.fromkeys(waf.urls(1, 2, 3), "down")


async def test_a_call_that_may_have_been_sent_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, waf=hosts(1, 2))
    calls = 0

    async def hang_up(stream: ByteStream) -> None:
        nonlocal calls
        await read_request(stream)
        calls += 1

    async with service() as waf:
        for instance in waf.instances:
            instance.behave = hang_up
        async with reaching(waf.url) as transport:
            with pytest.raises(AgentConnectionError):
                await transport.call(CHUNK)
    assert calls == 1


Fault = Callable[[Instance], None]


def _answers_500(instance: Instance) -> None:
    instance.answer = b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"


def _answers_nonsense(instance: Instance) -> None:
    instance.answer = raw_answer(b'{"version": 2, "decision": "alloy"}')


def _hangs_up(instance: Instance) -> None:
    instance.answer = b""


@pytest.mark.parametrize("break_it", [_answers_500, _answers_nonsense, _hangs_up])
async def test_a_member_whose_calls_fail_is_left_out_and_comes_back(
    break_it: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, waf=hosts(1, 2, 3))
    async with service() as waf, reaching(waf.url) as transport:
        await call(transport, 10)
        bad = waf.instances[0]
        answer = bad.answer
        break_it(bad)
        failed = 0
        for _ in range(300):
            try:
                await transport.call(CHUNK)
            except (AgentConnectionError, AgentProtocolError):
                failed += 1
        assert 5 <= failed <= 6
        assert states(transport)[bad.url] == "ejected"
        bad.answer = answer
        await anyio.sleep(5.1)
        waf.forget()
        await call(transport, 60)
        assert bad.calls > 5


async def test_an_event_that_is_too_large_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, waf=hosts(1, 2))
    async with service() as waf, reaching(waf.url) as transport:
        for instance in waf.instances:
            instance.answer = b"HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n"
        for _ in range(30):
            with pytest.raises(AgentError, match="413"):
                await transport.call(CHUNK)
        assert set(states(transport).values()) == {"up"}


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_text_that_a_guardrail_service_does_not_take_is_nobodys_fault(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    resolving(monkeypatch, waf=hosts(1, 2))
    text = GuardrailInspectEvent(correlation_id="c-1", inspection_type="toxicity", content="what a client has written")
    async with service() as waf, aclosing(ServiceEndpoint("a test", waf.url)) as endpoint:
        for instance in waf.instances:
            instance.answer = b"HTTP/1.1 %d No\r\ncontent-length: 0\r\n\r\n" % status
        for _ in range(30):
            with pytest.raises(AgentError, match=f"{status}"):
                await endpoint.ask(text, dict)
        assert set(states(endpoint).values()) == {"up"}


async def test_half_of_the_members_stay_however_many_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, waf=hosts(1, 2, 3, 4, 5))
    async with service() as waf, reaching(waf.url) as transport:
        for instance in waf.instances[:4]:
            _answers_500(instance)
        for _ in range(300):
            try:
                await transport.call(CHUNK)
            except AgentProtocolError:
                continue
        assert Counter(states(transport).values()) == {"ejected": 2, "up": 3}


async def test_a_member_that_never_answers_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadlines of its calls tell: those that are cancelled for another reason say nothing of it."""
    resolving(monkeypatch, waf=hosts(1, 2, 3))
    async with service() as waf:
        waf.instances[0].answer = None
        config = AgentConfig(
            "waf", HttpTransport(waf.url), events={EventType.REQUEST_HEADERS}, timeout=0.5, circuit_breaker=None
        )
        async with AgentManager([config]) as manager:
            for number in range(100):
                await manager.process_request_headers(head(str(number)))
            found = {each.address: each.state for each in manager.statistics()["waf"].endpoints}
            assert found == dict(zip(waf.urls(1, 2, 3), ("ejected", "up", "up"), strict=True))
            assert waf.calls[0] == 5


async def test_calls_that_are_cancelled_early_say_nothing_of_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, waf=hosts(1, 2))
    async with service() as waf:
        waf.instances[0].answer = None
        transport = HttpTransport(waf.url)
        config = AgentConfig("waf", transport, events={EventType.REQUEST_HEADERS}, timeout=60.0)
        async with AgentManager([config]) as manager:
            for number in range(50):
                with anyio.move_on_after(0.1):
                    await manager.process_request_headers(head(str(number)))
            assert {each.state for each in manager.statistics()["waf"].endpoints} == {"up"}
            assert waf.calls[0] > 5


async def test_one_that_is_slow_gets_less(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, waf=hosts(1, 2, 3))

    def taking(seconds: float, instance: Instance) -> Callable[[ByteStream], Awaitable[None]]:
        async def behave(stream: ByteStream) -> None:
            while True:
                await read_request(stream)
                instance.calls += 1
                await anyio.sleep(seconds)
                await stream.send(raw_answer())

        return behave

    async with service() as waf:
        for instance in waf.instances:
            instance.behave = taking(0.2 if instance is waf.instances[0] else 0.002, instance)
        async with reaching(waf.url) as transport, anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(call, transport, 50)
        assert sum(waf.calls) == 300
        assert waf.calls[0] < 30


# The end


async def test_nothing_is_left_when_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolving(monkeypatch, waf=hosts(1, 2, 3))
    async with service() as waf:
        async with reaching(waf.url) as transport:
            await call(transport, 20)
            names.answers["waf.test"] = hosts(2, 3)
            await anyio.sleep(SOON)
            await call(transport, 20)
        for instance in waf.instances:
            await instance.has_open(0)
        count = len(names.lookups)
        await anyio.sleep(60)
        assert len(names.lookups) == count
        # And it can be opened again.
        async with reaching(waf.url) as transport:
            await call(transport)
            await transport.aclose()
            await call(transport)


async def test_a_subclass_may_have_a_call_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(HttpTransport):
        calls = 0

        async def call(self, event: Any) -> Any:  # type: ignore[override]
            self.calls += 1
            return await super().call(event)

    resolving(monkeypatch, waf=hosts(1, 2))
    async with service() as waf:
        transport = Counting(waf.url)
        async with AgentManager([AgentConfig("waf", transport, events={EventType.REQUEST_HEADERS})]) as manager:
            await manager.process_request_headers(head("a"))
        assert transport.calls == 1


def test_an_interval_that_can_not_be_one_is_refused() -> None:
    for interval in (0, -1.0, "5", True):
        with pytest.raises(ConfigurationError, match=r"resolve_interval=.*expected a number of seconds above 0"):
            HttpTransport("http://waf.test/", resolve_interval=interval)  # type: ignore[arg-type]
