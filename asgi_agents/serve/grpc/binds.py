"""The addresses of gRPC servers."""

from ...errors import ConfigurationError
from ...transports.wire import Address, parse_address


def parse_bind(where: str, given: object) -> Address:
    """``unix:///path``, ``host:port`` or ``tcp://host:port``."""
    if isinstance(given, str) and "://" not in given:
        try:
            return parse_address(where, f"tcp://{given}")
        except ConfigurationError:
            raise ConfigurationError(
                f"{where}: {given!r}, expected unix:///path or host:port, such as 127.0.0.1:9000"
            ) from None
    return parse_address(where, given)
