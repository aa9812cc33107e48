"""Ways to reach an agent."""

from .base import Transport
from .http import HttpTransport
from .in_process import InProcessTransport
from .stream import EndpointStatistics, LoadBalancing, StreamTransport

__all__ = ["EndpointStatistics", "HttpTransport", "InProcessTransport", "LoadBalancing", "StreamTransport", "Transport"]
