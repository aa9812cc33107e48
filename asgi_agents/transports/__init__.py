"""Ways to reach an agent."""

from typing import TYPE_CHECKING

from ..imports.lazy import lazy_names
from .base import AgentClient, BindableTransport, Place, PlainTransport, Transport
from .in_process import InProcessTransport
from .stream import LoadBalancing, StreamTransport

if TYPE_CHECKING:
    from .forward_auth import ForwardAuthTransport
    from .grpc import GrpcTransport
    from .http import HttpTransport
else:
    # What only some need: httpx, which comes with one of them, takes as long to import as all the rest.
    _LAZY = {"ForwardAuthTransport": "forward_auth", "GrpcTransport": "grpc", "HttpTransport": "http"}

    __getattr__, __dir__ = lazy_names(globals(), _LAZY, beside=("asgi_agents",))


__all__ = [
    "AgentClient",
    "BindableTransport",
    "ForwardAuthTransport",
    "GrpcTransport",
    "HttpTransport",
    "InProcessTransport",
    "LoadBalancing",
    "Place",
    "PlainTransport",
    "StreamTransport",
    "Transport",
]
