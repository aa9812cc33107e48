import gc
import logging
import math
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from asgi_agents.breaker import BreakerState
from asgi_agents.config import AgentConfig
from asgi_agents.decision import Verdict
from asgi_agents.errors import ConfigurationError
from asgi_agents.failures import Failure, FailureKind
from asgi_agents.manager import AgentManager, registry_of
from asgi_agents.observability.histograms import EXPORTED_BOUNDS
from asgi_agents.observability.instruments import HISTOGRAMS, METRICS, Kind
from asgi_agents.observability.prometheus import prometheus_name
from asgi_agents.policy import CircuitBreakerConfig, FailureMode
from asgi_agents.prometheus import PrometheusCollector, metrics_app
from asgi_agents.protocol import AgentResponse, EventType
from asgi_agents.protocol.stream import CounterMetric, GaugeMetric, HistogramBucket, HistogramMetric, MetricsReport
from tests.support.examples import some_are_short

from .test_manager import REQUEST, Clock, Fake, body, hang, raising, settle

steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
HERE = "unix:///run/waf.sock"
OURS = {prometheus_name(metric.name, metric.unit) for metric in (*METRICS, *HISTOGRAMS)}
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
BLOCK, ALLOW = AgentResponse.block(), AgentResponse.allow()


def parse_openmetrics(text: str) -> Iterator[Family]:
    families: Iterator[Family] = openmetrics_parser.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    return families


def managed(*ids: str, **fields: Any) -> AgentManager:
    return AgentManager([AgentConfig(agent_id, Fake(), **fields) for agent_id in ids or ("waf",)])


def judged(
    manager: AgentManager,
    outcome: AgentResponse | FailureKind,
    *,
    agent_id: str = "waf",
    correlation_id: str = "c-1",
    closed: bool = True,
    enforced: bool = True,
    duration: float = 0.5,
) -> None:
    """Have an agent's answer counted."""
    response = outcome if isinstance(outcome, AgentResponse) else None
    failure = None if isinstance(outcome, AgentResponse) else Failure(outcome, "…")
    verdict = Verdict(agent_id, EventType.REQUEST_HEADERS, response, failure, closed, enforced, duration)
    registry_of(manager).guard(agent_id).tally.count(verdict, 0.0, correlation_id=correlation_id)


def reported(manager: AgentManager, *metrics: Any, agent_id: str = "waf", endpoint: str = HERE) -> None:
    """Have an agent report metrics of its own."""
    report = MetricsReport(
        counters=[metric for metric in metrics if isinstance(metric, CounterMetric)],
        gauges=[metric for metric in metrics if isinstance(metric, GaugeMetric)],
        histograms=[metric for metric in metrics if isinstance(metric, HistogramMetric)],
    )
    registry_of(manager)._metrics_reported(agent_id, endpoint, report)


def get(manager: AgentManager, accept: str = "", **options: Any) -> httpx.Response:
    response: Any = TestClient(metrics_app(manager, **options)).get("/", headers={"accept": accept})
    return response  # type: ignore[no-any-return]


