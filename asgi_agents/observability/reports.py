"""Metrics that agents report of themselves, kept until they are exported. Pure: the time is given."""

import logging
from collections.abc import Iterator, Sequence
from threading import RLock
from typing import Final

from msgspec import Struct

from ..protocol.stream import CounterMetric, GaugeMetric, HistogramMetric, MetricsReport

logger = logging.getLogger("asgi_agents")

#: Seconds after which a value that its agent no longer reports is dropped, and how many values one agent may have.
MAX_AGE: Final = 300.0
MAX_SERIES: Final = 1000
# The limits of one metric.
_MAX_NAME_LENGTH: Final = 128
_MAX_HELP_LENGTH: Final = 500
_MAX_LABELS: Final = 16
_MAX_LABEL_LENGTH: Final = 256
_MAX_BUCKETS: Final = 64

ReportedMetric = CounterMetric | GaugeMetric | HistogramMetric


class Reported(Struct, frozen=True):
    """A reported value, with the agent's id in the configuration and the endpoint that reported it."""

    agent_id: str
    endpoint: str
    metric: ReportedMetric


class Reports:
    """The newest value of each metric of each agent.

    Agents report totals, so that a value replaces the one before it. Names and labels are the agent's choice, so both
    their number and their length are bounded.
    """

    def __init__(self) -> None:
        self._agents: dict[str, dict[tuple[str, str, str, frozenset[tuple[str, str]]], tuple[float, Reported]]] = {}
        self._full: set[str] = set()
        # Reports come on connections, of which each event loop has its own.
        self._lock = RLock()

    def add(self, agent_id: str, endpoint: str, report: MetricsReport, now: float) -> None:
        """Store the values of a report; ``now`` is monotonic seconds."""
        with self._lock:
            self._add(agent_id, endpoint, report, now)

    def _add(self, agent_id: str, endpoint: str, report: MetricsReport, now: float) -> None:
        known = self._agents.get(agent_id, {})
        # A new dictionary each time: another thread may be reading the old one.
        kept = {key: value for key, value in known.items() if now - value[0] < MAX_AGE}
        size = sum(_size(value.metric) for _, value in kept.values())
        reported: Sequence[ReportedMetric] = (*report.counters, *report.gauges, *report.histograms)
        for metric in reported:
            key = (endpoint, type(metric).__name__, metric.name, frozenset(metric.labels.items()))
            known_size = _size(kept[key][1].metric) if key in kept else 0
            if _is_too_much(metric) or size - known_size + _size(metric) > MAX_SERIES:
                self._refuse(agent_id)
                continue
            size += _size(metric) - known_size
            kept[key] = (now, Reported(agent_id, endpoint, metric))
        self._agents[agent_id] = kept
        if size < MAX_SERIES:
            self._full.discard(agent_id)

    def forget(self, agent_id: str) -> None:
        """Drop the values of an agent that was removed."""
        with self._lock:
            self._agents.pop(agent_id, None)
            self._full.discard(agent_id)

    def current(self, now: float) -> Iterator[Reported]:
        """All values that are not too old."""
        for known in tuple(self._agents.values()):
            for at, reported in known.values():
                if now - at < MAX_AGE:
                    yield reported

    def _refuse(self, agent_id: str) -> None:
        if agent_id not in self._full:
            self._full.add(agent_id)
            logger.warning(
                "agent %r reports more than %d values, or such as are too long; the rest is left out "
                "(are its labels unbounded?)",
                agent_id,
                MAX_SERIES,
            )


def _size(metric: ReportedMetric) -> int:
    """How many values the metric has."""
    return len(metric.buckets) + 2 if isinstance(metric, HistogramMetric) else 1


def _is_too_much(metric: ReportedMetric) -> bool:
    return (
        len(metric.name) > _MAX_NAME_LENGTH
        or len(metric.help or "") > _MAX_HELP_LENGTH
        or len(metric.labels) > _MAX_LABELS
        or any(len(name) + len(value) > _MAX_LABEL_LENGTH for name, value in metric.labels.items())
        or _size(metric) > _MAX_BUCKETS + 2
    )
