"""The stream transport: protocol version 2, and the older framing, over Unix sockets and TCP."""

from .balancing import LoadBalancing
from .client import ConfigUpdateCallback, MetricsCallback, StreamClient
from .connection import AgentConnection, cancel_reason
from .transport import StreamTransport

__all__ = [
    "AgentConnection",
    "ConfigUpdateCallback",
    "LoadBalancing",
    "MetricsCallback",
    "StreamClient",
    "StreamTransport",
    "cancel_reason",
]