def samples(manager: AgentManager) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Everything in the text format."""
    found = {}
    for family in parse_text(manager.export_prometheus()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def value(manager: AgentManager, name: str, **labels: str) -> float | None:
    return samples(manager).get((name, frozenset({"agent_id": "waf", **labels}.items())))


def is_ours(family: Family) -> bool:
    return family.name in OURS


def check(families: Iterable[Family]) -> list[Family]:
    """Families and series are unique, and each series has a family that says what it is."""
    families = list(families)
    names = Counter(family.name for family in families)
    assert names.most_common(1)[0][1] == 1
    series = Counter((sample.name, *sorted(sample.labels.items())) for family in families for sample in family.samples)
    assert series.most_common(1)[0][1] == 1
    assert {family.type for family in families} <= {"counter", "gauge", "histogram"}
    for family in families:
        assert all(sample.labels["agent_id"] for sample in family.samples)
        if not is_ours(family):
            assert all("endpoint" in sample.labels for sample in family.samples)
    return families


ACCEPTED = [
    OPENMETRICS,
    "application/openmetrics-text",
    "application/openmetrics-text; version=1.0.0; escaping=allow-utf-8",
]


def check_all(manager: AgentManager) -> list[Family]:
    """What is exported can be read in each format; returns what the text format says."""
    families = check(parse_text(manager.export_prometheus()))
    for accept in ACCEPTED:
        response = get(manager, accept)
        assert response.status_code == 200
        openly = check(parse_openmetrics(response.text))
        assert {family.name for family in openly} == {family.name for family in families}
    return families


def theirs(manager: AgentManager) -> list[Family]:
    """What agents report, as it is exported."""
    return [family for family in check_all(manager) if not is_ours(family)]


# Names and values


def test_names_are_those_that_opentelemetry_gives() -> None:
    manager = managed()
    families = {family.name: family.type for family in check_all(manager)}

    assert families == {
        "asgi_agents_call_active": "gauge",
        "asgi_agents_call_waiting": "gauge",
        "asgi_agents_decisions": "counter",
        "asgi_agents_failures": "counter",
        "asgi_agents_breaker_state": "gauge",
        "asgi_agents_breaker_transitions": "counter",
        "asgi_agents_inspected_bytes": "counter",
        "asgi_agents_bodies_skipped": "counter",
        "asgi_agents_shadow_denials": "counter",
        "asgi_agents_call_duration_seconds": "histogram",
        "asgi_agents_call_queue_duration_seconds": "histogram",
        "asgi_agents_text_finds": "counter",
        "asgi_agents_text_windows": "gauge",
        "asgi_agents_text_held": "gauge",
        "asgi_agents_text_hold_duration_seconds": "histogram",
    }
    assert len(families) == len(METRICS) + len(HISTOGRAMS)


def test_counters_end_in_total_and_units_are_said() -> None:
    manager = managed()
    text, openly = manager.export_prometheus(), get(manager, OPENMETRICS).text

    for metric in METRICS:
        base = metric.name.replace(".", "_") + ("_bytes" if metric.unit == "By" else "")
        kind = "counter" if metric.kind is Kind.COUNTER else "gauge"
        assert f"# TYPE {base}{'_total' if kind == 'counter' else ''} {kind}\n" in text
        assert f"# TYPE {base} {kind}\n" in openly
    assert "# UNIT asgi_agents_inspected_bytes bytes\n" in openly
    assert "# UNIT asgi_agents_call_duration_seconds seconds\n" in openly
    assert openly.count("# UNIT") == 4
    assert openly.endswith("# EOF\n")


async def test_everything_that_is_counted_has_its_value() -> None:
    manager = AgentManager(
        [
            AgentConfig(
                "waf",
                Fake(raising(ValueError())),
                circuit_breaker=CircuitBreakerConfig(failure_threshold=2),
                failure_mode=FailureMode.OPEN,
                max_request_body_bytes=3,
            )
        ]
    )
    for _ in range(3):
        await manager.process_request_headers(REQUEST)
    assert value(manager, "asgi_agents_call_queue_duration_seconds_count") == 0
    await manager.process_request_body(body(b"1234"))

    headers = {"event": "request_headers", "failure_mode": "open", "enforced": "true"}
    assert value(manager, "asgi_agents_failures_total", error_type="error", **headers) == 2
    assert value(manager, "asgi_agents_failures_total", error_type="breaker_open", **headers) == 1
    assert value(manager, "asgi_agents_breaker_state", breaker_state="open") == 1
    assert value(manager, "asgi_agents_breaker_state", breaker_state="closed") == 0
    assert value(manager, "asgi_agents_breaker_transitions_total", breaker_state="open") == 1
    assert value(manager, "asgi_agents_bodies_skipped_total", event="request_body_chunk") == 1
    assert value(manager, "asgi_agents_call_active") == 0
    errors = {"event": "request_headers", "error_type": "error"}
    assert value(manager, "asgi_agents_call_duration_seconds_count", **errors) == 2
    assert value(manager, "asgi_agents_call_duration_seconds_bucket", le="+Inf", **errors) == 2


async def test_decisions_and_inspected_bytes_have_their_value() -> None:
    manager = AgentManager([AgentConfig("waf", Fake(), enforce=False)])
    await manager.process_request_body(body(b"12345"))
    await manager.process_request_headers(REQUEST)
    judged(manager, BLOCK, enforced=False)

    assert value(manager, "asgi_agents_inspected_bytes_total", event="request_body_chunk") == 5
    shadow = {"event": "request_headers", "enforced": "false"}
    assert value(manager, "asgi_agents_decisions_total", decision="allow", **shadow) == 1
    assert value(manager, "asgi_agents_decisions_total", decision="block", **shadow) == 1
    assert value(manager, "asgi_agents_shadow_denials_total", event="request_headers", decision="block") == 1


def test_histograms_have_buckets_from_a_millisecond_to_ten_seconds() -> None:
    manager = managed()
    for duration in (0.0005, 0.001, 0.02, 5.0, 60.0):
        judged(manager, ALLOW, duration=duration)

    bounds = {}
    for (name, labels), count in samples(manager).items():
        if name == "asgi_agents_call_duration_seconds_bucket":
            bounds[float(dict(labels)["le"])] = count
    assert sorted(bounds) == [*EXPORTED_BOUNDS, math.inf]
    assert (bounds[0.001], bounds[0.01], bounds[0.025], bounds[2.5], bounds[5.0]) == (2, 2, 3, 3, 4)
    assert (bounds[10.0], bounds[math.inf]) == (4, 5)
    about = {"event": "request_headers", "decision": "allow"}
    assert value(manager, "asgi_agents_call_duration_seconds_sum", **about) == pytest.approx(65.0215)


async def test_calls_under_way_and_waiting_are_of_the_moment() -> None:
    manager = AgentManager([AgentConfig("waf", Fake(hang), max_concurrent_calls=1, timeout=60.0)])
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(manager.process_request_headers, REQUEST)
        await settle()
        assert (value(manager, "asgi_agents_call_active"), value(manager, "asgi_agents_call_waiting")) == (1, 2)
        tasks.cancel_scope.cancel()

    assert (value(manager, "asgi_agents_call_active"), value(manager, "asgi_agents_call_waiting")) == (0, 0)


async def test_scraping_changes_no_breaker() -> None:
    clock = Clock()
    breaker = CircuitBreakerConfig(failure_threshold=1, reset_timeout=30.0)
    manager = AgentManager([AgentConfig("waf", Fake(raising(ValueError())), circuit_breaker=breaker)], clock=clock)
    await manager.process_request_headers(REQUEST)
    clock.now += 31.0

    for _ in range(3):
        assert value(manager, "asgi_agents_breaker_state", breaker_state="half_open") == 1
        assert value(manager, "asgi_agents_breaker_transitions_total", breaker_state="half_open") is None
    guard = registry_of(manager).guard("waf")
    assert guard.tally.transitions == {BreakerState.OPEN: 1}


async def test_an_agent_that_is_removed_is_exported_no_more_and_one_that_is_replaced_keeps_its_counts() -> None:
    manager = managed("waf", "pii")
    await manager.process_request_headers(REQUEST)
    await manager.replace_agent(AgentConfig("waf", Fake()))
    await manager.process_request_headers(REQUEST)
    await manager.remove_agent("pii")

    about = {"event": "request_headers", "decision": "allow"}
    assert value(manager, "asgi_agents_decisions_total", enforced="true", **about) == 2
    assert value(manager, "asgi_agents_call_duration_seconds_count", **about) == 2
    assert "pii" not in manager.export_prometheus()


def test_an_agent_may_have_any_id_that_it_can_have() -> None:
    names = ["!#$%&'*+-.^_`|~", "a" * 128, "0"]
    manager = managed(*names)

    assert {dict(labels)["agent_id"] for _, labels in samples(manager)} == set(names)
    check_all(manager)


def test_nothing_to_export_is_nothing_wrong() -> None:
    empty = AgentManager()

    assert all(not family.samples for family in parse_text(empty.export_prometheus()))
    assert all(not family.samples for family in parse_openmetrics(get(empty, OPENMETRICS).text))


def test_it_can_be_exported_while_another_thread_counts() -> None:
    manager = managed()
    done = threading.Event()

    def count() -> None:
        for _ in range(20):
            for kind in FailureKind:
                for closed in (True, False):
                    judged(manager, kind, closed=closed)
                    judged(manager, BLOCK, closed=closed)
        done.set()

    counting = threading.Thread(target=count)
    counting.start()
    while not done.is_set():
        check(parse_text(manager.export_prometheus()))
    counting.join()
    check_all(manager)


def test_a_registry_can_have_it() -> None:
    registry = CollectorRegistry()
    registry.register(PrometheusCollector(managed()))

    assert registry.get_sample_value("asgi_agents_call_active", {"agent_id": "waf"}) == 0


@pytest.mark.parametrize("manager", [None, "manager", AgentManager])
def test_what_is_no_manager_is_a_configuration_error(manager: Any) -> None:
    with pytest.raises(ConfigurationError, match="expected an AgentManager"):
        PrometheusCollector(manager)
    with pytest.raises(ConfigurationError, match="expected an AgentManager"):
        metrics_app(manager)


# Exemplars


def exemplars(manager: AgentManager) -> dict[str, str]:
    """The correlation id of each series that has one."""
    found = {}
    for family in parse_openmetrics(get(manager, OPENMETRICS).text):
        for sample in family.samples:
            if sample.exemplar is not None:
                assert set(sample.exemplar.labels) == {"correlation_id"}
                outcome = sample.labels.get("error_type") or sample.labels["decision"]
                found[f"{sample.name} {outcome}"] = sample.exemplar.labels["correlation_id"]
    return found


def test_failures_and_denials_have_the_correlation_id_of_the_latest_and_allow_has_none() -> None:
    manager = managed()
    judged(manager, BLOCK, correlation_id="old")
    judged(manager, BLOCK, correlation_id="denied")
    judged(manager, ALLOW, correlation_id="allowed")
    judged(manager, FailureKind.TIMEOUT, correlation_id="failed")

    assert exemplars(manager) == {
        "asgi_agents_decisions_total block": "denied",
        "asgi_agents_failures_total timeout": "failed",
    }


def test_what_a_shadow_agent_would_have_stopped_has_one_too() -> None:
    manager = managed()
    judged(manager, BLOCK, correlation_id="denied", enforced=False)

    assert exemplars(manager) == {
        "asgi_agents_decisions_total block": "denied",
        "asgi_agents_shadow_denials_total block": "denied",
    }


def test_the_text_format_has_none() -> None:
    manager = managed()
    judged(manager, BLOCK, correlation_id="denied")

    assert "denied" not in manager.export_prometheus()
    assert "denied" not in get(manager).text


# An exemplar's label names and values are at most 128 characters together, of which the name takes 14.
@pytest.mark.parametrize(("length", "there"), [(1, True), (114, True), (115, False), (100_000, False), (0, False)])
def test_an_id_that_is_too_long_for_an_exemplar_is_left_out(length: int, there: bool) -> None:
    manager = managed()
    judged(manager, BLOCK, correlation_id="x" * length)

    assert exemplars(manager) == ({"asgi_agents_decisions_total block": "x" * length} if there else {})
    check_all(manager)


@pytest.mark.parametrize("correlation_id", ["\ud800", "a\ud800b", "\n", "\\", "ü", " ", "\x00", "# {", "}", "a\r\nb"])
def test_an_id_of_any_characters_spoils_no_export(correlation_id: str) -> None:
    manager = managed()
    judged(manager, BLOCK, correlation_id=correlation_id)

    check_all(manager)


# What agents report


HOSTILE_NAMES = (
    "",
    "_",
    "__",
    "_total",
    "_total_total",
    "x_total_total",
    "_total_total_total",
    "0",
    "9_total",
    " ",
    "\n",
    "é",
    "a b",
    "a{b}",
    'a"',
    "#",
    "# EOF",
    "a:b",
    ":",
    "::",
    "__name__",
    "\x00",
    "🔥",
    "le",
    "n" * 5000,
    "_created",
    "_bucket",
    "_count",
    "_sum",
    "x_info",
    "x_created",
    "x_bucket",
    "NaN",
    "+Inf",
    "\\",
    "a\\nb",
    "_created_total",
)
HOSTILE_LABELS = (
    "",
    "_",
    "__",
    "__name__",
    "le",
    "agent_id",
    "endpoint",
    "quantile",
    "0",
    "a b",
    "é",
    '"',
    "\n",
    "=",
    "a:b",
    "🔥",
    "exported_le",
    "agent.id",
)


def test_what_an_agent_reports_is_under_its_id_and_endpoint() -> None:
    manager = managed()
    reported(
        manager,
        CounterMetric(name="waf.blocked", help="Requests blocked.", labels={"rule.id": "942"}, value=3),
        GaugeMetric(name="load", value=0.5),
        HistogramMetric(name="scan", sum=1.5, count=3, buckets=[HistogramBucket(0.5, 1), HistogramBucket("+Inf", 3)]),
    )

    assert value(manager, "agent_reported_waf_blocked_total", endpoint=HERE, rule_id="942") == 3
    assert value(manager, "agent_reported_load", endpoint=HERE) == 0.5
    assert value(manager, "agent_reported_scan_bucket", endpoint=HERE, le="0.5") == 1
    assert value(manager, "agent_reported_scan_bucket", endpoint=HERE, le="+Inf") == 3
    assert (
        value(manager, "agent_reported_scan_sum", endpoint=HERE),
        value(manager, "agent_reported_scan_count", endpoint=HERE),
    ) == (1.5, 3)
    assert {(family.name, family.type, family.documentation) for family in theirs(manager)} == {
        ("agent_reported_waf_blocked", "counter", "Requests blocked."),
        ("agent_reported_load", "gauge", "Reported by an agent."),
        ("agent_reported_scan", "histogram", "Reported by an agent."),
    }


def test_the_same_metric_of_several_agents_is_one_family() -> None:
    manager = managed("waf", "pii")
    reported(manager, GaugeMetric(name="load", value=1))
    reported(manager, GaugeMetric(name="load", value=2), agent_id="pii")
    reported(manager, GaugeMetric(name="load", value=3), endpoint="unix:///other")

    (family,) = theirs(manager)
    assert sorted(sample.value for sample in family.samples) == [1, 2, 3]


def test_a_counter_that_is_named_total_already_has_it_once() -> None:
    manager = managed()
    reported(manager, CounterMetric(name="blocked_total", value=3))

    assert value(manager, "agent_reported_blocked_total", endpoint=HERE) == 3


@pytest.mark.parametrize(
    "name",
    some_are_short(HOSTILE_NAMES, one_in=3),
    ids=lambda name: ascii(name)[:20],
)
@pytest.mark.parametrize("kind", [CounterMetric, GaugeMetric, HistogramMetric])
def test_a_metric_of_any_name_spoils_no_export(kind: Callable[..., Any], name: str) -> None:
    manager = managed()
    numbers = {"sum": 1.0, "count": 1} if kind is HistogramMetric else {"value": 1}
    reported(manager, kind(name=name, **numbers), GaugeMetric(name="load", value=1))

    assert "agent_reported_load" in {family.name for family in theirs(manager)}


@pytest.mark.parametrize(
    "label",
    some_are_short(HOSTILE_LABELS, one_in=3),
)
@pytest.mark.parametrize("kind", [CounterMetric, GaugeMetric, HistogramMetric])
def test_a_label_of_any_name_spoils_no_export(kind: Callable[..., Any], label: str) -> None:
    manager = managed()
    numbers = {"sum": 1.0, "count": 1} if kind is HistogramMetric else {"value": 1}
    reported(manager, kind(name="m", labels={label: "v"}, **numbers))

    (family,) = theirs(manager)
    for sample in family.samples:
        assert (sample.labels["agent_id"], sample.labels["endpoint"]) == ("waf", HERE)
        assert "v" in sample.labels.values()


@pytest.mark.parametrize(
    "text",
    ["", " ", "  ", "\n", "\\", '"', 'a "b', "\\n", "\r", "\r\n", "\u2028", "\x00", "{}", "# EOF", "é🔥", "\t", "\x85"],
)
def test_help_and_label_values_may_be_any_text(text: str) -> None:
    manager = managed()
    reported(manager, GaugeMetric(name="m", help=text, labels={"a": text}, value=1))

    (family,) = theirs(manager)
    assert family.samples[0].labels["a"] == text


def test_a_lone_surrogate_spoils_no_export() -> None:
    manager = managed()
    reported(manager, GaugeMetric(name="\ud800", help="\ud800", labels={"\ud800": "\ud800"}, value=1))

    assert len(theirs(manager)) == 1


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, -0.0, 1e308, 5e-324, -1.5, 0.1, 1e22, 123456789.0])
def test_a_gauge_may_be_any_number(number: float) -> None:
    manager = managed()
    reported(manager, GaugeMetric(name="m", value=number))

    (family,) = theirs(manager)
    assert family.samples[0].value == number or math.isnan(number)


@pytest.mark.parametrize("number", [0, 1, 2**53 + 1, 2**64, 10**400], ids=lambda number: str(number)[:20])
def test_a_counter_of_any_size_spoils_no_export(number: int) -> None:
    manager = managed()
    reported(manager, CounterMetric(name="m", value=number), GaugeMetric(name="load", value=1))

    assert "agent_reported_load" in {family.name for family in theirs(manager)}


def histogram(buckets: dict[Any, int], *, count: int = 3, total: float = 1.5, name: str = "m") -> HistogramMetric:
    return HistogramMetric(
        name=name, sum=total, count=count, buckets=[HistogramBucket(le, number) for le, number in buckets.items()]
    )


@pytest.mark.parametrize(
    "histogram",
    [
        histogram({}),
        histogram({1.0: 1}),
        histogram({2.0: 3, 1.0: 1}),
        histogram({math.inf: 3}),
        histogram({0.0: 0, 1e-300: 1, 1e300: 2}),
        histogram({1e6: 1, 1e7: 2, 123456789.123: 3}),
        histogram({}, count=0, total=0.0),
        histogram({0.5: 0}, count=0, total=0.0),
        histogram({-0.0: 0}),
    ],
    ids=repr,
)
def test_a_histogram_that_makes_sense_is_exported_whole(histogram: HistogramMetric) -> None:
    manager = managed()
    reported(manager, histogram)

    (family,) = theirs(manager)
    names = Counter(sample.name for sample in family.samples)
    assert names["agent_reported_m_bucket"] == len({bucket.le for bucket in histogram.buckets} | {math.inf})
    assert (names["agent_reported_m_count"], names["agent_reported_m_sum"]) == (1, 1)


@pytest.mark.parametrize(
    "histogram",
    [
        histogram({-1.0: 1, 1.0: 2}),
        histogram({-math.inf: 0}),
        histogram({1.0: 1}, total=-1.5),
        histogram({1.0: 1}, total=math.nan),
        histogram({1.0: 1}, total=math.inf),
        histogram({1.0: 1}, total=-math.inf),
        histogram({-1.0: 1}, total=math.nan),
    ],
    ids=repr,
)
def test_a_histogram_of_what_can_be_negative_is_exported_in_a_way_that_can_be_read(histogram: HistogramMetric) -> None:
    manager = managed()
    reported(manager, histogram)

    for family in theirs(manager):
        assert value(manager, "agent_reported_m_bucket", endpoint=HERE, le="+Inf") == 3
        assert family.type == "histogram"


@pytest.mark.parametrize(
    "metric",
    [
        histogram({1.0: 3, 2.0: 1}),
        histogram({1.0: 4}),
        histogram({math.inf: 2}),
        histogram({1.0: -1}),
        histogram({}, count=-1),
        histogram({math.nan: 1}),
        CounterMetric(name="m", value=-1),
        HistogramMetric(name="m", sum=1.0, count=2, buckets=[HistogramBucket(1.0, 1), HistogramBucket(1.0, 2)]),
    ],
    ids=repr,
)
def test_what_makes_no_sense_is_left_out_and_logged_once(caplog: pytest.LogCaptureFixture, metric: Any) -> None:
    manager = managed()
    app = TestClient(metrics_app(manager))
    reported(manager, metric, GaugeMetric(name="load", value=1))

    for _ in range(3):
        text = app.get("/").text
        assert [family.name for family in parse_text(text) if not is_ours(family)] == ["agent_reported_load"]
    assert len(caplog.records) == 1
    assert "agent 'waf': metric 'm' is not exported" in caplog.text


def test_what_is_left_out_is_logged_once_however_it_is_exported(caplog: pytest.LogCaptureFixture) -> None:
    manager = managed()
    reported(manager, CounterMetric(name="m", value=-1))
    for _ in range(3):
        manager.export_prometheus()

    assert len(caplog.records) == 1


def test_a_wrong_value_that_changes_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    manager = managed()
    app = TestClient(metrics_app(manager))
    for number in range(5):
        reported(manager, CounterMetric(name="m", value=-1 - number))
        app.get("/")

    assert len(caplog.records) == 1


def test_what_is_left_out_makes_no_long_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    manager = managed()
    reported(manager, CounterMetric(name="n" * 5000, value=1), GaugeMetric(name="n" * 5000, value=1))
    reported(manager, CounterMetric(name="m", value=-(10**1000)))
    reported(manager, GaugeMetric(name="x" * 5000, labels={"a.": "1"}, value=1))
    reported(manager, GaugeMetric(name="x" * 5000, labels={"a_": "1"}, value=1))
    with caplog.at_level(logging.WARNING):
        manager.export_prometheus()

    assert len(caplog.records) >= 2
    assert max(len(record.getMessage()) for record in caplog.records) < 1000


TAKEN = (
    "asgi_agents_decisions",
    "asgi_agents_decisions_total",
    "asgi_agents.call.active",
    "asgi_agents_call_duration_seconds",
    "asgi_agents_call_duration_seconds_bucket",
    "asgi_agents_inspected_bytes",
)


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("kind", [CounterMetric, GaugeMetric, HistogramMetric])
def test_no_agent_can_add_to_our_metrics(kind: Callable[..., Any], name: str) -> None:
    manager = managed()
    before = {key: number for key, number in samples(manager).items() if "endpoint" not in dict(key[1])}
    numbers = {"sum": 1.0, "count": 1} if kind is HistogramMetric else {"value": 1}
    reported(manager, kind(name=name, **numbers))
    check_all(manager)

    assert {key: number for key, number in samples(manager).items() if "endpoint" not in dict(key[1])} == before


@pytest.mark.parametrize(
    "metrics",
    [
        [GaugeMetric(name="x", value=1), CounterMetric(name="x", value=1)],
        [GaugeMetric(name="x_total", value=1), CounterMetric(name="x", value=1)],
        [GaugeMetric(name="x_count", value=1), histogram({}, name="x")],
        [CounterMetric(name="x_sum", value=1), histogram({}, name="x")],
        [CounterMetric(name="x_bucket", value=1), histogram({}, name="x")],
        [GaugeMetric(name="x_created", value=1), CounterMetric(name="x", value=1)],
        [GaugeMetric(name="a.b", value=1), GaugeMetric(name="a_b", value=2)],
        [GaugeMetric(name="a:b", value=1), GaugeMetric(name="a_b", value=2)],
        [CounterMetric(name="a:b", value=1), CounterMetric(name="a_b", value=2)],
        [GaugeMetric(name=":", value=1), GaugeMetric(name="_", value=2)],
        [CounterMetric(name="x_total_total", value=1), CounterMetric(name="x", value=1)],
        [CounterMetric(name="x_total", value=1), CounterMetric(name="x", value=1)],
        [GaugeMetric(name="x", labels={"a.b": "1"}, value=1), GaugeMetric(name="x", labels={"a_b": "1"}, value=2)],
        [GaugeMetric(name="x", labels={"a.b": "1", "a_b": "2"}, value=1)],
        [histogram({1.0: 1}, name="x"), histogram({2.0: 1}, name="x")],
        [histogram({}, name="x"), histogram({}, name="x_count"), histogram({}, name="x_count_count")],
    ],
    ids=repr,
)
@pytest.mark.parametrize("order", [1, -1])
def test_metrics_that_collide_spoil_no_export(metrics: list[Any], order: int) -> None:
    manager = managed("waf", "pii")
    for number, metric in enumerate(metrics[::order]):
        reported(manager, metric, agent_id=("waf", "pii")[number % 2])
        reported(manager, metric)

    assert theirs(manager)


# Names that get in each other's way, and whatever else there may be.
NAMES = st.one_of(
    st.text(max_size=8),
    st.text("ab_:.0", max_size=5),
    st.builds(
        "".join,
        st.tuples(
            st.sampled_from(["x", "_", "", "asgi_agents_decisions", "asgi_agents_call_duration_seconds"]),
            st.sampled_from(["", "_total", "_count", "_sum", "_bucket", "_created", "_info", "_gsum", ":", "."]),
            st.sampled_from(["", "_total", "_count", "_created"]),
        ),
    ),
)
LABELS = st.dictionaries(
    st.one_of(
        st.text(max_size=6), st.sampled_from(["le", "agent_id", "endpoint", "__name__", "quantile", "a.b", "a_b"])
    ),
    st.text(max_size=10),
    max_size=3,
)
HELP = st.one_of(st.none(), st.text(max_size=20), st.sampled_from([" ", "\n", '"', "\\", "\r"]))
COUNTS = st.one_of(st.integers(-2, 10), st.integers())
FLOATS = st.floats()
BUCKETS = st.lists(
    st.builds(HistogramBucket, st.one_of(st.sampled_from(["+Inf", "Inf", -1.0, 0.0, 0.5, 1.0]), FLOATS), COUNTS),
    max_size=4,
)


@st.composite
def sensible_histograms(draw: st.DrawFn) -> HistogramMetric:
    """Whose buckets add up; others are left out at once."""
    bounds = sorted(draw(st.sets(st.floats(allow_nan=False), max_size=4)))
    counts = sorted(draw(st.lists(st.integers(0, 10**20), min_size=len(bounds) + 1, max_size=len(bounds) + 1)))
    *below, count = counts
    if bounds and bounds[-1] == math.inf:
        below[-1] = count
    buckets = [HistogramBucket(bound, number) for bound, number in zip(bounds, below, strict=True)]
    return HistogramMetric(
        name=draw(NAMES), help=draw(HELP), labels=draw(LABELS), sum=draw(FLOATS), count=count, buckets=buckets
    )


REPORTED = st.one_of(
    st.builds(CounterMetric, name=NAMES, help=HELP, labels=LABELS, value=COUNTS),
    st.builds(GaugeMetric, name=NAMES, help=HELP, labels=LABELS, value=FLOATS),
    st.builds(HistogramMetric, name=NAMES, help=HELP, labels=LABELS, sum=FLOATS, count=COUNTS, buckets=BUCKETS),
    sensible_histograms(),
)
FLEET = st.lists(
    st.tuples(st.sampled_from(["waf", "pii"]), st.sampled_from([HERE, "tcp://[::1]:9000", ""]), REPORTED), max_size=6
)


@steady
@given(FLEET)
def test_whatever_agents_report_the_text_format_can_be_read(fleet: list[tuple[str, str, Any]]) -> None:
    manager = managed("waf", "pii")
    judged(manager, BLOCK)
    for agent_id, endpoint, metric in fleet:
        reported(manager, metric, agent_id=agent_id, endpoint=endpoint)

    assert sum(map(is_ours, check(parse_text(manager.export_prometheus())))) == len(METRICS) + len(HISTOGRAMS)


@steady
@given(FLEET, st.sampled_from(ACCEPTED))
def test_whatever_agents_report_openmetrics_can_be_read(fleet: list[tuple[str, str, Any]], accept: str) -> None:
    manager = managed("waf", "pii")
    judged(manager, BLOCK)
    for agent_id, endpoint, metric in fleet:
        reported(manager, metric, agent_id=agent_id, endpoint=endpoint)

    response = get(manager, accept)
    assert sum(map(is_ours, check(parse_openmetrics(response.text)))) == len(METRICS) + len(HISTOGRAMS)


# The app


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "QUERY"])
def test_it_is_read_only(method: str) -> None:
    response = TestClient(metrics_app(managed())).request(method, "/")

    assert response.status_code == 405
    assert {each.strip() for each in response.headers["allow"].split(",")} == {"GET", "HEAD"}
    assert "asgi_agents" not in response.text


def test_head_is_answered_like_get() -> None:
    client = TestClient(metrics_app(managed()))
    head, whole = client.head("/"), client.get("/")

    assert head.status_code == 200
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert head.headers["content-length"] == whole.headers["content-length"]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4"),
        ("*/*", "text/plain; version=0.0.4"),
        ("text/html", "text/plain; version=0.0.4"),
        ("text/plain; version=0.0.4", "text/plain; version=0.0.4"),
        (OPENMETRICS, "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1", "application/op"),
        # There is no such version, so it can't be what it gets.
        ("application/openmetrics-text; version=9.9.9", "text/plain; version=0.0.4"),
        # What Prometheus of before 2.50 sends: it wants a version of OpenMetrics that was never one.
        ("application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4", "text/plain; version=0.0.4"),
    ],
)
def test_the_content_type_says_what_it_is(accept: str, content_type: str) -> None:
    response = get(managed(), accept)

    assert response.headers["content-type"].startswith(content_type)
    assert "charset=utf-8" in response.headers["content-type"]
    if content_type.startswith("application"):
        assert response.text.endswith("# EOF\n")
        list(parse_openmetrics(response.text))
    else:
        assert "# EOF" not in response.text
        list(parse_text(response.text))


@pytest.mark.parametrize(
    "version", ["abc", "1.0.0-rc1", "1.x", "", "..", "²", "1.0.0.0.0", "9" * 5000, "-1", '"1.0.0"']
)
@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
def test_an_accept_header_that_makes_no_sense_is_no_error(kind: str, version: str) -> None:
    client = TestClient(metrics_app(managed()))
    headers = {"accept": f"{kind}; version={version}".encode("latin-1")}

    assert client.get("/", headers=headers).status_code == 200  # type: ignore[arg-type]


@pytest.mark.parametrize("escaping", ["allow-utf-8", "underscores", "dots", "values", "nonsense"])
@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
def test_however_a_scraper_wants_names_escaped_it_can_read_them(kind: str, escaping: str) -> None:
    manager = managed()
    judged(manager, BLOCK)
    response = get(manager, f"{kind}; version=1.0.0; escaping={escaping}")

    assert response.status_code == 200
    families = check((parse_text if kind == "text/plain" else parse_openmetrics)(response.text))
    assert len(families) == len(METRICS) + len(HISTOGRAMS)


def test_several_accept_headers_are_one() -> None:
    client = TestClient(metrics_app(managed()))
    response = client.get("/", headers=[("accept", "text/html"), ("accept", OPENMETRICS)])

    assert response.headers["content-type"].startswith("application/openmetrics-text")


def test_it_is_not_kept_by_caches() -> None:
    assert get(managed()).headers["cache-control"] == "no-store"


def metrics_route(manager: AgentManager) -> BaseRoute:
    return Route("/metrics", metrics_app(manager))


def metrics_mount(manager: AgentManager) -> BaseRoute:
    return Mount("/metrics", metrics_app(manager))


@pytest.mark.parametrize("framework", [FastAPI, Starlette])
@pytest.mark.parametrize("place", [metrics_route, metrics_mount])
def test_it_works_in_an_app(place: Callable[[AgentManager], BaseRoute], framework: type[Starlette]) -> None:
    manager = managed()
    app = framework()
    app.router.routes.append(place(manager))
    with TestClient(app) as client:
        assert "asgi_agents_call_active" in client.get("/metrics").text
        assert client.post("/metrics", follow_redirects=True).status_code == 405
        assert client.head("/metrics").status_code == 200


@pytest.mark.parametrize("framework", [FastAPI, Starlette])
def test_it_works_with_add_route_and_mount(framework: type[Starlette]) -> None:
    app = framework()
    app.mount("/mounted", metrics_app(managed()))
    # FastAPI and Starlette don't agree on what it takes; what is given is an ASGI app either way.
    add_route: Any = app.add_route
    add_route("/routed", metrics_app(managed()))
    client = TestClient(app)

    for path in ("/mounted", "/mounted/", "/routed"):
        assert "asgi_agents_call_active" in client.get(path).text
        assert client.post(path).status_code == 405


def test_a_websocket_is_refused() -> None:
    client = TestClient(metrics_app(managed()))

    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/"):
        pass


def test_it_may_be_the_whole_app() -> None:
    manager = managed()

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    sent: list[Any] = []
    anyio.run(metrics_app(manager), {"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    assert {message["type"] for message in sent} <= {"lifespan.startup.complete"}


# Who may see them


def saying(answer: Any) -> Callable[[Request], Any]:
    return lambda request: answer


def saying_later(answer: Any) -> Callable[[Request], Any]:
    async def authorize(request: Request) -> Any:
        return answer

    return authorize


@pytest.mark.parametrize("style", [saying, saying_later])
def test_true_lets_in(style: Callable[[Any], Any]) -> None:
    assert "asgi_agents_call_active" in get(managed(), authorize=style(True)).text


@pytest.mark.parametrize("style", [saying, saying_later])
@pytest.mark.parametrize("answer", [False, None, 1, "yes", [True]], ids=repr)
def test_anything_but_true_is_refused(answer: Any, style: Callable[[Any], Any]) -> None:
    response = get(managed(), authorize=style(answer))

    assert response.status_code == 403
    assert "asgi_agents" not in response.text


@pytest.mark.parametrize("style", [saying, saying_later])
def test_a_response_is_sent_instead(style: Callable[[Any], Any]) -> None:
    client = TestClient(metrics_app(managed(), authorize=style(RedirectResponse("/login"))), follow_redirects=False)
    response = client.get("/")

    assert (response.status_code, response.headers["location"]) == (307, "/login")
    unauthorized = get(managed(), authorize=style(Response(status_code=401, headers={"www-authenticate": "Basic"})))
    assert (unauthorized.status_code, unauthorized.headers["www-authenticate"]) == (401, "Basic")


def test_one_who_raises_shows_nothing() -> None:
    def authorize(request: Request) -> bool:
        raise RuntimeError("database is down")

    async def authorize_later(request: Request) -> bool:
        raise RuntimeError("database is down")

    for each in (authorize, authorize_later):
        with pytest.raises(RuntimeError, match="database is down"):
            get(managed(), authorize=each)
        app = Starlette(routes=[Route("/", metrics_app(managed(), authorize=each))])
        response = TestClient(app, raise_server_exceptions=False).get("/")
        assert response.status_code == 500
        assert "asgi_agents" not in response.text


def test_it_is_asked_about_each_request() -> None:
    client = TestClient(
        metrics_app(managed(), authorize=lambda request: request.headers.get("authorization") == "Bearer s3cret")
    )

    assert client.get("/").status_code == 403
    assert client.head("/").status_code == 403
    assert client.get("/", headers={"authorization": "Bearer s3cret"}).status_code == 200
    assert client.get("/").status_code == 403


@pytest.mark.parametrize("authorize", [True, "admin", 5])
def test_what_cant_be_asked_is_a_configuration_error(authorize: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^metrics_app: authorize="):
        metrics_app(managed(), authorize=authorize)


# Without the extra


def run(code: str) -> str:
    """What a new interpreter says."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_does_not_import_prometheus_client() -> None:
    assert run("import sys, asgi_agents; print('prometheus_client' in sys.modules)") == "False\n"


