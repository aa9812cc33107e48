import logging
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_agents import MetricsReport
from asgi_agents.observability.reports import MAX_AGE, MAX_SERIES, Reported, Reports
from asgi_agents.protocol import EventType
from asgi_agents.protocol.stream import (
    CounterMetric,
    GaugeMetric,
    HistogramBucket,
    HistogramMetric,
    MessageType,
    encode_frame,
)

from .transports.stream.peer import ALL_EVENTS, Peer, Received, handshake
from .transports.stream.pools import agent, allow, head, lines, managing, settle, until

steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
HERE = "unix:///run/waf.sock"


def counted(value: int, name: str = "blocked", **labels: str) -> MetricsReport:
    return MetricsReport(counters=[CounterMetric(name=name, labels=labels, value=value)])


def measured(value: float, name: str = "load", **labels: str) -> MetricsReport:
    return MetricsReport(gauges=[GaugeMetric(name=name, labels=labels, value=value)])


def many(count: int, *, start: int = 0) -> MetricsReport:
    return MetricsReport(
        gauges=[GaugeMetric(name=f"m{number}", value=number) for number in range(start, start + count)]
    )


def values(reports: Reports, now: float = 0.0) -> list[tuple[str, str, str, dict[str, str], Any]]:
    return sorted(
        (
            (each.agent_id, each.endpoint, each.metric.name, dict(each.metric.labels), _value(each))
            for each in reports.current(now)
        ),
        key=repr,
    )


def _value(reported: Reported) -> float:
    metric = reported.metric
    return metric.count if isinstance(metric, HistogramMetric) else metric.value


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in lines(caplog) if "the rest is left out" in line]


# Kept


def test_there_is_nothing_at_first() -> None:
    assert values(Reports()) == []


def test_the_newest_value_wins() -> None:
    reports = Reports()
    reports.add("waf", HERE, counted(3), 0.0)
    reports.add("waf", HERE, counted(5), 1.0)
    # A total may start again when its agent does.
    reports.add("waf", HERE, counted(1), 2.0)

    assert values(reports, 2.0) == [("waf", HERE, "blocked", {}, 1)]


def test_the_last_of_two_values_in_one_report_wins() -> None:
    reports = Reports()
    twice = MetricsReport(counters=[CounterMetric(name="blocked", value=1), CounterMetric(name="blocked", value=2)])
    reports.add("waf", HERE, twice, 0.0)

    assert values(reports) == [("waf", HERE, "blocked", {}, 2)]


def test_what_a_report_does_not_mention_keeps_its_value() -> None:
    reports = Reports()
    reports.add("waf", HERE, counted(3, rule="a"), 0.0)
    reports.add("waf", HERE, counted(5, rule="b"), 1.0)

    assert values(reports, 1.0) == [
        ("waf", HERE, "blocked", {"rule": "a"}, 3),
        ("waf", HERE, "blocked", {"rule": "b"}, 5),
    ]


def test_agents_endpoints_and_labels_are_told_apart() -> None:
    reports = Reports()
    reports.add("waf", "unix:///a", counted(1), 0.0)
    reports.add("waf", "unix:///b", counted(2), 0.0)
    reports.add("pii", "unix:///a", counted(3), 0.0)
    reports.add("waf", "unix:///a", counted(4, rule="x"), 0.0)

    assert [value for *_, value in values(reports)] == [3, 4, 1, 2]


def test_the_order_of_labels_makes_no_difference() -> None:
    reports = Reports()
    reports.add("waf", HERE, counted(1, a="1", b="2"), 0.0)
    reports.add("waf", HERE, counted(2, b="2", a="1"), 0.0)

    assert [value for *_, value in values(reports)] == [2]


def test_counters_gauges_and_histograms_are_all_kept() -> None:
    reports = Reports()
    report = MetricsReport(
        counters=[CounterMetric(name="a", value=1)],
        gauges=[GaugeMetric(name="b", value=2.5)],
        histograms=[HistogramMetric(name="c", sum=1.0, count=3)],
    )
    reports.add("waf", HERE, report, 0.0)

    assert [(name, value) for _, _, name, _, value in values(reports)] == [("a", 1), ("b", 2.5), ("c", 3)]


# Dropped


def test_values_vanish_after_five_minutes() -> None:
    reports = Reports()
    reports.add("waf", HERE, counted(1), 100.0)

    assert MAX_AGE == 300.0
    assert len(values(reports, 399.9)) == 1
    assert values(reports, 400.1) == []


