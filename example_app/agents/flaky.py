"""An agent that fails on purpose, to show what a circuit breaker makes of it. Not for copying."""

from asgi_agents import Agent, RequestHeadersEvent


class Flaky(Agent):
    """Raises on its first ``failures`` requests, then is well."""

    def __init__(self, failures: int) -> None:
        self._failures = failures

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        if self._failures > 0:
            self._failures -= 1
            raise ConnectionError("the reputation service can't be reached")
