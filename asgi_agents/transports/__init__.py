"""Ways to reach an agent."""

from typing import TYPE_CHECKING

from .base import AgentClient, BindableTransport, Place, PlainTransport, Transport
from .in_process import InProcessTransport
from .stream import LoadBalancing, StreamTransport

if TYPE_CHECKING:
    from .grpc import GrpcTransport
    from .http import HttpTransport
else:

    def __getattr__(name: str) -> object:
        # What only some need: httpx, which comes with one of them, takes as long to import as all the rest.
        match name:
            case "GrpcTransport":
                from .grpc import GrpcTransport

                return GrpcTransport
            case "HttpTransport":
                from .http import HttpTransport

                return HttpTransport
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AgentClient",
    "BindableTransport",
    "GrpcTransport",
    "HttpTransport",
    "InProcessTransport",
    "LoadBalancing",
    "Place",
    "PlainTransport",
    "StreamTransport",
    "Transport",
]
