"""A transport that the package has never seen does what its own do: it is the one file ``toy.py``."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import anyio
import pytest

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    BreakerState,
    CircuitBreakerConfig,
    ConfigurationError,
    ConfigureEvent,
    EventType,
    FailureKind,
    FailureMode,
    RequestHeadersEvent,
    Transport,
)
from asgi_agents.errors import AgentError
from asgi_agents.manager import registry_of

from ..support.asgi import App, Client
from .toy import LISTENING, ToyClient, ToyTransport

pytestmark = pytest.mark.anyio

URL = "toy://waf"
HEADS = {EventType.REQUEST_HEADERS}


class Waf(Agent):
    """Blocks with the status that it is configured with."""

    def __init__(self) -> None:
        self.config: Any = None
        self.hangs = False

    async def on_configure(self, event: ConfigureEvent) -> AgentResponse | None:
        if event.config == "wrong":
            return AgentResponse.block(400)
        self.config = event.config
        return None

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        if self.hangs:
            await anyio.sleep_forever()
        return None if self.config is None else AgentResponse.block(self.config)


@asynccontextmanager
async def listening(agent: Agent, address: str = URL) -> AsyncIterator[None]:
    """``agent`` answers what is sent to ``address``, within."""
    line, events = anyio.create_memory_object_stream[Any](100)

    async def answer(event: Any, reply: Any) -> None:
        with reply, suppress(anyio.BrokenResourceError):
            reply.send_nowait(await getattr(agent, f"on_{event.event_type.value}")(event))

    async def serve() -> None:
        async for event, reply in events:
            tasks.start_soon(answer, event, reply)

    async with anyio.create_task_group() as tasks:
        with line, events:
            LISTENING[address] = (agent.events, line)
            tasks.start_soon(serve)
            try:
                yield
            finally:
                del LISTENING[address]
                tasks.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if a package with this transport were installed."""
    point = metadata.EntryPoint("toy", "tests.transports.toy:ToyTransport", "asgi_agents.transports")
    broken = metadata.EntryPoint("gone", "tests.transports.toy:Gone", "asgi_agents.transports")
    strange = metadata.EntryPoint("strange", "builtins:str", "asgi_agents.transports")
    found = metadata.EntryPoints((point, broken, strange))
    monkeypatch.setattr(metadata, "entry_points", lambda **params: found.select(**params))
    yield
    LISTENING.clear()


def configured(**fields: Any) -> AgentConfig:
    return AgentConfig("waf", URL, **{"timeout": 5.0} | fields)


async def status_of(manager: AgentManager) -> int | None:
    client = Client("GET")
    await client.call(AgentMiddleware(App(), manager=manager))
    return client.status


async def test_it_is_found_by_its_scheme_and_guards_an_app() -> None:
    config = configured(config=418)
    assert isinstance(config.resolved_transport, ToyTransport)
    assert isinstance(config.resolved_transport, Transport)
    async with listening(Waf()), AgentManager([config]) as manager:
        assert await status_of(manager) == 418
        assert registry_of(manager).guard("waf").hears == {EventType.CONFIGURE, EventType.REQUEST_HEADERS}


async def test_without_a_configuration_it_lets_everything_pass() -> None:
    async with listening(Waf()), AgentManager([configured()]) as manager:
        assert await status_of(manager) == 200


@pytest.mark.parametrize(("mode", "status"), [(FailureMode.CLOSED, 504), (FailureMode.OPEN, 200)])
async def test_a_call_that_takes_too_long_is_the_failure_mode(mode: FailureMode, status: int) -> None:
    agent = Waf()
    agent.hangs = True
    async with listening(agent), AgentManager([configured(timeout=0.5, failure_mode=mode)]) as manager:
        assert await status_of(manager) == status
        assert manager.metrics["waf"].outcomes == {FailureKind.TIMEOUT: 1}


async def test_an_agent_that_is_away_opens_its_breaker_and_closes_it_when_it_is_back() -> None:
    breaker = CircuitBreakerConfig(failure_threshold=2, success_threshold=1, reset_timeout=300.0)
    async with AgentManager([configured(circuit_breaker=breaker, events=HEADS)]) as manager:
        assert [await status_of(manager) for _ in range(3)] == [503, 503, 503]
        assert manager.statistics()["waf"].breaker is BreakerState.OPEN
        assert manager.metrics["waf"].outcomes == {FailureKind.ERROR: 2, FailureKind.BREAKER_OPEN: 1}
        async with listening(Waf()):
            # It says that it has connected: trials are let through at once.
            await registry_of(manager).guard("waf").configuring.configure()
            assert await status_of(manager) == 200
            assert manager.statistics()["waf"].breaker is BreakerState.CLOSED


