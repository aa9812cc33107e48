from asgi_agents import Agent, AgentResponse, RequestHeadersEvent


class Waf(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        return AgentResponse.block(403) if "../" in event.uri else None
