"""Our metrics as OpenTelemetry instruments."""

from collections.abc import Iterable
from weakref import WeakKeyDictionary, WeakSet

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, CallbackT, Meter, MeterProvider, Observation

from .._version import __version__
from ..catalogue import CALL_DURATION, METRICS, QUEUE_DURATION, Kind, Metered, Metric, collect
from ..distribution import EXPORTED_BOUNDS


class Metering:
    """The instruments of one meter provider, for all agents whose metrics go there.

    What is counted anyway is read when somebody collects it, so a call pays for nothing but the histograms. One set of
    instruments serves all managers: a second of the same name would be ignored.
    """

    def __init__(self, provider: MeterProvider | None) -> None:
        meter = metrics.get_meter("asgi_agents", __version__, provider)
        self._agents: WeakSet[Metered] = WeakSet()
        self.call_duration = meter.create_histogram(
            CALL_DURATION.name,
            CALL_DURATION.unit,
            CALL_DURATION.description,
            explicit_bucket_boundaries_advisory=EXPORTED_BOUNDS,
        )
        self.queue_duration = meter.create_histogram(
            QUEUE_DURATION.name,
            QUEUE_DURATION.unit,
            QUEUE_DURATION.description,
            explicit_bucket_boundaries_advisory=EXPORTED_BOUNDS,
        )
        for metric in METRICS:
            self._create(meter, metric)

    def add(self, agent: Metered) -> None:
        """Export its metrics, for as long as there is anybody else who holds it."""
        self._agents.add(agent)

    def discard(self, agent: Metered) -> None:
        """Don't any more."""
        self._agents.discard(agent)

    def _create(self, meter: Meter, metric: Metric) -> None:
        create = (
            meter.create_observable_counter if metric.kind is Kind.COUNTER else meter.create_observable_up_down_counter
        )
        create(metric.name, [self._reader(metric)], metric.unit, metric.description)

    def _reader(self, metric: Metric) -> CallbackT:
        def observe(options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(point.value, dict(point.attributes)) for point in collect(metric, tuple(self._agents))]

        return observe


_by_provider: "WeakKeyDictionary[MeterProvider, Metering]" = WeakKeyDictionary()


def metering_for(provider: MeterProvider | None = None) -> Metering:
    """The instruments of ``provider``, or of the global one, also if that is set later."""
    provider = metrics.get_meter_provider() if provider is None else provider
    metering = _by_provider.get(provider)
    if metering is None:
        metering = _by_provider[provider] = Metering(provider)
    return metering