def test_a_value_that_is_reported_again_lives_on() -> None:
    reports = Reports()
    for now in range(0, 1000, 100):
        reports.add("waf", HERE, counted(1), float(now))
        reports.add("waf", HERE, measured(now, at=str(now)), float(now))

    assert len([name for _, _, name, _, _ in values(reports, 900.0) if name == "blocked"]) == 1
    assert len([name for _, _, name, _, _ in values(reports, 900.0) if name == "load"]) == 3


def test_what_has_vanished_is_not_held_in_memory() -> None:
    reports = Reports()
    for number in range(50):
        reports.add("waf", HERE, many(100, start=100 * number), number * 301.0)

    assert len(reports._agents["waf"]) == 100


def test_a_removed_agent_is_forgotten_and_others_are_not() -> None:
    reports = Reports()
    reports.add("waf", HERE, counted(1), 0.0)
    reports.add("pii", HERE, counted(2), 0.0)
    reports.forget("waf")
    reports.forget("nobody")

    assert [agent_id for agent_id, *_ in values(reports)] == ["pii"]


def test_no_agent_has_more_than_a_thousand_series_and_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    reports = Reports()
    for number in range(20):
        reports.add("waf", HERE, many(300, start=300 * number), float(number))
    reports.add("pii", HERE, many(10), 20.0)

    kept = values(reports, 20.0)
    assert MAX_SERIES == 1000
    assert sum(agent_id == "waf" for agent_id, *_ in kept) == 1000
    assert sum(agent_id == "pii" for agent_id, *_ in kept) == 10
    assert len(refusals(caplog)) == 1
    assert "'waf'" in refusals(caplog)[0]


def test_a_thousand_series_are_not_too_many(caplog: pytest.LogCaptureFixture) -> None:
    reports = Reports()
    for now in (0.0, 10.0):
        reports.add("waf", HERE, many(1000), now)

    assert len(values(reports, 10.0)) == 1000
    assert refusals(caplog) == []


def test_series_of_all_endpoints_of_an_agent_count_together() -> None:
    reports = Reports()
    for number in range(5):
        reports.add("waf", f"unix:///{number}", many(300), 0.0)

    assert len(values(reports)) == 1000


def test_an_agent_that_has_too_many_still_brings_news_of_those_it_has() -> None:
    reports = Reports()
    reports.add("waf", HERE, many(2000), 0.0)
    reports.add("waf", HERE, measured(-1.0, "m0"), 1.0)
    reports.add("waf", HERE, measured(-1.0, "m1999"), 1.0)

    kept = {name: value for _, _, name, _, value in values(reports, 1.0)}
    assert kept["m0"] == -1.0
    assert "m1999" not in kept


def test_once_old_series_have_vanished_there_is_room_for_new_ones() -> None:
    reports = Reports()
    reports.add("waf", HERE, many(1000), 0.0)
    reports.add("waf", HERE, many(1000, start=5000), 301.0)

    assert [name for _, _, name, _, _ in values(reports, 301.0)] == sorted(f"m{number}" for number in range(5000, 6000))


def test_a_report_with_unbounded_labels_again_and_again_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    reports = Reports()
    for number in range(100):
        reports.add("waf", HERE, many(400, start=400 * number), number * 60.0)

    assert len(refusals(caplog)) == 1


