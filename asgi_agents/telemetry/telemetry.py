"""One application's providers."""

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from .metering import Metering, metering_for
from .tracing import Tracing


class Telemetry:
    """Where the spans and metrics of a manager go.

    :param tracer_provider: None: the global one, also if that is set later; ``meter_provider`` likewise.
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        self.tracing = Tracing(tracer_provider)
        self.metering: Metering = metering_for(meter_provider)
