"""Ways to reach an agent."""

from .base import Transport
from .http import HttpTransport
from .in_process import InProcessTransport

__all__ = ["HttpTransport", "InProcessTransport", "Transport"]
