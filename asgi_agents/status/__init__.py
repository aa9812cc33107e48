"""A page that shows what the agents do."""

from .app import status_app
from .snapshot import (
    AgentStatus,
    HoldStatus,
    RouteAgentStatus,
    RouteGuardrailStatus,
    RouteStatus,
    Status,
    TextStatus,
)

__all__ = [
    "AgentStatus",
    "HoldStatus",
    "RouteAgentStatus",
    "RouteGuardrailStatus",
    "RouteStatus",
    "Status",
    "TextStatus",
    "status_app",
]
