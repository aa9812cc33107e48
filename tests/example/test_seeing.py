"""What the example's script leaves to be seen: on the status page, in metrics, audit records and traces."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from asgi_agents import AuditRecord
from example_app.app import create_app
from example_app.demo.decisions import DecisionLog
from example_app.demo.run import play
from example_app.demo.script import STEPS
from example_app.demo.servers import serving

PAGE = Path(__file__).parents[2] / "docs" / "pages" / "guide" / "observability.md"
OPENMETRICS = {"accept": "application/openmetrics-text; version=1.0.0"}


@dataclass
class Seen:
    """Everything that is left behind when the script has been played."""

    status: Mapping[str, Any]
    openmetrics: str
    units: Mapping[str, str]
    records: Mapping[str, AuditRecord]
    spans: tuple[ReadableSpan, ...]


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: dict[str, AuditRecord] = {}

    def emit(self, record: logging.LogRecord) -> None:
        audit: AuditRecord = record.__dict__["audit"]
        # The line says what the object says.
        assert json.loads(record.getMessage())["correlation_id"] == audit.correlation_id
        self.records[audit.correlation_id] = audit


@pytest.fixture(scope="module")
def seen() -> Seen:
    spans, reader, records = InMemorySpanExporter(), InMemoryMetricReader(), Records()
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(SimpleSpanProcessor(spans))
    logger = logging.getLogger("asgi_agents.audit")
    logger.addHandler(records)
    logger.setLevel(logging.INFO)
    try:
        decisions = DecisionLog()
        app = create_app(
            on_audit=decisions.note, tracer_provider=tracer_provider, meter_provider=MeterProvider([reader])
        )
        with serving(decisions.around(app)) as url:
            assert all(outcome.right for outcome in play(url, decisions))
            status = httpx.get(f"{url}/-/agents/status.json", trust_env=False).json()
            openmetrics = httpx.get(f"{url}/-/metrics", headers=OPENMETRICS, trust_env=False).text
        data = reader.get_metrics_data()
        assert data is not None
        units = {
            metric.name: metric.unit or ""
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
    finally:
        logger.removeHandler(records)
        logger.setLevel(logging.NOTSET)
    return Seen(status, openmetrics, units, records.records, spans.get_finished_spans())


def request_id(request: str) -> str:
    """By which the script names the request of that step."""
    return f"script-{[step.request for step in STEPS].index(request) + 1}"


def families_of(seen: Seen) -> Sequence[Metric]:
    return list(text_string_to_metric_families(seen.openmetrics))  # type: ignore[no-untyped-call]


def documented() -> list[tuple[str, str, str]]:
    """Name, unit and Prometheus name of every metric that the documentation names."""
    rows = re.findall(r"^\| `(asgi_agents\.[\w.]+)` \| `([^`]+)` \| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == 16
    return rows


def test_every_metric_of_the_documentation_is_there_with_its_unit_and_no_other(seen: Seen) -> None:
    units = {name: unit for name, unit, _ in documented()}
    assert dict(seen.units) == {name: unit for name, unit in units.items() if name in seen.units}
    # Only where text is judged are there any of that, and the example has no configuration file.
    assert {name for name in units if name not in seen.units and not name.startswith("asgi_agents.text.")} == {
        "asgi_agents.reloads"
    }


def test_every_metric_of_the_documentation_is_in_the_output_for_prometheus_and_no_other(seen: Seen) -> None:
    families = {
        f"{family.name}_total" if family.type == "counter" else family.name: family for family in families_of(seen)
    }
    assert set(families) == {name for _, _, name in documented()} - {"asgi_agents_reloads_total"}
    assert all(family.samples for name, family in families.items() if not name.startswith("asgi_agents_text_"))


# What somebody looks for, the request that it happened to, and where it is: agent, outcome, failure mode, enforced.
FINDS = [
    pytest.param("GET /flaky, breaker open", "flaky", "breaker_open", "closed", True, id="an open breaker"),
    pytest.param("GET ?q=select wood", "waf-next", "block", "closed", False, id="a shadow block"),
    pytest.param("POST /wishes, agent fails", "recommender", "error", "open", True, id="a fail-open pass"),
    pytest.param("POST /wishes, 2 kB", "recommender", "request_too_large", "open", True, id="a skipped body"),
]
finds = pytest.mark.parametrize(("request_", "agent", "outcome", "failure_mode", "enforced"), FINDS)


@finds
def test_it_is_found_on_the_page(
    seen: Seen, request_: str, agent: str, outcome: str, failure_mode: str, enforced: bool
) -> None:
    found = [
        (status["id"], incident["outcome"], incident["failure_mode"], incident["enforced"])
        for status in seen.status["agents"]
        for incident in (*status["failures"], *status["denials"])
        if incident["correlation_id"] == request_id(request_)
    ]
    assert found == [(agent, outcome, failure_mode, enforced)]


@finds
def test_it_is_found_in_the_metrics(
    seen: Seen, request_: str, agent: str, outcome: str, failure_mode: str, enforced: bool
) -> None:
    found = [
        sample
        for family in families_of(seen)
        for sample in family.samples
        if sample.exemplar and sample.exemplar.labels == {"correlation_id": request_id(request_)}
    ]
    assert found
    assert {sample.labels["agent_id"] for sample in found} == {agent}
    kinds = {sample.labels.get("decision") or sample.labels.get("error_type") for sample in found}
    assert outcome in kinds
    names = {sample.name for sample in found}
    if not enforced:
        assert "asgi_agents_shadow_denials_total" in names
    elif failure_mode == "open":
        assert "asgi_agents_failures_total" in names
        assert "open" in {sample.labels.get("failure_mode") for sample in found}
    assert ("asgi_agents_bodies_skipped_total" in names) is (outcome == "request_too_large")


@finds
def test_it_is_found_in_the_audit_record(
    seen: Seen, request_: str, agent: str, outcome: str, failure_mode: str, enforced: bool
) -> None:
    record = seen.records[request_id(request_)]
    (answer,) = [answer for answer in record.answers if outcome in (answer.decision, answer.failure)]
    assert (answer.agent, answer.failure_mode, answer.enforced) == (agent, failure_mode, enforced)
    assert list(record.would_stop) == ([] if enforced else [agent])
    assert list(record.passed_open) == ([agent] if failure_mode == "open" else [])
    assert record.decided_by == (agent if enforced and failure_mode == "closed" else None)


@finds
def test_it_is_found_in_the_trace(
    seen: Seen, request_: str, agent: str, outcome: str, failure_mode: str, enforced: bool
) -> None:
    about = [dict(span.attributes or {}) for span in seen.spans]
    found = [
        attributes
        for attributes in about
        if attributes.get("asgi_agents.correlation_id") == request_id(request_)
        and outcome in (attributes.get("asgi_agents.decision"), attributes.get("error.type"))
    ]
    assert [attributes["asgi_agents.agent.id"] for attributes in found] == [agent]
    assert found[0].get("asgi_agents.enforced", True) is enforced
    assert found[0].get("asgi_agents.failure_mode", "closed") == failure_mode


def test_what_is_on_the_page_names_the_route_it_happened_on(seen: Seen) -> None:
    routes = {route["path"] for route in seen.status["routes"]}
    for status in seen.status["agents"]:
        assert {incident["route"] for incident in (*status["failures"], *status["denials"])} <= routes


def test_nothing_secret_is_to_be_seen(seen: Seen) -> None:
    everything = json.dumps(seen.status) + seen.openmetrics + "".join(map(str, seen.records.values()))
    everything += "".join(str(span.attributes) + str(span.status.description) for span in seen.spans)
    for secret in (
        "key-of-alice",
        "token-of-root",
        "alice.smith",
        "Nightjar",
        "Ignore all",
        "idiot",
        "select wood",
        "rug",
    ):
        assert secret not in everything
    # Four digits alone may be part of any duration, port or id.
    assert re.findall(r"(?<![\w.])4111[ -]?1111", everything) == []