def test_without_the_extra_exporting_says_what_to_install_and_the_rest_works() -> None:
    said = run(
        """
        import sys
        sys.modules["prometheus_client"] = None
        from asgi_agents import Agent, AgentConfig, AgentManager, ConfigurationError

        class Silent(Agent):
            async def on_request_headers(self, event):
                return None

        manager = AgentManager([AgentConfig("waf", Silent())])
        print(manager.metrics["waf"].calls)
        for _ in range(2):
            try:
                manager.export_prometheus()
            except ConfigurationError as exc:
                print(exc)
        try:
            import asgi_agents.prometheus
        except ConfigurationError as exc:
            print(exc)
        """
    )

    number, *refusals = said.splitlines()
    assert number == "0"
    assert len(refusals) == 3
    assert all("asgi-agents[prometheus]" in refusal for refusal in refusals)


def test_an_exported_manager_can_go() -> None:
    manager = managed("waf")
    manager.export_prometheus()
    gone = weakref.ref(manager)
    del manager
    gc.collect()

    assert gone() is None


def test_agents_report_nothing_under_the_names_of_this_package() -> None:
    manager = managed("waf")
    reported(manager, CounterMetric(name="asgi_agents_made_up", value=1), CounterMetric(name="fine", value=1))

    assert {family.name for family in theirs(manager)} == {"agent_reported_asgi_agents_made_up", "agent_reported_fine"}


