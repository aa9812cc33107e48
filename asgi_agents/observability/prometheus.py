"""The metrics of agents, and those that agents report of themselves, as Prometheus has them.

Needs the ``prometheus`` extra.
"""

import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final
from weakref import WeakKeyDictionary

from ..errors import ConfigurationError
from ..imports.extras import from_extra
from ..protocol.stream import CounterMetric, GaugeMetric, HistogramMetric
from .histograms import EXPORTED_BOUNDS
from .instruments import (
    HISTOGRAMS,
    METRICS,
    RELOADS,
    Attributes,
    Histogram,
    Kind,
    Metered,
    Metric,
    Point,
    Source,
    SourceMetric,
    collect,
    distributions,
)
from .metrics import Incident
from .reports import Reported, ReportedMetric

with from_extra("asgi_agents.prometheus", "prometheus", ConfigurationError):
    from prometheus_client.exposition import generate_latest
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
    from prometheus_client.metrics_core import Metric as Family
    from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
    from prometheus_client.registry import Collector
    from prometheus_client.samples import Exemplar

logger = logging.getLogger("asgi_agents")

_SUFFIXES: Final = {"s": "seconds", "By": "bytes"}
_BOUNDS: Final = (*(f"{bound:g}" for bound in EXPORTED_BOUNDS), "+Inf")
# OpenMetrics, section "Exemplars".
_MAX_EXEMPLAR_LENGTH: Final = 128

# Not colons: they are for those who write recording rules.
_BAD_NAME: Final = re.compile(r"[^a-zA-Z0-9_]")
# What floats count exactly.
_MAX_COUNT: Final = 2**53
# How many lines are logged about what is left out.
_MAX_LEFT_OUT: Final = 100
# Before each name that an agent has chosen, so that it is the name of nothing else: neither of our metrics, nor of the
# application's own in the same registry.
REPORTED_PREFIX: Final = "agent_reported_"
#: The label that tells the processes of an app apart where they are exported together.
WORKER: Final = "worker"
_OURS: Final = frozenset({"agent_id", "endpoint", "le", WORKER})


# What was logged about the reports of each source's agents.
_left_out: "WeakKeyDictionary[Source, set[str]]" = WeakKeyDictionary()


class AgentCollector(Collector):
    """The metrics of the agents of ``source``, for a ``prometheus_client`` registry."""

    def __init__(self, source: Source) -> None:
        self._source = source
        # Of each source, however often it is exported: nothing is logged twice.
        self._left_out = _left_out.setdefault(source, set())

    def collect(self) -> Iterator[Family]:
        """All families: ours, then those of the agents."""
        agents = self._source.metered
        yield from (_number(metric, metric.kind, collect(metric, agents)) for metric in METRICS)
        yield from (_histogram(metric, agents) for metric in HISTOGRAMS)
        if self._source.source is not None:
            yield _number(RELOADS, Kind.COUNTER, RELOADS.read(self._source))
        yield from self._reported()

    def _reported(self) -> Iterable[Family]:
        """The reports of the agents, as far as they make sense together; the rest is left out, and said so once."""
        families: dict[str, Family] = {}
        taken: set[str] = set()
        seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
        for reported in self._source.reports.current(time.monotonic()):
            name = _metric_name(reported.metric.name)
            labels = _labels(reported)
            family = families.get(name)
            if family is None:
                family = _family(name, reported.metric)
                if not taken.isdisjoint(names_of(family.name)):
                    self._leave_out(reported, "another metric has this name")
                    continue
            elif type(family) is not _FAMILIES[type(reported.metric)]:
                self._leave_out(reported, f"{name} is a {family.type}")
                continue
            series = (name, frozenset(labels.items()))
            if series in seen:
                self._leave_out(reported, f"there are two of {name} with the same labels")
                continue
            fault = _add(family, labels, reported.metric)
            if fault:
                self._leave_out(reported, fault)
                continue
            seen.add(series)
            if name not in families:
                families[name] = family
                taken |= names_of(family.name)
        return families.values()

    def _leave_out(self, reported: Reported, why: str) -> None:
        message = f"agent {reported.agent_id!r}: metric {reported.metric.name!r:.100} is not exported: {why:.200}"
        if message not in self._left_out and len(self._left_out) < _MAX_LEFT_OUT:
            self._left_out.add(message)
            logger.warning("%s", message)


def export(source: Source) -> str:
    """All metrics in the Prometheus text format."""
    return encode(AgentCollector(source)).decode()


def encode(collector: Collector, *, openmetrics: bool = False) -> bytes:
    """All metrics in the Prometheus text format, or in OpenMetrics."""
    encoder: Callable[[Collector], bytes] = generate_openmetrics if openmetrics else generate_latest
    return encoder(collector)


def prometheus_name(name: str, unit: str) -> str:
    """The family's name, as OpenTelemetry's own exporters would have it."""
    name = name.replace(".", "_")
    suffix = _SUFFIXES.get(unit)
    return name if suffix is None else f"{name}_{suffix}"