async def test_a_connection_that_is_lost_is_a_failure_and_is_made_again() -> None:
    async with AgentManager([configured()]) as manager:
        async with listening(Waf()):
            assert await status_of(manager) == 200
        async with listening(Waf()):
            assert await status_of(manager) == 503
            assert await status_of(manager) == 200


async def test_its_connections_are_in_the_statistics() -> None:
    async with listening(Waf()), AgentManager([configured()]) as manager:
        statistics = manager.statistics()["waf"]

        assert (statistics.transport, statistics.connections) == ("toy", 1)
        assert [endpoint.address for endpoint in statistics.endpoints] == [URL]
    assert manager.statistics()["waf"].connections == 0


async def test_it_is_given_another_configuration_while_it_runs() -> None:
    async with listening(Waf()), AgentManager([configured()]) as manager:
        await manager.push_config("waf", 429)
        assert await status_of(manager) == 429

        with pytest.raises(AgentError, match="refuses its configuration"):
            await manager.push_config("waf", "wrong")
        assert await status_of(manager) == 429


async def test_it_is_replaced_and_the_old_connection_closed() -> None:
    async with listening(Waf()), AgentManager([configured(config=418)]) as manager:
        old = registry_of(manager).guard("waf").client
        await manager.replace_agent(configured(config=429))

        assert await status_of(manager) == 429
        assert old.statistics() == ([], 0)


async def test_one_that_does_not_take_its_configuration_replaces_nobody() -> None:
    async with listening(Waf()), AgentManager([configured(config=418)]) as manager:
        with pytest.raises(AgentError, match="the old one stays: it refuses its configuration"):
            await manager.replace_agent(configured(config="wrong"))

        assert await status_of(manager) == 418


async def test_an_agent_that_is_required_at_startup_has_to_be_there() -> None:
    with pytest.raises(AgentError, match="agent 'waf' is required at startup: nobody listens there"):
        async with AgentManager([configured(require_at_startup=True)]):
            raise AssertionError


# What clients of users may raise


class HostError(AgentError):
    def __init__(self, host: str, why: str) -> None:
        super().__init__(f"{host}: {why}")


@dataclass
class Raising(ToyTransport):
    """Its client raises whatever it is asked for."""

    make: Callable[[], Exception]
    address: str = URL

    def bind(self, agent_id: str, *, events: Any, config: Any, max_concurrent_calls: int) -> ToyClient:
        make = self.make

        class Client(ToyClient):
            async def connect(self) -> None:
                raise make()

            async def push_config(self, config: Any) -> None:
                raise make()

        return Client(self.address, agent_id, frozenset(HEADS), config)


RAISED: dict[str, tuple[Callable[[], Exception], str]] = {
    "an error with other parameters": (lambda: HostError("h", "down"), "h: down"),
    "no error of an agent": (lambda: OSError("secret"), "configure: raised OSError at test_toy.py:"),
    "a group": (
        lambda: ExceptionGroup("", [OSError("secret")]),
        "configure: raised ExceptionGroup of OSError at ",
    ),
}
each_raised = pytest.mark.parametrize(("make", "said"), RAISED.values(), ids=RAISED)


@each_raised
async def test_whatever_a_client_raises_ends_a_start_that_requires_it(make: Callable[[], Exception], said: str) -> None:
    agents = [AgentConfig("waf", Raising(make), events=HEADS, require_at_startup=True)]
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    app = AgentMiddleware(App(), agents=agents)
    with pytest.raises(AgentError, match="agent 'waf' is required at startup: "):
        await app({"type": "lifespan"}, receive, send)
    (message,) = sent
    assert message["type"] == "lifespan.startup.failed"
    assert said in message["message"]
    assert "secret" not in message["message"]


@each_raised
async def test_whatever_a_client_raises_ends_no_other_start(make: Callable[[], Exception], said: str) -> None:
    async with AgentManager([AgentConfig("waf", Raising(make), events=HEADS)]) as manager:
        assert manager.agent_ids == ("waf",)


@each_raised
async def test_whatever_a_client_raises_is_the_error_of_whoever_asks(make: Callable[[], Exception], said: str) -> None:
    raising = AgentConfig("waf", Raising(make), events=HEADS)
    async with listening(Waf()), AgentManager([configured(config=418)]) as manager:
        with pytest.raises(AgentError, match="the old one stays: ") as caught:
            await manager.replace_agent(raising)
        assert said in str(caught.value)
        assert await status_of(manager) == 418
        await manager.add_agent(replace(raising, id="other"))
        with pytest.raises(AgentError) as caught:
            await manager.push_config("other", 429)
        assert said in str(caught.value)


