"""An agent that the shop can do without."""

import anyio

from asgi_agents import Agent, AgentResponse, HeaderOp, RequestBodyChunkEvent, RequestHeadersEvent


class Recommender(Agent):
    """Tells the app what the customer may like. Raises on its first ``failures`` requests, then is well, but slow."""

    def __init__(self, failures: int) -> None:
        self._failures = failures

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        if self._failures > 0:
            self._failures -= 1
            raise ConnectionError("the recommendation service can't be reached")
        await anyio.sleep(0.02)
        return AgentResponse.allow(request_headers=[HeaderOp.set("x-may-like", "lamp")])

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
        """A wish list would be looked at here."""
