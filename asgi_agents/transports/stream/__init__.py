"""The stream transport: protocol version 2, and the older framing, over Unix sockets and TCP."""

from .balancing import LoadBalancing
from .client import ConfigUpdateCallback, MetricsCallback, StreamClient
from .connection import Connection, cancel_reason
from .statistics import EndpointStatistics
from .transport import StreamTransport

__all__ = [
    "ConfigUpdateCallback",
    "Connection",
    "EndpointStatistics",
    "LoadBalancing",
    "MetricsCallback",
    "StreamClient",
    "StreamTransport",
    "cancel_reason",
]
