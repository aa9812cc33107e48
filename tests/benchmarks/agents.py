"""The agent that allows, and the ways to serve it."""

from asgi_agents import Agent, AgentResponse, RequestHeadersEvent
from asgi_agents.serve import agent_app


class Allow(Agent):
    """Hears request headers, and has nothing against them."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        return None


allow = Allow()
http_allow = agent_app(allow)
