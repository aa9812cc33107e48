"""The package's metrics as OpenTelemetry instruments."""

from collections.abc import Iterable, Sequence
from threading import Lock
from weakref import WeakKeyDictionary, WeakSet, ref

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, CallbackT, Meter, MeterProvider, Observation
from opentelemetry.metrics import Histogram as Instrument

from .._version import __version__
from .histograms import EXPORTED_BOUNDS
from .instruments import (
    CALL_DURATION,
    HOLD_DURATION,
    METRICS,
    QUEUE_DURATION,
    RELOADS,
    Histogram,
    Kind,
    Metered,
    Metric,
    collect,
)


class Metering:
    """The instruments of one meter provider, for all agents whose metrics go there.

    Counters are read when a collector asks for them, so that a call pays only for the histograms. One set of
    instruments serves all managers, because OpenTelemetry ignores a second instrument of the same name.
    """

    def __init__(self, provider: MeterProvider) -> None:
        meter = metrics.get_meter("asgi_agents", __version__, provider)
        self._provider = ref(provider)
        # Collectors run in other threads.
        self._lock = Lock()
        self._agents: WeakSet[Metered] = WeakSet()
        self.call_duration = _make(meter, CALL_DURATION)
        self.queue_duration = _make(meter, QUEUE_DURATION)
        self.hold_duration = _make(meter, HOLD_DURATION)
        self.reloads = meter.create_counter(RELOADS.name, RELOADS.unit, RELOADS.description)
        for metric in METRICS:
            create = (
                meter.create_observable_counter
                if metric.kind is Kind.COUNTER
                else meter.create_observable_up_down_counter
            )
            create(metric.name, [self._reader(metric)], metric.unit, metric.description)

    def add(self, agent: Metered) -> None:
        """Export the agent's metrics until :meth:`discard`, or until nothing else refers to the agent."""
        with self._lock:
            self._agents.add(agent)

    def discard(self, agent: Metered) -> None:
        """Stop exporting the agent's metrics."""
        with self._lock:
            self._agents.discard(agent)

    def _reader(self, metric: Metric) -> CallbackT:
        def observe(options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(point.value, dict(point.attributes)) for point in collect(metric, self._all())]

        return observe

    def _all(self) -> Sequence[Metered]:
        with self._lock:
            agents = list(self._agents)
        if _waiting is not None and self is not _waiting and self._provider() is metrics.get_meter_provider():
            # Agents that were added before a global provider was set belong to this one, which has instruments already.
            agents.extend(_waiting._all())
        return agents


def _make(meter: Meter, histogram: Histogram) -> Instrument:
    return meter.create_histogram(
        histogram.name,
        histogram.unit,
        histogram.description,
        explicit_bucket_boundaries_advisory=EXPORTED_BOUNDS,
    )


_by_provider: "WeakKeyDictionary[MeterProvider, Metering]" = WeakKeyDictionary()
# For agents that are added before a global provider is set.
_waiting: Metering | None = None


def metering_for(provider: MeterProvider | None = None) -> Metering:
    """The instruments of ``provider``. None means the global provider, which may also be set later."""
    global _waiting
    current = metrics.get_meter_provider()
    provider = current if provider is None else provider
    metering = _by_provider.get(provider)
    if metering is not None:
        return metering
    if _waiting is not None and provider is current:
        # A provider was set since; the instruments have become its own.
        return _waiting
    metering = _by_provider[provider] = Metering(provider)
    if not _is_set(provider):
        _waiting = metering
    return metering


def _is_set(provider: MeterProvider) -> bool:
    """Whether ``provider`` is a real one, not OpenTelemetry's stand-in until one is set."""
    return type(provider).__module__.partition(".")[0] != "opentelemetry" or "Proxy" not in type(provider).__name__
