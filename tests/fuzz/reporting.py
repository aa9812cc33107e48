"""What agents report of themselves is exported so that it can be read, or not at all."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from asgi_agents import AgentConfig, AgentManager
from asgi_agents.errors import AgentProtocolError
from asgi_agents.manager import registry_of
from asgi_agents.observability.reports import MAX_SERIES
from asgi_agents.protocol import Encoding
from asgi_agents.protocol.codec import decode_value
from asgi_agents.protocol.stream import MetricsReport
from tests.support.asgi import Probe

from . import framing, wire
from .choices import Choices

_METRIC_NAMES = (
    *(
        "x",
        "x_total",
        "x_total_total",
        "x_count",
        "x_sum",
        "x_bucket",
        "x_created",
        "x:y",
        "x.y",
        "",
        "_",
        "0",
        "_total",
    ),
    *("asgi_agents_decisions_total", "asgi_agents_call_duration_seconds", "python_info", "x_info", "up", "é", "a\n"),
)
_LABEL_NAMES = ("le", "agent_id", "endpoint", "__name__", "quantile", "a.b", "a_b", "", "0", "é", "job")


def reports(data: bytes) -> None:
    """Reports as they come over the wire, into the store, and out as text."""
    choices = Choices(data)
    manager = AgentManager([AgentConfig("waf", Probe(request_headers=None))])
    now = 0.0
    for _ in choices.times(4):
        encoding = choices.pick(tuple(Encoding))
        if choices.one_in(4):
            payload = wire.message(choices, encoding, framing.NAMES)
        else:
            payload = wire.spelt(_report(choices), encoding)
        try:
            report = decode_value(MetricsReport, payload, encoding)
        except AgentProtocolError:
            continue
        now += choices.pick((0.0, 1.0, 299.0, 301.0))
        registry_of(manager).reports.add("waf", choices.pick(("unix:///run/a.sock", "tcp://[::1]:1")), report, now)
        assert sum(1 for _ in registry_of(manager).reports.current(now)) <= MAX_SERIES
    text = manager.export_prometheus()
    families = list(text_string_to_metric_families(text))
    samples = [(sample.name, frozenset(sample.labels.items())) for family in families for sample in family.samples]
    assert len(samples) == len(set(samples)), "a series that is there twice"
    assert len(families) == len({family.name for family in families}), "a family that is there twice"


def _report(choices: Choices) -> dict[str, Any]:
    def metric(**fields: Any) -> dict[str, Any]:
        name = choices.text() if choices.one_in(4) else choices.pick(_METRIC_NAMES)
        labels = {choices.pick(_LABEL_NAMES): choices.text() for _ in choices.times(2)}
        made = {"name": name, "labels": labels, **fields}
        return {**made, "help": choices.text()} if choices.flag() else made

    return {
        "counters": [metric(value=choices.pick((1, 0, -1, 2**53, 2**63))) for _ in choices.times(3)],
        "gauges": [metric(value=choices.number()) for _ in choices.times(3)],
        "histograms": [
            metric(
                sum=choices.number(),
                count=choices.pick((3, 0, 2**60)),
                buckets=[
                    {"le": choices.pick((0.5, "+Inf", "Inf", 1.0, -1.0, 1e308, "x")), "count": choices.below(4)}
                    for _ in choices.times(3)
                ],
            )
            for _ in choices.times(2)
        ],
    }