# Schemes


def refusal(transport: Any) -> str:
    with pytest.raises(ConfigurationError) as raised:
        AgentConfig("waf", transport, events=HEADS)
    return str(raised.value)


def test_several_urls_of_a_scheme_are_given_to_its_transport_together() -> None:
    transport: Any = AgentConfig("waf", ["toy://a", "toy://b"]).resolved_transport

    assert transport.address == ["toy://a", "toy://b"]


def test_an_unknown_scheme_is_refused_with_those_that_there_are() -> None:
    assert refusal("nats://waf") == (
        "AgentConfig('waf'): transport='nats://waf', expected an http://, https://, unix://, tcp://, grpc://, "
        "grpcs://, grpc+unix://, ray://, gone://, strange:// or toy:// URL, an Agent or a Transport"
    )


def test_a_transport_that_can_not_be_imported_is_a_configuration_error() -> None:
    assert refusal("gone://waf").startswith(
        "AgentConfig('waf'): transport='gone://waf': tests.transports.toy:Gone of the entry point 'gone' can't be "
        "imported: AttributeError: "
    )


def test_what_is_no_transport_is_a_configuration_error() -> None:
    assert refusal("strange://waf") == (
        "AgentConfig('waf'): transport='strange://waf': builtins:str of the entry point 'strange' has returned "
        "'strange://waf', expected a Transport"
    )


@pytest.mark.parametrize("urls", [["toy://a", "unix:///b"], ["http://a", "http://b"], ["toy://a", 1]])
def test_urls_of_transports_that_take_one_each_are_refused(urls: Any) -> None:
    expected = "expected several unix:// or tcp:// URLs, or several of grpc://"
    assert refusal(urls) == f"AgentConfig('waf'): transport={urls!r}, {expected}"


def test_a_transport_that_binds_no_client_is_a_configuration_error() -> None:
    class Unbound(ToyTransport):
        def bind(self, agent_id: str, **given: Any) -> Any:
            return None

    with pytest.raises(ConfigurationError) as caught:
        AgentManager([AgentConfig("waf", Unbound(URL), events=HEADS)])
    assert str(caught.value) == ("AgentConfig('waf'): bind of Unbound has returned None, expected an AgentClient")


async def test_an_agent_in_this_process_whose_client_configures_it_is_not_configured_by_the_guard_too() -> None:
    class Near(ToyClient):
        remote = False

    class NearTransport(ToyTransport):
        remote = False

        def bind(self, agent_id: str, *, events: Any, config: Any, max_concurrent_calls: int) -> ToyClient:
            return Near(self.address, agent_id, events, config)

    agent = Waf()
    events = {EventType.REQUEST_HEADERS, EventType.CONFIGURE}
    async with listening(agent), AgentManager([AgentConfig("waf", NearTransport(URL), events=events)]) as manager:
        # Else it would be asked to connect again and again.
        assert registry_of(manager).guard("waf").configured


@pytest.mark.parametrize("reads", [1, 2])
def test_what_an_agent_hears_is_the_latest_though_two_threads_report_it_at_once(reads: int) -> None:
    """A thread reads it; another changes and reports it; the first goes on with what it has read."""

    class Changing(ToyClient):
        said = frozenset(HEADS)
        reads_left = 0

        @property
        def hears(self) -> frozenset[EventType]:
            found = self.said
            self.reads_left -= 1
            if self.reads_left == 0:
                self.said = frozenset(EventType)
                self.on_change(False)
            return found

        @hears.setter
        def hears(self, events: frozenset[EventType]) -> None:
            pass

    class ChangingTransport(ToyTransport):
        def bind(self, agent_id: str, *, events: Any, config: Any, max_concurrent_calls: int) -> ToyClient:
            return Changing(self.address, agent_id, events, config)

    manager = AgentManager([AgentConfig("waf", ChangingTransport(URL))])
    client = registry_of(manager).guard("waf").client
    assert isinstance(client, Changing)
    client.said, client.reads_left = frozenset({EventType.RESPONSE_HEADERS}), reads
    client.on_change(False)
    assert manager.get_agents_for_event(EventType.REQUEST_BODY_CHUNK) == ("waf",)


def test_a_class_of_a_transport_is_none() -> None:
    assert refusal(ToyTransport) == (
        "AgentConfig('waf'): transport=the class ToyTransport, expected an Agent, a URL or a Transport"
    )


def test_built_in_schemes_look_for_no_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(**params: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(metadata, "entry_points", found)
    for url in ("http://waf/", "https://waf/", "unix:///run/waf.sock", "tcp://waf:9000"):
        AgentConfig("waf", url, events=HEADS)
