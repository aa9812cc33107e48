"""The OpenTelemetry providers of one manager."""

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from ..errors import ConfigurationError
from .metering import Metering, metering_for
from .tracing import Tracing


class Telemetry:
    """Where the spans and metrics of a manager go.

    :param tracer_provider: None: the global provider, which may also be set later; ``meter_provider`` likewise.
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        for name, provider, kind in (
            ("tracer_provider", tracer_provider, TracerProvider),
            ("meter_provider", meter_provider, MeterProvider),
        ):
            if provider is not None and not isinstance(provider, kind):
                raise ConfigurationError(
                    f"AgentManager: {name}={provider!r}, expected an OpenTelemetry {kind.__name__}"
                )
        self.tracing = Tracing(tracer_provider)
        self.metering: Metering = metering_for(meter_provider)
