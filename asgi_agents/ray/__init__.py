"""Agents as deployments on Ray Serve (the ``ray`` extra): replicas, autoscaling, batches of inspections.

``python -m asgi_agents.ray waf:Waf`` deploys one from the command line.
"""

from .batching import Batching
from .deployment import SERVICER_FUNCTION, agent_deployment

__all__ = ["SERVICER_FUNCTION", "Batching", "agent_deployment"]
