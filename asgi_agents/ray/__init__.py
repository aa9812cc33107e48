"""Agents as deployments on Ray Serve (the ``ray`` extra): replicas, autoscaling, batches of inspections.

``python -m asgi_agents.ray waf:Waf`` deploys one from the command line.
"""

from .batching import Batching
from .deployment import agent_deployment

__all__ = ["Batching", "agent_deployment"]
