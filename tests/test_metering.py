import gc
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.metrics.export import Metric as Collected
from prometheus_client.parser import text_string_to_metric_families

from asgi_agents import __version__
from asgi_agents.config import AgentConfig
from asgi_agents.manager import AgentManager, registry_of
from asgi_agents.observability.histograms import EXPORTED_BOUNDS
from asgi_agents.observability.instruments import HISTOGRAMS, METRICS, Kind
from asgi_agents.observability.prometheus import prometheus_name
from asgi_agents.policy import CircuitBreakerConfig, FailureMode
from asgi_agents.protocol import AgentResponse

from .test_manager import FRAME, REQUEST, RESPONSE, Behaviour, Clock, Fake, answering, body, hang, raising, settle
from .transports.stream.peer import Peer, Received
from .transports.stream.pools import agent as stream_agent
from .transports.stream.pools import head

BLOCK = AgentResponse.block()


class Exporter:
    """A provider, and what it would export."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def metrics(self) -> dict[str, Collected]:
        data = self.reader.get_metrics_data()
        found: dict[str, Collected] = {}
        for resource in [] if data is None else data.resource_metrics:
            for scope in resource.scope_metrics:
                assert scope.scope is not None
                assert (scope.scope.name, scope.scope.version) == ("asgi_agents", __version__)
                for metric in scope.metrics:
                    assert metric.name not in found
                    found[metric.name] = metric
        return found

    def points(self, name: str) -> dict[frozenset[tuple[str, Any]], Any]:
        """Values, or histogram points, by their attributes without the package's name."""
        metric = self.metrics().get(f"asgi_agents.{name}")
        found = {}
        for point in [] if metric is None else metric.data.data_points:
            attributes = {key.removeprefix("asgi_agents."): value for key, value in (point.attributes or {}).items()}
            key = frozenset(attributes.items())
            assert key not in found
            found[key] = point.value if isinstance(point, NumberDataPoint) else point
        return found

    def value(self, name: str, **attributes: str) -> Any:
        """One value of the agent ``waf``, or None."""
        names = {"error": "error.type", "breaker": "breaker.state"}
        described = {"agent.id": "waf", **{names.get(key, key): value for key, value in attributes.items()}}
        return self.points(name).get(frozenset(described.items()))

    def agents(self, name: str) -> set[str]:
        return {dict(key)["agent.id"] for key in self.points(name)}


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    exporter = Exporter()
    yield exporter
    exporter.provider.shutdown()


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The SDK only logs what it minds."""
    yield
    faults = [record for record in caplog.get_records("call") if record.name.startswith("opentelemetry")]
    assert [record.getMessage() for record in faults] == []


def managed(
    exporter: Exporter, behaviour: Behaviour | None = None, *, clock: Clock | None = None, **fields: Any
) -> AgentManager:
    config = AgentConfig("waf", Fake(behaviour), **{"timeout": 60.0} | fields)
    return AgentManager([config], meter_provider=exporter.provider, clock=clock or Clock())


async def let_one_wait(exporter: Exporter) -> AgentManager:
    """Two calls to an agent that takes one at a time."""
    manager = managed(exporter, pause, max_concurrent_calls=1)
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(manager.process_request_headers, REQUEST)
    return manager


async def pause(event: Any) -> None:
    await anyio.sleep(0.005)


# What there is


async def test_each_metric_is_there_with_its_unit_and_its_description(exporter: Exporter) -> None:
    manager = managed(
        exporter,
        raising(ValueError()),
        circuit_breaker=CircuitBreakerConfig(failure_threshold=1),
        max_request_body_bytes=3,
        enforce=False,
    )
    await manager.process_request_headers(REQUEST)
    await manager.process_request_body(body(b"1234"))
    fine = managed(exporter)
    await fine.process_request_body(body(b"123"))
    await let_one_wait(exporter)
    guard = registry_of(fine).guard("waf")
    guard.tally.text.count("redact", "output")
    guard.recorder.held(0.5)
    found = exporter.metrics()

    assert {metric.name: (metric.unit, metric.description) for metric in found.values()} == {
        metric.name: (metric.unit, metric.description) for metric in (*METRICS, *HISTOGRAMS)
    }
    for metric in METRICS:
        data: Any = found[metric.name].data
        assert data.is_monotonic is (metric.kind is Kind.COUNTER)
    assert fine.agent_ids == manager.agent_ids


async def test_histograms_have_buckets_from_a_millisecond_to_ten_seconds(exporter: Exporter) -> None:
    await let_one_wait(exporter)

    for name, count in (("call.duration", 2), ("call.queue.duration", 1)):
        (point,) = exporter.points(name).values()
        assert isinstance(point, HistogramDataPoint)
        assert tuple(point.explicit_bounds) == EXPORTED_BOUNDS
        assert point.count == count


# What they say


async def test_durations_are_by_event_and_outcome(exporter: Exporter) -> None:
    manager = managed(exporter)
    for _ in range(3):
        await manager.process_request_headers(REQUEST)
    registry_of(manager).guard("waf").config.resolved_transport.behave = raising(ValueError())  # type: ignore[attr-defined]
    await manager.process_response_headers(RESPONSE)

    allowed = exporter.value("call.duration", event="request_headers", decision="allow")
    failed = exporter.value("call.duration", event="response_headers", error="error")
    assert (allowed.count, failed.count) == (3, 1)
    assert allowed.sum + failed.sum == pytest.approx(manager.metrics["waf"].duration)
    assert len(exporter.points("call.duration")) == 2


async def test_decisions_failures_and_breakers_have_their_value(exporter: Exporter) -> None:
    breaker = CircuitBreakerConfig(failure_threshold=2)
    manager = managed(exporter, raising(ValueError()), circuit_breaker=breaker, failure_mode=FailureMode.OPEN)
    for _ in range(3):
        await manager.process_request_headers(REQUEST)
    await manager.process_request_headers(REQUEST, [("waf", FailureMode.CLOSED)])

    about = {"event": "request_headers", "enforced": "true"}
    assert exporter.value("failures", error="error", failure_mode="open", **about) == 2
    assert exporter.value("failures", error="breaker_open", failure_mode="open", **about) == 1
    assert exporter.value("failures", error="breaker_open", failure_mode="closed", **about) == 1
    assert exporter.points("decisions") == {}
    states = {state: exporter.value("breaker.state", breaker=state) for state in ("closed", "open", "half_open")}
    assert states == {"closed": 0, "open": 1, "half_open": 0}
    assert exporter.value("breaker.transitions", breaker="open") == 1


async def test_inspected_bytes_are_by_event(exporter: Exporter) -> None:
    manager = managed(exporter, answering(BLOCK))
    await manager.process_request_body(body(b"12345"))
    await manager.process_request_body(body(b"12"))
    await manager.process_websocket_frame(FRAME)

    assert exporter.value("inspected", event="request_body_chunk") == 7
    assert exporter.value("inspected", event="websocket_frame") == 1
    assert exporter.value("decisions", event="request_body_chunk", decision="block", enforced="true") == 2


async def test_skipped_bodies_and_shadow_denials_are_counted(exporter: Exporter) -> None:
    manager = managed(exporter, answering(BLOCK), enforce=False, max_request_body_bytes=3)
    await manager.process_request_body(body(b"1234"))
    await manager.process_request_headers(REQUEST)

    assert exporter.value("bodies.skipped", event="request_body_chunk") == 1
    assert exporter.value("shadow.denials", event="request_headers", decision="block") == 1
    assert exporter.value("shadow.denials", event="request_body_chunk", error="request_too_large") == 1


async def test_calls_under_way_and_waiting_are_of_the_moment(exporter: Exporter) -> None:
    manager = managed(exporter, hang, max_concurrent_calls=1)
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(manager.process_request_headers, REQUEST)
        await settle()
        assert (exporter.value("call.active"), exporter.value("call.waiting")) == (1, 2)
        tasks.cancel_scope.cancel()

    assert (exporter.value("call.active"), exporter.value("call.waiting")) == (0, 0)
    assert exporter.points("call.duration") == {}


async def test_the_wait_for_a_permit_is_measured(exporter: Exporter) -> None:
    manager = managed(exporter, hang, max_concurrent_calls=1, timeout=0.02, chunk_timeout=60.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.process_request_body_streaming, body(b"x"))
        await settle()
        await manager.process_request_headers(REQUEST)
        tasks.cancel_scope.cancel()

    point = exporter.value("call.queue.duration")
    assert (point.count, point.sum) == (1, pytest.approx(manager.metrics["waf"].queue_duration))
    assert point.sum >= 0.015


async def test_the_wait_for_a_place_on_a_connection_is_measured(exporter: Exporter) -> None:
    peer = Peer()
    config = stream_agent(peer, stream={"max_calls_per_connection": 1})
    async with peer.listening(), AgentManager([config], meter_provider=exporter.provider) as manager:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.process_request_headers, head("first"))
            first: Received = await peer.next()
            tasks.start_soon(manager.process_request_headers, head("second"))
            await settle()
            assert (exporter.value("call.active"), exporter.value("call.waiting")) == (2, 1)
            await anyio.sleep(0.02)
            await first.answer()
            second = await peer.next()
            assert exporter.value("call.waiting") == 0
            await second.answer()

        point = exporter.value("call.queue.duration")
        assert point.count == 1
        assert 0.015 <= point.sum <= exporter.value("call.duration", event="request_headers", decision="allow").sum
        assert manager.metrics["waf"].queue_duration == pytest.approx(point.sum)
        assert exporter.value("call.active") == 0


async def test_one_who_gives_up_waiting_for_a_place_leaves_nothing(exporter: Exporter) -> None:
    peer = Peer()
    config = stream_agent(peer, stream={"max_calls_per_connection": 1})
    async with peer.listening(), AgentManager([config], meter_provider=exporter.provider) as manager:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.process_request_headers, head("first"))
            await peer.next()
            tasks.start_soon(manager.process_request_headers, head("second"))
            await settle()
            tasks.cancel_scope.cancel()

        assert (exporter.value("call.active"), exporter.value("call.waiting")) == (0, 0)


async def test_exporting_changes_no_breaker(exporter: Exporter) -> None:
    clock = Clock()
    breaker = CircuitBreakerConfig(failure_threshold=1, reset_timeout=30.0)
    manager = managed(exporter, raising(ValueError()), clock=clock, circuit_breaker=breaker)
    await manager.process_request_headers(REQUEST)
    clock.now += 31.0

    for _ in range(3):
        assert exporter.value("breaker.state", breaker="half_open") == 1
        assert exporter.value("breaker.state", breaker="open") == 0
        assert exporter.value("breaker.transitions", breaker="half_open") is None
    assert manager.metrics["waf"].breaker_transitions == {"open": 1}


async def test_it_is_the_same_as_what_prometheus_gets(exporter: Exporter) -> None:
    manager = managed(
        exporter,
        raising(ValueError()),
        circuit_breaker=CircuitBreakerConfig(failure_threshold=2),
        max_request_body_bytes=3,
        failure_mode=FailureMode.OPEN,
    )
    for _ in range(4):
        await manager.process_request_headers(REQUEST)
    await manager.process_request_body(body(b"1234"))
    guard = registry_of(manager).guard("waf")
    guard.tally.text.count("redact", "output")
    guard.tally.text.count("unreadable", "")
    guard.tally.text.begin_window()
    guard.tally.text.hold(30)
    guard.recorder.held(0.3)
    guard.recorder.held(0.004)
    families = {family.name: family for family in text_string_to_metric_families(manager.export_prometheus())}

    compared = 0
    for metric in (*METRICS, *HISTOGRAMS):
        family = families[prometheus_name(metric.name, metric.unit)]
        theirs: dict[Any, Any] = {}
        for sample in family.samples:
            described = frozenset(item for item in sample.labels.items() if item[0] != "le")
            if sample.name.endswith("_bucket"):
                theirs.setdefault((described, "buckets"), []).append(sample.value)
            else:
                theirs[described, sample.name.rpartition("_")[2] if "duration" in metric.name else ""] = sample.value
        ours: dict[Any, Any] = {}
        for attributes, point in exporter.points(metric.name.removeprefix("asgi_agents.")).items():
            described = frozenset((name.replace(".", "_"), value) for name, value in attributes)
            if isinstance(point, HistogramDataPoint):
                ours[described, "count"] = point.count
                ours[described, "sum"] = pytest.approx(point.sum)
                buckets = point.bucket_counts
                ours[described, "buckets"] = [sum(buckets[: number + 1]) for number in range(len(buckets))]
            else:
                ours[described, ""] = point
        if metric.name == "asgi_agents.call.queue.duration":
            # Nobody had to wait: one says so, the other nothing.
            assert not ours
            assert {number for (_, what), number in theirs.items() if what == "count"} == {0}
            continue
        assert theirs == ours, metric.name
        compared += len(ours)
    assert compared > 10


# Of several managers


async def test_agents_of_two_managers_are_both_exported(exporter: Exporter) -> None:
    one = AgentManager([AgentConfig("waf", Fake())], meter_provider=exporter.provider)
    other = AgentManager([AgentConfig("pii", Fake())], meter_provider=exporter.provider)
    for manager in (one, other):
        await manager.process_request_headers(REQUEST)

    for name in ("call.active", "breaker.state", "decisions", "call.duration"):
        assert exporter.agents(name) == {"waf", "pii"}


async def test_agents_of_the_same_id_add_up(exporter: Exporter) -> None:
    managers = [managed(exporter) for _ in range(3)]
    for manager in managers:
        await manager.process_request_headers(REQUEST)

    about = {"event": "request_headers", "decision": "allow"}
    assert exporter.value("decisions", enforced="true", **about) == 3
    assert exporter.value("call.duration", **about).count == 3
    assert exporter.value("breaker.state", breaker="closed") == 3


async def test_two_providers_know_nothing_of_each_other(exporter: Exporter) -> None:
    other = Exporter()
    manager = managed(exporter)
    await manager.process_request_headers(REQUEST)

    assert exporter.agents("decisions") == {"waf"}
    assert other.metrics() == {}
    other.provider.shutdown()


async def test_a_manager_that_is_gone_is_exported_no_more(exporter: Exporter) -> None:
    manager = managed(exporter)
    lasting = AgentManager([AgentConfig("pii", Fake())], meter_provider=exporter.provider)
    for each in (manager, lasting):
        await each.process_request_headers(REQUEST)
    assert exporter.agents("decisions") == {"waf", "pii"}

    del manager, each
    gc.collect()

    assert exporter.agents("decisions") == exporter.agents("call.active") == {"pii"}


async def test_a_manager_that_was_used_and_left_is_gone_as_well(exporter: Exporter) -> None:
    async with managed(exporter) as manager:
        await manager.process_request_headers(REQUEST)
    del manager
    gc.collect()

    assert exporter.points("call.active") == {}


def test_a_manager_that_could_not_be_made_is_not_exported(exporter: Exporter) -> None:
    config = AgentConfig("waf", Fake())
    with pytest.raises(Exception, match="two agents have the id"):
        AgentManager([config, config], meter_provider=exporter.provider)
    gc.collect()

    assert exporter.points("call.active") == {}


# Change while serving


async def test_an_agent_that_is_replaced_keeps_its_counts_and_nothing_counts_twice(exporter: Exporter) -> None:
    manager = managed(exporter, answering(BLOCK))
    await manager.process_request_headers(REQUEST)
    old = registry_of(manager).guard("waf")

    await manager.replace_agent(AgentConfig("waf", Fake(answering(BLOCK))))
    await manager.process_request_headers(REQUEST)

    about = {"event": "request_headers", "decision": "block"}
    assert exporter.value("decisions", enforced="true", **about) == 2
    assert exporter.value("call.duration", **about).count == 2
    assert exporter.value("breaker.state", breaker="closed") == 1
    assert old is not registry_of(manager).guard("waf")


async def test_an_agent_that_is_removed_is_exported_no_more(exporter: Exporter) -> None:
    manager = managed(exporter)
    await manager.add_agent(AgentConfig("pii", Fake()))
    await manager.process_request_headers(REQUEST)
    assert exporter.agents("decisions") == {"waf", "pii"}

    await manager.remove_agent("pii")

    for name in ("decisions", "call.active", "breaker.state"):
        assert exporter.agents(name) == {"waf"}


async def test_an_agent_that_is_added_is_exported(exporter: Exporter) -> None:
    manager = AgentManager(meter_provider=exporter.provider)
    await manager.add_agent(AgentConfig("waf", Fake()))

    assert exporter.agents("call.active") == {"waf"}


async def test_calls_of_an_agent_that_is_being_replaced_are_counted_once(exporter: Exporter) -> None:
    ending = anyio.Event()

    async def slow(event: Any) -> AgentResponse:
        await ending.wait()
        return BLOCK

    manager = managed(exporter, slow)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.process_request_headers, REQUEST)
        await settle()
        tasks.start_soon(manager.replace_agent, AgentConfig("waf", Fake()))
        await settle()
        await manager.process_request_headers(REQUEST)
        ending.set()

    assert exporter.value("decisions", event="request_headers", decision="block", enforced="true") == 1
    assert exporter.value("decisions", event="request_headers", decision="allow", enforced="true") == 1
    assert exporter.value("breaker.state", breaker="closed") == 1


# In other threads


async def test_an_exporter_in_another_thread_disturbs_nothing(exporter: Exporter) -> None:
    manager = managed(exporter)
    done = threading.Event()
    counts: list[int] = []
    faults: list[BaseException] = []

    def export() -> None:
        try:
            while not done.is_set():
                found = exporter.value("decisions", event="request_headers", decision="allow", enforced="true")
                counts.append(found or 0)
        except BaseException as exc:
            faults.append(exc)

    exporting = threading.Thread(target=export)
    exporting.start()
    try:
        for number in range(500):
            await manager.process_request_headers(REQUEST)
            await manager.process_request_headers(REQUEST, [("waf", FailureMode.OPEN)])
            if number % 50 == 0:
                await manager.replace_agent(AgentConfig("waf", Fake(), timeout=60.0), drain_timeout=0.001)
    finally:
        done.set()
        exporting.join()

    assert faults == []
    assert [count for count in counts if count > 1000] == []
    assert exporter.value("decisions", event="request_headers", decision="allow", enforced="true") == 1000


def test_managers_may_come_and_go_while_another_thread_exports(exporter: Exporter) -> None:
    lasting = [managed(exporter) for _ in range(50)]
    done = threading.Event()
    found: list[Any] = []

    def export() -> None:
        while not done.is_set():
            found.append(exporter.value("call.active"))

    # So that they get in each other's way as often as they can.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    exporting = threading.Thread(target=export)
    exporting.start()
    try:
        for _ in range(200):
            managed(exporter)
    finally:
        sys.setswitchinterval(interval)
        done.set()
        exporting.join()

    # The SDK logs what a callback raises, and goes on without it.
    assert len(lasting) == 50
    assert set(found) == {0}


# The global provider


def run(code: str) -> Any:
    """What a new interpreter prints, as JSON. It must not mind anything."""
    prelude = """
        import anyio, gc, json, logging
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from asgi_agents import Agent, AgentConfig, AgentManager
        from tests.test_manager import REQUEST

        logging.basicConfig(level=logging.WARNING)

        class Silent(Agent):
            async def on_request_headers(self, event):
                return None

        def managed(agent_id):
            return AgentManager([AgentConfig(agent_id, Silent())])

        def use(manager):
            anyio.run(manager.process_request_headers, REQUEST)

        def provide():
            global reader
            reader = InMemoryMetricReader()
            metrics.set_meter_provider(MeterProvider([reader]))

        def show():
            found = {}
            data = reader.get_metrics_data()
            for resource in data.resource_metrics if data is not None else []:
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        for point in metric.data.data_points:
                            number = getattr(point, "value", None)
                            number = point.count if number is None else number
                            agents = found.setdefault(metric.name.removeprefix("asgi_agents."), {})
                            agent_id = point.attributes["asgi_agents.agent.id"]
                            agents[agent_id] = agents.get(agent_id, 0) + number
            print(json.dumps(found))
        """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(prelude) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


EVERYTHING = {
    "call.active": {"waf": 0},
    "call.waiting": {"waf": 0},
    "breaker.state": {"waf": 1},
    "decisions": {"waf": 1},
    "call.duration": {"waf": 1},
}


def test_a_provider_that_was_set_before_gets_everything() -> None:
    assert run("provide(); manager = managed('waf'); use(manager); show()") == EVERYTHING


def test_a_provider_that_is_set_afterwards_gets_everything() -> None:
    assert run("manager = managed('waf'); provide(); use(manager); show()") == EVERYTHING


def test_a_provider_that_is_set_between_two_managers_gets_those_of_both() -> None:
    found = run("one = managed('one'); provide(); two = managed('two'); use(one); use(two); show()")

    assert found["decisions"] == found["call.duration"] == found["breaker.state"] == {"one": 1, "two": 1}


def test_a_provider_that_is_set_between_two_managers_adds_up_what_is_the_same() -> None:
    found = run("one = managed('waf'); provide(); two = managed('waf'); use(one); use(two); show()")

    assert found["decisions"] == found["call.duration"] == found["breaker.state"] == {"waf": 2}


def test_an_agent_that_is_added_after_the_provider_was_set_is_exported() -> None:
    found = run(
        """
        manager = managed("one")
        provide()
        anyio.run(manager.add_agent, AgentConfig("two", Silent()))
        use(manager)
        show()
        """
    )

    assert found["decisions"] == {"one": 1, "two": 1}


def test_without_a_provider_nothing_is_minded() -> None:
    assert run("manager = managed('waf'); use(manager); print(json.dumps(manager.metrics['waf'].calls))") == 1


def test_managers_without_a_provider_of_their_own_share_the_global_one_with_those_that_name_it() -> None:
    found = run(
        """
        provide()
        one = managed("one")
        two = AgentManager([AgentConfig("two", Silent())], meter_provider=metrics.get_meter_provider())
        use(one)
        use(two)
        show()
        """
    )

    assert found["decisions"] == {"one": 1, "two": 1}


def test_the_sdk_minds_nothing_when_many_managers_are_made(
    exporter: Exporter, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        managers = [managed(exporter) for _ in range(20)]
        exporter.metrics()

    assert len(managers) == 20
    assert [record.getMessage() for record in caplog.records if record.name.startswith("opentelemetry")] == []