async def test_calls_are_seen_while_their_agent_is_on_its_way_out() -> None:
    manager = AgentManager([AgentConfig(name, Fake(hang), timeout=60.0) for name in ("removed", "replaced")])
    async with anyio.create_task_group() as tasks:
        for name in manager.agent_ids:
            tasks.start_soon(partial(manager.process_request_headers, REQUEST, [name]))
        await settle()
        tasks.start_soon(partial(manager.remove_agent, "removed", drain_timeout=60.0))
        tasks.start_soon(partial(manager.replace_agent, AgentConfig("replaced", Fake()), drain_timeout=60.0))
        await settle()
        seen = {name: value(manager, "asgi_agents_call_active", agent_id=name) for name in ("removed", "replaced")}
        tasks.cancel_scope.cancel()

    assert seen == {"removed": 1, "replaced": 1}
    assert manager.agent_ids == ("replaced",)
    # To be cancelled while it drains leaves nothing behind, once what drains it has seen that its calls are over.
    with anyio.fail_after(60):
        while value(manager, "asgi_agents_call_active", agent_id="removed") is not None:  # noqa: ASYNC110
            await anyio.sleep(0.01)
    assert value(manager, "asgi_agents_call_active", agent_id="replaced") == 0


async def test_an_agent_that_comes_back_while_it_drains_adds_up_with_what_it_was() -> None:
    manager = managed("waf", timeout=60.0)
    await manager.process_request_headers(REQUEST)
    registry_of(manager).resolved_route(None).held += 1  # a connection that is still open
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(manager.remove_agent, "waf", drain_timeout=60.0))
        await settle()
        await manager.add_agent(AgentConfig("waf", Fake()))
        await manager.process_request_headers(REQUEST)
        durations = value(manager, "asgi_agents_call_duration_seconds_count", event="request_headers", decision="allow")
        decisions = value(
            manager, "asgi_agents_decisions_total", event="request_headers", decision="allow", enforced="true"
        )
        tasks.cancel_scope.cancel()

    assert (durations, decisions) == (2, 2)