def _number(metric: Metric | SourceMetric, kind: Kind, points: Iterable[Point]) -> Family:
    make = CounterMetricFamily if kind is Kind.COUNTER else GaugeMetricFamily
    family: Family = make(
        prometheus_name(metric.name, metric.unit), metric.description, unit=_SUFFIXES.get(metric.unit, "")
    )
    suffix = "_total" if kind is Kind.COUNTER else ""
    for point in points:
        exemplar = _exemplar(point.latest) if suffix else None
        family.add_sample(family.name + suffix, _label_set(point.attributes), point.value, exemplar=exemplar)
    return family


def _histogram(metric: Histogram, agents: Sequence[Metered]) -> Family:
    family = HistogramMetricFamily(prometheus_name(metric.name, metric.unit), metric.description, unit="seconds")
    for attributes, distribution in distributions(metric, agents).items():
        labels = _label_set(attributes)
        counts = distribution.exported()
        for bound, count in zip(_BOUNDS, counts, strict=True):
            family.add_sample(f"{family.name}_bucket", {**labels, "le": bound}, count)
        family.add_sample(f"{family.name}_count", labels, counts[-1])
        family.add_sample(f"{family.name}_sum", labels, distribution.total)
    return family


def _label_set(attributes: Attributes) -> dict[str, str]:
    return {name.removeprefix("asgi_agents.").replace(".", "_"): value for name, value in attributes}


def _exemplar(latest: Incident | None) -> Exemplar | None:
    if latest is None or not latest.correlation_id:
        return None
    labels = {"correlation_id": _text(latest.correlation_id)}
    if sum(len(name) + len(value) for name, value in labels.items()) > _MAX_EXEMPLAR_LENGTH:
        return None
    return Exemplar(labels, 1.0, latest.time)


_FAMILIES: Final[Mapping[type[ReportedMetric], Callable[[str, str], Family]]] = {
    CounterMetric: CounterMetricFamily,
    GaugeMetric: GaugeMetricFamily,
    HistogramMetric: HistogramMetricFamily,
}


def _family(name: str, metric: ReportedMetric) -> Family:
    return _FAMILIES[type(metric)](name, _text(metric.help or "Reported by an agent."))


def names_of(family: str) -> set[str]:
    """All names that the series of a family may have."""
    return {family, *(f"{family}_{suffix}" for suffix in ("total", "created", "bucket", "count", "sum"))}


def _metric_name(given: str) -> str:
    name = _BAD_NAME.sub("_", given)
    while name.endswith("_total"):
        name = name.removesuffix("_total")
    return REPORTED_PREFIX + (name or "_")


def _labels(reported: Reported) -> dict[str, str]:
    labels = {}
    for given, value in reported.metric.labels.items():
        name = _BAD_NAME.sub("_", given) or "_"
        if name in _OURS or name.startswith("__") or name[0].isdigit():
            name = f"exported_{name.lstrip('_')}"
        labels[name] = _text(value)
    return {**labels, "agent_id": reported.agent_id, "endpoint": _text(reported.endpoint)}


def _text(given: str) -> str:
    return given.encode("utf-8", "replace").decode()


def _add(family: Family, labels: dict[str, str], metric: ReportedMetric) -> str:
    """Add a value to its family; returns what is wrong with it."""
    match metric:
        case CounterMetric():
            if not 0 <= metric.value < _MAX_COUNT:
                return "a counter below 0 or beyond all bounds"
            family.add_sample(f"{family.name}_total", labels, metric.value)
        case GaugeMetric():
            family.add_sample(family.name, labels, metric.value)
        case HistogramMetric():
            return _add_histogram(family, labels, metric)
    return ""


def _add_histogram(family: Family, labels: dict[str, str], metric: HistogramMetric) -> str:
    buckets: dict[float, int] = {}
    for bucket in metric.buckets:
        try:
            bound = float(bucket.le)
        except ValueError:
            return "a bucket's bound is no number"
        if math.isnan(bound) or bound in buckets:
            return "a bucket's bound is no number, or that of another"
        buckets[bound] = bucket.count
    buckets.setdefault(math.inf, metric.count)
    counts = [0, *(buckets[bound] for bound in sorted(buckets))]
    if counts != sorted(counts) or counts[-1] != metric.count or metric.count >= _MAX_COUNT:
        return "its buckets don't add up"
    for bound in sorted(buckets):
        le = "+Inf" if bound == math.inf else f"{bound!r}"
        family.add_sample(f"{family.name}_bucket", {**labels, "le": le}, buckets[bound])
    if min(buckets) >= 0 and metric.sum >= 0:
        # OpenMetrics has neither where values can be negative.
        family.add_sample(f"{family.name}_count", labels, metric.count)
        family.add_sample(f"{family.name}_sum", labels, metric.sum)
    return ""
