"""What is missing where an extra is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import ConfigurationError


@contextmanager
def require_stubs() -> Iterator[None]:
    """Around the imports of protobuf and of Envoy's messages: a missing package is one :class:`ConfigurationError`."""
    try:
        yield
    except ModuleNotFoundError as exc:
        raise ConfigurationError(
            f"Envoy's protocols need {exc.name}, which is not installed: pip install 'asgi-agents[grpc]'"
        ) from None