class Model:
    """What reports come to, if each value is remembered with its time."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str, str, frozenset[tuple[str, str]]], tuple[float, float]] = {}

    def add(self, agent_id: str, endpoint: str, metric: GaugeMetric, now: float) -> None:
        self.values[agent_id, endpoint, metric.name, frozenset(metric.labels.items())] = (now, metric.value)

    def current(self, now: float) -> dict[Any, float]:
        return {key: value for key, (at, value) in self.values.items() if now - at < MAX_AGE}


@steady
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 1.0, 150.0, 299.0, 301.0, 5000.0]),
            st.sampled_from("ab"),
            st.sampled_from("xy"),
            st.sampled_from("mn"),
            st.dictionaries(st.sampled_from("kl"), st.sampled_from("12")),
            st.floats(allow_nan=False),
        ),
        max_size=30,
    )
)
def test_it_is_as_if_each_value_were_remembered_for_five_minutes(steps: list[Any]) -> None:
    reports, model, now = Reports(), Model(), 0.0
    for step, agent_id, endpoint, name, labels, value in steps:
        now += step
        metric = GaugeMetric(name=name, labels=labels, value=value)
        reports.add(agent_id, endpoint, MetricsReport(gauges=[metric]), now)
        model.add(agent_id, endpoint, metric, now)
        found = {
            (each.agent_id, each.endpoint, each.metric.name, frozenset(each.metric.labels.items())): _value(each)
            for each in reports.current(now)
        }
        assert found == model.current(now)


def test_reading_while_reports_come_in_another_thread_is_safe() -> None:
    reports = Reports()
    done = threading.Event()

    def report() -> None:
        for number in range(300):
            reports.add(f"agent-{number}", HERE, many(5), 0.0)
            reports.add("waf", HERE, many(10, start=number), 0.0)
            reports.forget(f"agent-{number - 1}")
        done.set()

    reporting = threading.Thread(target=report)
    reporting.start()
    while not done.is_set():
        list(reports.current(0.0))
    reporting.join()

    assert [agent_id for agent_id, *_ in values(reports) if agent_id != "waf"] == ["agent-299"] * 5


def test_a_report_that_comes_while_it_is_read_does_not_disturb_the_reader() -> None:
    reports = Reports()
    reports.add("waf", HERE, many(3), 0.0)
    reading: Iterator[Reported] = reports.current(0.0)
    next(reading)
    reports.add("waf", HERE, many(3, start=10), 0.0)
    reports.add("pii", HERE, many(3), 0.0)
    reports.forget("waf")

    assert len(list(reading)) == 2


# Over a stream


REPORT = {
    "counters": [{"name": "blocked", "labels": {"rule": "x"}, "value": 3}],
    "gauges": [{"name": "load", "value": 0.5}],
    "histograms": [
        {"name": "scan", "sum": 1.5, "count": 2, "buckets": [{"le": 0.1, "count": 1}, {"le": "+Inf", "count": 2}]}
    ],
}


def frame_of(report: Any, encoding: str = "json") -> bytes:
    encode = msgspec.json.encode if encoding == "json" else msgspec.msgpack.encode
    return encode_frame(MessageType.METRICS_REPORT, encode(report))


def exported(manager: Any) -> list[str]:
    """The lines that are about what agents have reported."""
    return [line for line in manager.export_prometheus().splitlines() if "endpoint=" in line]


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_what_an_agent_reports_is_exported_under_its_id_and_endpoint(encoding: str) -> None:
    peer = Peer(encoding=encoding, behaviour=allow)
    async with managing(peer, connections=1, stream={"encoding": encoding}) as manager:
        await peer.links[0].send(frame_of(REPORT, encoding))
        await until(lambda: exported(manager))

        about = f'agent_id="waf",endpoint="{peer.url}"'
        assert exported(manager) == [
            f'agent_reported_blocked_total{{{about},rule="x"}} 3.0',
            f"agent_reported_load{{{about}}} 0.5",
            f'agent_reported_scan_bucket{{{about},le="0.1"}} 1.0',
            f'agent_reported_scan_bucket{{{about},le="+Inf"}} 2.0',
            f"agent_reported_scan_count{{{about}}} 2.0",
            f"agent_reported_scan_sum{{{about}}} 1.5",
        ]


async def test_instances_of_an_agent_are_told_apart_by_endpoint() -> None:
    peers = [Peer(behaviour=allow), Peer(behaviour=allow)]
    async with managing(*peers, connections=2) as manager:
        for number, peer in enumerate(peers):
            await peer.links[0].send(frame_of({"gauges": [{"name": "load", "value": number}]}))
        await until(lambda: len(exported(manager)) == 2)

        assert sorted(exported(manager)) == sorted(
            f'agent_reported_load{{agent_id="waf",endpoint="{peer.url}"}} {number}.0'
            for number, peer in enumerate(peers)
        )


async def test_an_agent_can_not_report_for_another() -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1) as manager:
        spoofed = {"agent_id": "pii", "gauges": [{"name": "load", "labels": {"agent_id": "pii"}, "value": 1}]}
        await peer.links[0].send(frame_of(spoofed))
        await until(lambda: exported(manager))

        (line,) = exported(manager)
        assert 'agent_id="waf"' in line
        assert 'exported_agent_id="pii"' in line


async def test_the_callback_gets_the_report_as_well() -> None:
    told: list[tuple[str, MetricsReport]] = []
    peer = Peer(behaviour=allow)
    callbacks = {"on_metrics_report": lambda agent_id, report: told.append((agent_id, report))}
    async with managing(peer, callbacks=callbacks, connections=1) as manager:
        await peer.links[0].send(frame_of(REPORT))
        await until(lambda: told)

        ((agent_id, report),) = told
        assert agent_id == "waf"
        assert [counter.value for counter in report.counters] == [3]
        assert exported(manager)


async def test_a_callback_that_raises_loses_no_report(caplog: pytest.LogCaptureFixture) -> None:
    def fail(agent_id: str, report: MetricsReport) -> None:
        raise ValueError("oh no")

    peer = Peer(behaviour=allow)
    async with managing(peer, callbacks={"on_metrics_report": fail}, connections=1) as manager:
        await peer.links[0].send(frame_of(REPORT))
        await until(lambda: exported(manager))

        assert (await manager.process_request_headers(head())).is_allow


async def test_a_report_that_comes_with_the_handshake_has_its_endpoint() -> None:
    peer = Peer(handshake() + frame_of(REPORT), behaviour=allow)
    async with managing(peer, connections=1) as manager:
        await until(lambda: exported(manager))

        assert all(f'endpoint="{peer.url}"' in line for line in exported(manager))


async def test_a_report_that_comes_while_it_is_configured_has_its_endpoint() -> None:
    async def behave(event: Received) -> None:
        if event.event_type is EventType.CONFIGURE:
            await event.link.send(frame_of(REPORT))
        await event.answer()

    peer = Peer(handshake(events=ALL_EVENTS | {EventType.CONFIGURE}), behaviour=behave)
    async with managing(peer, connections=1, config={}) as manager:
        await until(lambda: exported(manager))

        assert all(f'endpoint="{peer.url}"' in line for line in exported(manager))


async def test_a_removed_agents_reports_are_gone() -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1) as manager:
        await peer.links[0].send(frame_of(REPORT))
        await until(lambda: exported(manager))

        await manager.remove_agent("waf")

        assert exported(manager) == []


async def test_what_an_agent_reports_while_it_is_being_removed_is_not_kept() -> None:
    peer = Peer()
    async with managing(peer, connections=1) as manager, anyio.create_task_group() as tasks:
        tasks.start_soon(manager.process_request_headers, head())
        asked = await peer.next()
        # It is drained: this call is still under way.
        tasks.start_soon(manager.remove_agent, "waf")
        await settle()
        assert manager.agent_ids == ()
        await asked.link.send(frame_of(REPORT))
        await settle()
        await asked.answer()
        await settle()

        assert exported(manager) == []


async def test_reports_of_an_agent_that_was_replaced_are_forgotten() -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1) as manager:
        await peer.links[0].send(frame_of(REPORT))
        await until(lambda: exported(manager))
        await manager.replace_agent(agent(peer))

        assert not exported(manager)


@pytest.mark.parametrize("digits", [20, 400, 4000])
async def test_a_number_of_any_size_spoils_no_export(digits: int) -> None:
    peer = Peer(behaviour=allow)
    number = "9" * digits
    raw = (
        f'{{"counters":[{{"name":"huge","value":{number}}}],"gauges":[{{"name":"load","value":1}}],'
        f'"histograms":[{{"name":"scan","sum":1,"count":{number}}}]}}'
    )
    async with managing(peer, connections=1) as manager:
        await peer.links[0].send(encode_frame(MessageType.METRICS_REPORT, raw.encode()))
        await settle()

        assert "asgi_agents_call_active" in manager.export_prometheus()


async def test_logging_of_what_an_agent_made_up_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer(behaviour=allow)
    with caplog.at_level(logging.INFO, logger="asgi_agents"):
        async with managing(peer, connections=1) as manager:
            await peer.links[0].send(frame_of({"gauges": [{"name": "n" * 10_000, "value": 1}]}))
            await peer.links[0].send(frame_of({"counters": [{"name": "n" * 10_000, "value": -1}]}))
            await settle()
            manager.export_prometheus()

        assert all(len(line) < 1000 for line in lines(caplog))


@pytest.mark.parametrize(
    "report",
    [
        counted(1, "n" * 129),
        counted(1, label="v" * 257),
        counted(1, **{f"l{number}": "" for number in range(17)}),
        MetricsReport(counters=[CounterMetric(name="n", help="h" * 501, value=1)]),
        MetricsReport(
            histograms=[
                HistogramMetric(
                    name="n", sum=0, count=0, buckets=[HistogramBucket(float(bound), 0) for bound in range(65)]
                )
            ]
        ),
    ],
    ids=["name", "label", "labels", "help", "buckets"],
)
def test_what_is_too_long_is_not_kept(report: MetricsReport, caplog: pytest.LogCaptureFixture) -> None:
    reports = Reports()
    reports.add("waf", HERE, report, 0.0)
    reports.add("waf", HERE, measured(1.0), 0.0)

    assert [name for _, _, name, _, _ in values(reports)] == ["load"]
    assert len(refusals(caplog)) == 1


def test_the_buckets_of_a_histogram_count_as_values() -> None:
    reports = Reports()
    buckets = [HistogramBucket(float(bound), 0) for bound in range(48)]
    histograms = [HistogramMetric(name=f"h{number}", sum=0, count=0, buckets=buckets) for number in range(30)]
    for _ in range(2):
        reports.add("waf", HERE, MetricsReport(histograms=histograms), 0.0)

    assert len(values(reports)) == MAX_SERIES // 50
