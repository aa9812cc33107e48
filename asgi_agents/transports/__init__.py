"""Ways to reach an agent."""

from typing import TYPE_CHECKING

from .base import AgentClient, BindableTransport, Place, PlainTransport, Transport
from .in_process import InProcessTransport
from .stream import LoadBalancing, StreamTransport

if TYPE_CHECKING:
    from .http import HttpTransport
else:

    def __getattr__(name: str) -> object:
        # With it comes httpx, which takes as long to import as all the rest, and which only agents behind HTTP need.
        if name != "HttpTransport":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .http import HttpTransport

        return HttpTransport


__all__ = [
    "AgentClient",
    "BindableTransport",
    "HttpTransport",
    "InProcessTransport",
    "LoadBalancing",
    "Place",
    "PlainTransport",
    "StreamTransport",
    "Transport",
]
