"""The firewall in a process of its own: ``uvicorn example_app.waf_service:app``."""

from asgi_agents.serve import agent_app

from .waf import Waf

app = agent_app(Waf())
