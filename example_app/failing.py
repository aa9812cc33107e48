"""Two agents that fail on purpose, to show what becomes of the requests. Not for copying."""

import anyio
from fastapi import APIRouter, Request

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentResponse,
    CircuitBreakerConfig,
    FailureMode,
    HeaderOp,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
)

from .observability import TracedRoute

router = APIRouter(route_class=TracedRoute)


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


class Flaky(Agent):
    """Raises on its first ``failures`` requests, then is well."""

    def __init__(self, failures: int) -> None:
        self._failures = failures

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        if self._failures > 0:
            self._failures -= 1
            raise ConnectionError("the reputation service can't be reached")


def failing_agents() -> list[AgentConfig]:
    """The shop stays open without the first, and is closed without the second."""
    return [
        AgentConfig(
            "recommender",
            Recommender(failures=1),
            failure_mode=FailureMode.OPEN,
            max_concurrent_calls=1,
            max_request_body_bytes=1024,
        ),
        AgentConfig(
            "flaky",
            Flaky(failures=2),
            circuit_breaker=CircuitBreakerConfig(failure_threshold=2, success_threshold=1, reset_timeout=1.0),
        ),
    ]


@router.post("/wishes")
async def wish(request: Request) -> dict[str, str]:
    return {"you may like": request.headers.get("x-may-like", "something")}


@router.get("/flaky")
async def behind_a_flaky_agent() -> dict[str, str]:
    return {"status": "the agent was well"}
