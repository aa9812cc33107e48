"""The firewall in a process of its own: ``uvicorn example_app.waf_service:app``."""

import os

from asgi_agents.serve import agent_app

from .agents import Waf
from .demo.tracing import PipeExporter, trace_into

if os.environ.get("EXAMPLE_APP_TRACE"):
    trace_into(PipeExporter(), "waf")

app = agent_app(Waf())
