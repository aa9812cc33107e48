"""The stream transport: protocol version 2, and the older framing, over Unix sockets and TCP."""

from .balancing import LoadBalancing
from .client import StreamClient
from .connection import AgentConnection
from .transport import StreamTransport

__all__ = [
    "AgentConnection",
    "LoadBalancing",
    "StreamClient",
    "StreamTransport",
]
