"""Which agents guard which paths."""

from asgi_agents import AgentRoute

from .mcp import MCP_GUARDRAILS
from .text_guardrails import CHAT_GUARDRAILS, ROOM_GUARDRAILS

ADMIN = "/admin/{rest:path}"

# The first match wins. The order within a route decides which refusal counts if two agents refuse, and which agent
# receives a body first: the firewall receives it before another agent changes it.
ROUTES = (
    AgentRoute("/healthz", agents=[]),
    # These check by themselves who is asking.
    AgentRoute("/-/{rest:path}", agents=[]),
    AgentRoute("/old-orders", agents=["waf"]),
    AgentRoute("/api/{rest:path}", agents=["api-key", "waf", "waf-next", "pii"]),
    AgentRoute("/v1/{rest:path}", agents=["api-key", "waf"], guardrails=CHAT_GUARDRAILS),
    AgentRoute(ADMIN, agents=["api-key", "waf", "pii"]),
    AgentRoute("/mcp", agents=["api-key", "waf"], guardrails=MCP_GUARDRAILS),
    AgentRoute("/room/{name}", agents=["api-key", "waf", "moderator"], guardrails=ROOM_GUARDRAILS),
    AgentRoute("/flaky", agents=["flaky"]),
    AgentRoute("/wishes", agents=["recommender"]),
)
# A path that is in no route is guarded as well.
DEFAULT_AGENTS = ("waf",)
