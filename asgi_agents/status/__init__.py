"""A page that shows what the agents do."""

from .app import status_app
from .model import (
    AgentStatus,
    HoldStatus,
    RouteAgentStatus,
    RouteGuardrailStatus,
    RouteStatus,
    Status,
    TextStatus,
    WorkerStatus,
)

__all__ = [
    "AgentStatus",
    "HoldStatus",
    "RouteAgentStatus",
    "RouteGuardrailStatus",
    "RouteStatus",
    "Status",
    "TextStatus",
    "WorkerStatus",
    "status_app",
]
