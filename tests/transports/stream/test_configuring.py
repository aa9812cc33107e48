"""Handing agents their configuration, and what they send back of their own accord."""

import logging
from typing import Any

import anyio
import httpx
import pytest

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentError,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    ConfigUpdateRequest,
    ConfigurationError,
    EventType,
    HttpTransport,
    MetricsReport,
    UnknownAgentError,
)
from asgi_agents.manager import registry_of
from asgi_agents.protocol import Acknowledgement, ConfigureEvent, RequestHeadersEvent
from asgi_agents.protocol.stream import MessageType, encode_frame
from asgi_agents.serve import agent_app

from .peer import ALL_EVENTS, Peer, Received, handshake
from .pools import agent, allow, client_in, get, head, lines, managing, settle, until, warnings
from .test_pool import impatient as impatient

CONFIGURABLE = ALL_EVENTS | {EventType.CONFIGURE}


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


class Configured:
    """How an agent takes its configuration, and what it was given."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = Acknowledgement(success=True) if answer is None else answer
        self.events: list[Received] = []

    async def __call__(self, event: Received) -> None:
        if event.event_type is EventType.CONFIGURE:
            self.events.append(event)
            await event.answer(self.answer)
        else:
            await event.answer()

    @property
    def configs(self) -> list[Any]:
        return [event.payload["config"] for event in self.events]


def peer_with(configured: Configured, **options: Any) -> Peer:
    return Peer(handshake(events=CONFIGURABLE), behaviour=configured, **options)


REFUSALS = [Acknowledgement(success=False, error="no such rule"), AgentResponse.block(400), AgentResponse(version=0)]


# When it connects


async def test_each_connection_is_configured_before_it_has_its_first_call() -> None:
    configured = Configured()
    peer = peer_with(configured)
    async with managing(peer, connections=3, stream={"connections": 3}, config={"rules": [1, 2]}):
        assert [each["config"] for each in peer.handshakes] == [{"rules": [1, 2]}] * 3
        assert configured.configs == [{"rules": [1, 2]}] * 3
        assert {event.link.number for event in configured.events} == {0, 1, 2}
        assert {event.payload["agent_id"] for event in configured.events} == {"waf"}


async def test_an_agent_that_takes_no_configure_event_has_it_in_the_handshake() -> None:
    heard: list[EventType | None] = []

    async def behave(event: Received) -> None:
        heard.append(event.event_type)
        await event.answer()

    peer = Peer(behaviour=behave)
    async with managing(peer, connections=1, config={"rules": []}) as manager:
        assert (await manager.process_request_headers(head())).is_allow

    assert peer.handshakes[0]["config"] == {"rules": []}
    assert heard == [EventType.REQUEST_HEADERS]


async def test_a_connection_that_is_made_again_is_configured_again(impatient: None) -> None:
    configured = Configured()
    peer = peer_with(configured)
    async with managing(peer, connections=1, config="x"):
        await peer.links[0].aclose()
        await until(lambda: len(configured.configs) == 2)


async def test_an_agent_of_the_older_kits_is_configured_too() -> None:
    configured = Configured(AgentResponse.allow())
    peer = Peer(framing="envelope", behaviour=configured)
    stream = {"connections": 2, "framing": "envelope"}
    events = {EventType.REQUEST_HEADERS, EventType.RESPONSE_HEADERS}
    async with managing(peer, connections=1, stream=stream, events=events, config={"a": 1}) as manager:
        # Two requests at a time have two connections.
        for name in "ab":
            await manager.process_request_headers(head(name))
        await until(lambda: configured.configs == [{"a": 1}] * 2)


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_an_agent_that_refuses_its_configuration_stops_the_startup(refusal: Any) -> None:
    peer = peer_with(Configured(refusal))
    manager = AgentManager([agent(peer, config=1, require_at_startup=True)])
    async with peer.listening():
        with anyio.fail_after(5), pytest.raises(AgentError, match="'waf' is required at startup"):
            async with manager:
                pass
        await until(lambda: not peer.links)


async def test_the_reason_for_which_it_refuses_is_told() -> None:
    peer = peer_with(Configured(REFUSALS[0]))
    async with peer.listening():
        with pytest.raises(AgentError, match="it refused its configuration: no such rule"):
            async with AgentManager([agent(peer, config=1, require_at_startup=True)]):
                pass


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_an_agent_that_refuses_its_configuration_is_asked_again_and_told_of_once(
    refusal: Any, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    configured = Configured(refusal)
    with caplog.at_level(logging.INFO, logger="asgi_agents"):
        async with managing(peer_with(configured), config=1, circuit_breaker=None) as manager:
            app = AgentMiddleware(hello, manager=manager)
            for _ in range(10):
                assert (await get(app))[0] == 503
            await until(lambda: len(configured.configs) > 5)
            assert len([line for line in warnings(caplog) if line.endswith("; connecting again")]) == 1

            configured.answer = Acknowledgement(success=True)
            await until(lambda: manager.statistics()["waf"].connections == 1)
            assert (await get(app))[0] == 200


async def test_a_configuration_that_cant_be_sent_is_told_and_hurts_nobody(impatient: None) -> None:
    peer = peer_with(Configured())
    manager = AgentManager([agent(peer, config=object(), require_at_startup=True)])
    async with peer.listening():
        with anyio.fail_after(5), pytest.raises(AgentError, match="can't be encoded"):
            async with manager:
                pass


# While it runs


async def test_a_pushed_configuration_reaches_every_connection() -> None:
    """They may lead to different workers behind one address."""
    configured = Configured()
    peer = peer_with(configured)
    async with managing(peer, connections=3, stream={"connections": 3}, config="old") as manager:
        configured.events.clear()
        await manager.push_config("waf", "new")

        assert {event.link.number for event in configured.events} == {0, 1, 2}
        assert set(configured.configs) == {"new"}


async def test_a_pushed_configuration_reaches_every_instance() -> None:
    first, second = Configured(), Configured()
    async with managing(peer_with(first), peer_with(second), connections=2) as manager:
        await manager.push_config("waf", {"new": True})

        assert first.configs[-1] == second.configs[-1] == {"new": True}


async def test_connections_to_come_have_the_pushed_configuration(impatient: None) -> None:
    configured = Configured()
    peer = peer_with(configured)
    async with managing(peer, connections=1, config="old") as manager:
        await manager.push_config("waf", "new")
        configured.events.clear()
        await peer.links[0].aclose()
        await until(lambda: configured.configs)

        assert configured.configs == ["new"]
        assert peer.handshakes[-1]["config"] == "new"
        assert registry_of(manager).guard("waf").config.config == "new"


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_pushed_configuration_that_is_refused_changes_nothing(refusal: Any, impatient: None) -> None:
    configured = Configured()
    peer = peer_with(configured)
    async with managing(peer, connections=1, config="old") as manager:
        configured.answer = refusal
        with pytest.raises(AgentError, match=peer.path):
            await manager.push_config("waf", "new")
        assert registry_of(manager).guard("waf").config.config == "old"
        assert (await manager.process_request_headers(head())).is_allow

        configured.answer = Acknowledgement(success=True)
        configured.events.clear()
        await peer.links[0].aclose()
        await until(lambda: configured.configs)
        assert configured.configs == ["old"]


async def test_a_configuration_cant_be_pushed_to_an_agent_that_takes_none() -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1, config="old") as manager:
        with pytest.raises(AgentError, match="takes no configuration"):
            await manager.push_config("waf", "new")

        assert registry_of(manager).guard("waf").config.config == "old"


async def test_a_configuration_cant_be_pushed_to_an_agent_that_is_away() -> None:
    peer = peer_with(Configured())
    async with AgentManager([agent(peer, config="old")]) as manager:
        with anyio.fail_after(5), pytest.raises(AgentError):
            await manager.push_config("waf", "new")

        assert registry_of(manager).guard("waf").config.config == "old"


async def test_a_configuration_cant_be_pushed_to_an_agent_that_is_not_there() -> None:
    with pytest.raises(UnknownAgentError, match="'waf'"):
        await AgentManager().push_config("waf", 1)


async def test_a_pushed_configuration_that_cant_be_sent_changes_nothing() -> None:
    peer = peer_with(Configured())
    async with managing(peer, connections=1, config="old") as manager:
        with pytest.raises(AgentError, match="can't be encoded"):
            await manager.push_config("waf", object())

        assert registry_of(manager).guard("waf").config.config == "old"
        assert (await manager.process_request_headers(head())).is_allow
        assert peer.accepted == 1


async def test_a_push_that_is_given_up_changes_nothing() -> None:
    configured = Configured()
    peer = peer_with(configured)

    async def nothing(event: Received) -> None:
        pass

    async with managing(peer, connections=1, config="old") as manager:
        peer.behaviour = nothing
        with anyio.move_on_after(0.02):
            await manager.push_config("waf", "new")

        assert registry_of(manager).guard("waf").config.config == "old"


class Waf(Agent):
    """Takes no configuration that is 'bad'."""

    def __init__(self) -> None:
        self.configs: list[Any] = []

    async def on_configure(self, event: ConfigureEvent) -> None:
        if event.config == "bad":
            raise ValueError("that is bad")
        self.configs.append(event.config)

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        return None


def over_http(waf: Agent) -> AgentConfig:
    transport = HttpTransport("http://waf/", transport=httpx.ASGITransport(app=agent_app(waf)))
    return AgentConfig("waf", transport, events={EventType.REQUEST_HEADERS}, config="old")


def in_process(waf: Agent) -> AgentConfig:
    return AgentConfig("waf", waf, config="old")


@pytest.mark.parametrize("reach", [in_process, over_http])
async def test_other_agents_take_a_pushed_configuration_too(reach: Any) -> None:
    waf = Waf()
    async with AgentManager([reach(waf)]) as manager:
        await manager.push_config("waf", "new")
        assert waf.configs == ["old", "new"]
        assert (await manager.process_request_headers(head())).is_allow
        assert waf.configs == ["old", "new"]

    # It holds for the next time as well.
    async with manager:
        assert waf.configs == ["old", "new", "new"]


@pytest.mark.parametrize("reach", [in_process, over_http])
async def test_other_agents_may_refuse_a_pushed_configuration_too(reach: Any) -> None:
    waf = Waf()
    async with AgentManager([reach(waf)]) as manager:
        with pytest.raises(AgentError, match="'waf'"):
            await manager.push_config("waf", "bad")

        assert registry_of(manager).guard("waf").config.config == "old"
        assert (await manager.process_request_headers(head())).is_allow


# Of its own accord

REPORT = (
    b'{"agent_id":"peer","timestamp_ms":1,"interval_ms":10,"counters":[{"name":"blocked","labels":{"rule":"x"},"value":3}],'
    b'"gauges":[{"name":"load","value":0.5}],"histograms":[{"name":"t","sum":1.5,"count":2,'
    b'"buckets":[{"le":0.1,"count":1},{"le":"+Inf","count":2}]}]}'
)
REQUEST = b'{"request_id":"r1","update_type":{"rules":["a"]},"timestamp_ms":5}'


class Told:
    def __init__(self, fault: Exception | None = None) -> None:
        self.messages: list[tuple[str, Any]] = []
        self._fault = fault

    def __call__(self, agent_id: str, message: Any) -> None:
        self.messages.append((agent_id, message))
        if self._fault is not None:
            raise self._fault


async def test_metrics_reports_and_config_update_requests_reach_the_callbacks() -> None:
    reports, requests = Told(), Told()
    peer = Peer(behaviour=allow)
    callbacks = {"on_metrics_report": reports, "on_config_update": requests}
    async with managing(peer, callbacks=callbacks, connections=1) as manager:
        await peer.links[0].send(encode_frame(MessageType.METRICS_REPORT, REPORT))
        await peer.links[0].send(encode_frame(MessageType.CONFIG_UPDATE_REQUEST, REQUEST), piece=1)
        await until(lambda: reports.messages and requests.messages)

        ((agent_id, report),) = reports.messages
        assert agent_id == "waf"
        assert isinstance(report, MetricsReport)
        assert [(each.name, each.labels, each.value) for each in report.counters] == [("blocked", {"rule": "x"}, 3)]
        assert [bucket.le for bucket in report.histograms[0].buckets] == [0.1, float("inf")]
        ((agent_id, request),) = requests.messages
        assert agent_id == "waf"
        assert isinstance(request, ConfigUpdateRequest)
        assert (request.request_id, request.update_type) == ("r1", {"rules": ["a"]})
        assert (await manager.process_request_headers(head())).is_allow


async def test_without_callbacks_they_are_ignored() -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1) as manager:
        await peer.links[0].send(encode_frame(MessageType.METRICS_REPORT, REPORT))
        await peer.links[0].send(encode_frame(MessageType.CONFIG_UPDATE_REQUEST, REQUEST))
        await settle()

        assert (await manager.process_request_headers(head())).is_allow
        assert peer.accepted == 1


async def test_a_callback_that_raises_is_logged_and_the_connection_lives(caplog: pytest.LogCaptureFixture) -> None:
    reports, requests = Told(ValueError("oh no")), Told(KeyError("oh dear"))
    peer = Peer(behaviour=allow)
    callbacks = {"on_metrics_report": reports, "on_config_update": requests}
    with caplog.at_level(logging.INFO, logger="asgi_agents"):
        async with managing(peer, callbacks=callbacks, connections=1) as manager:
            caplog.clear()
            await peer.links[0].send(encode_frame(MessageType.METRICS_REPORT, REPORT))
            await peer.links[0].send(encode_frame(MessageType.CONFIG_UPDATE_REQUEST, REQUEST))
            await until(lambda: reports.messages and requests.messages)

            assert lines(caplog) == [
                "agent 'waf': the callback for its metrics report failed",
                "agent 'waf': the callback for its config update request failed",
            ]
            assert all(record.exc_info for record in caplog.records)
            assert (await manager.process_request_headers(head())).is_allow
            assert peer.accepted == 1


@pytest.mark.parametrize("payload", [b"[]", b"not json", b'{"counters":[{"name":1}]}'])
async def test_a_report_that_cant_be_read_ends_its_connection_only(payload: bytes, impatient: None) -> None:
    reports = Told()
    peer = Peer(behaviour=allow)
    stream = {"connections": 2}
    async with managing(peer, callbacks={"on_metrics_report": reports}, connections=2, stream=stream) as manager:
        first, second = peer.links
        await first.send(encode_frame(MessageType.METRICS_REPORT, payload))
        await until(first.closed.is_set)
        await until(lambda: peer.accepted == 3)

        assert not second.closed.is_set()
        assert reports.messages == []
        assert (await manager.process_request_headers(head())).is_allow


@pytest.mark.parametrize("name", ["on_metrics_report", "on_config_update"])
def test_a_callback_has_to_be_callable(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}='print', expected a callable"):
        AgentManager(**{name: "print"})  # type: ignore[arg-type]


async def test_a_callback_may_use_the_manager() -> None:
    """For instance to push the configuration that was asked for, in a task of its own."""
    configured = Configured()
    peer = peer_with(configured)
    asked: list[Any] = []
    async with (
        managing(
            peer, callbacks={"on_config_update": lambda _, request: asked.append(request)}, connections=1
        ) as manager,
        anyio.create_task_group() as tasks,
    ):
        await peer.links[0].send(encode_frame(MessageType.CONFIG_UPDATE_REQUEST, REQUEST))
        await until(lambda: asked)
        tasks.start_soon(manager.push_config, "waf", asked[0].update_type)
        await until(lambda: configured.configs == [{"rules": ["a"]}])


# While another guard configures the agent


async def test_while_a_configuration_is_held_no_connection_hands_it_over() -> None:
    configured = Configured()
    peer = peer_with(configured)
    async with managing(peer, connections=1, config=1) as manager:
        client = client_in(manager)
        await client.hold_config()
        await peer.links[0].aclose()
        await settle()
        assert configured.configs == [1]
        client.adopt_config(2)
        client.release_config()
        await until(lambda: configured.configs == [1, 2])
        assert peer.handshakes[-1]["config"] == 2


async def test_who_holds_a_configuration_waits_for_connections_that_are_made_with_it() -> None:
    asked, go = anyio.Event(), anyio.Event()

    async def take(event: Received) -> None:
        asked.set()
        await go.wait()
        await event.answer(Acknowledgement(success=True))

    peer = Peer(handshake(events=CONFIGURABLE), behaviour=take)
    manager = AgentManager([agent(peer, config=1)])
    client = client_in(manager)
    async with peer.listening(), anyio.create_task_group() as tasks:
        tasks.start_soon(client.connect)
        await asked.wait()
        held = anyio.Event()

        async def hold() -> None:
            await client.hold_config()
            held.set()

        tasks.start_soon(hold)
        await settle()
        assert not held.is_set()
        go.set()
        await held.wait()
        assert client.connected
        client.release_config()
        await client.aclose()
