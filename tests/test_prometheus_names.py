"""What agents report stands in one registry with the metrics of the application, whatever they call it."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Summary
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from asgi_agents.prometheus import PrometheusCollector
from asgi_agents.protocol.stream import CounterMetric, GaugeMetric, HistogramMetric

from .test_prometheus import managed, parse_openmetrics, reported

steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
KINDS = (CounterMetric, GaugeMetric, HistogramMetric)
# What the application measures itself, and everything that stands in its exposition.
OWN = {
    "requests": Counter,
    "requests_in_progress": Gauge,
    "request_seconds": Histogram,
    "request_size": Summary,
    "build": Info,
}
SUFFIXES = ("", "_total", "_created", "_bucket", "_count", "_sum", "_info", "_gcount", "_gsum")


def application() -> CollectorRegistry:
    registry = CollectorRegistry()
    for name, kind in OWN.items():
        own: Any = kind(name, "The application's own.", registry=registry)
        if kind is Info:
            own.info({"version": "1"})
    return registry


def metric(kind: Any, name: str) -> Any:
    return kind(name=name, sum=1.0, count=1) if kind is HistogramMetric else kind(name=name, value=1)


def openmetrics(registry: CollectorRegistry) -> Iterator[Family]:
    text: bytes = generate_openmetrics(registry)  # type: ignore[no-untyped-call]
    return parse_openmetrics(text.decode())


def check(registry: CollectorRegistry, before: set[str]) -> set[str]:
    """Both formats can be read, and have what the application had there before. Returns what the agents added."""
    openly = [family.name for family in openmetrics(registry)]
    plainly = [family.name for family in parse_text(generate_latest(registry).decode())]
    for names in (openly, plainly):
        assert len(names) == len(set(names))
    assert before <= set(openly)
    return {name for name in openly if name not in before and not name.startswith("asgi_agents_")}


def names_in(registry: CollectorRegistry) -> set[str]:
    return {family.name for family in openmetrics(registry)}


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_that_reports_under_a_name_of_the_application_spoils_no_export(kind: Any) -> None:
    for name in OWN:
        for suffix in SUFFIXES:
            registry = application()
            before = names_in(registry)
            manager = managed()
            reported(manager, metric(kind, name + suffix))
            registry.register(PrometheusCollector(manager))

            (added,) = check(registry, before)
            assert added.startswith("agent_reported_")


CHOSEN = st.one_of(
    st.builds("".join, st.tuples(st.sampled_from([*OWN, "asgi_agents_decisions", ""]), st.sampled_from(SUFFIXES))),
    st.text(max_size=8),
)


@steady
@given(st.lists(st.tuples(st.sampled_from(KINDS), CHOSEN), max_size=6))
def test_whatever_names_agents_choose_the_registry_can_be_read(chosen: list[tuple[Any, str]]) -> None:
    registry = application()
    before = names_in(registry)
    manager = managed()
    for kind, name in chosen:
        reported(manager, metric(kind, name))
    registry.register(PrometheusCollector(manager))

    assert all(name.startswith("agent_reported_") for name in check(registry, before))
