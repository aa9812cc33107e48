"""A page that shows what the agents do."""

from .app import status_app
from .snapshot import AgentStatus, RouteAgentStatus, RouteStatus, Status

__all__ = ["AgentStatus", "RouteAgentStatus", "RouteStatus", "Status", "status_app"]
