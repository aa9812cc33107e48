"""An app behind agents that fail and refuse when they are told to, with its status page, for tests."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount
from starlette.routing import Route as AppRoute
from starlette.types import ASGIApp

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    AuditMetadata,
    CircuitBreakerConfig,
    FailureMode,
    Headers,
    RequestHeadersEvent,
    RequestMetadata,
    Route,
    status_app,
)
from asgi_agents.errors import AgentError
from asgi_agents.guardrails import Guardrail, Redact, TextGuardrail, Window
from tests.support.servers import serve

# Where the status page is.
PAGE = "/-/agents/"


class Scripted(Agent):
    """Does what the header ``x-<its id>`` of a request says: ``block``, or ``fail``; else it allows."""

    def __init__(self, name: str, message: str = "as it was told") -> None:
        self._name = name
        self._message = message

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        match event.header(f"x-{self._name}"):
            case "block":
                audit = AuditMetadata(rule_ids=("R-1",), tags=("test",), reason_codes=("told_to",))
                return AgentResponse.block(403, audit=audit)
            case "fail":
                raise AgentError(self._message)
            case _:
                return None


class Greetings(TextGuardrail):
    """Takes them out of text."""

    async def check(self, window: Window) -> Sequence[Redact]:
        start = window.text.find("hello", window.fresh)
        return [] if start < 0 else [Redact(start, start + 5, "[greeting]")]


def scripted(agent_id: str, message: str = "as it was told", **options: Any) -> AgentConfig:
    return AgentConfig(agent_id, Scripted(agent_id, message), **options)


def usual_agents() -> list[AgentConfig]:
    """One of each kind: an enforced one, a shadow, one that fails open, and one whose breaker opens soon."""
    return [
        scripted("waf"),
        scripted("shadow", enforce=False),
        scripted("optional", failure_mode=FailureMode.OPEN),
        scripted("flaky", circuit_breaker=CircuitBreakerConfig(failure_threshold=2, success_threshold=1)),
    ]


USUAL_ROUTES = (
    Route("/-/{rest:path}", agents=[]),
    Route("/shop/{rest:path}", agents=["waf", "shadow", ("optional", FailureMode.OPEN)], methods=["GET", "POST"]),
    Route("/flaky/{rest:path}", agents=["waf", "flaky"]),
)


def head_event(correlation_id: str = "c-1", uri: str = "/", **headers: str) -> RequestHeadersEvent:
    """A request, to be shown to agents by hand. ``x_waf="block"`` is the header ``x-waf: block``."""
    return RequestHeadersEvent(
        metadata=RequestMetadata(
            correlation_id=correlation_id,
            request_id=correlation_id,
            client_ip="192.0.2.7",
            client_port=40000,
            protocol="HTTP/1.1",
            timestamp="2026-01-01T00:00:00Z",
        ),
        method="GET",
        uri=uri,
        headers=Headers({name.replace("_", "-"): [value] for name, value in headers.items()}),
    )


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


class World:
    """A server that can be asked for things, and its manager.

    ``clock`` is that of the breakers: :meth:`let_pass` makes it later.
    """

    def __init__(
        self, agents: list[AgentConfig], routes: Any, guardrails: Sequence[Guardrail] = (), **options: Any
    ) -> None:
        self._later = 0.0
        self.manager = AgentManager(agents, clock=self._clock)
        status = status_app(self.manager, **{"interval": 0.1} | options)
        self.app: ASGIApp = AgentMiddleware(
            Starlette(
                routes=[
                    Mount("/-", Starlette(routes=[Mount("/agents", status)])),
                    AppRoute("/{rest:path}", hello, methods=["GET", "POST"]),
                ]
            ),
            manager=self.manager,
            routes=routes,
            guardrails=guardrails,
        )
        self.url = ""

    def _clock(self) -> float:
        return time.monotonic() + self._later

    def let_pass(self, seconds: float) -> None:
        """Have the breakers think that it is so much later."""
        self._later += seconds

    def get(self, path: str, correlation_id: str = "", **headers: str) -> int:
        """The status of the answer. ``waf="block"`` is the header ``x-waf: block``."""
        given: Mapping[str, str] = {f"x-{name}": value for name, value in headers.items()}
        named = {"x-request-id": correlation_id} if correlation_id else {}
        with httpx.Client(trust_env=False) as client:
            return client.get(self.url + path.lstrip("/"), headers={**given, **named}).status_code

    @property
    def page(self) -> str:
        return self.url + PAGE.lstrip("/")


@contextmanager
def running(agents: list[AgentConfig] | None = None, routes: Any = USUAL_ROUTES, **options: Any) -> Iterator[World]:
    """The server with those agents; ``options`` are those of the status page, and ``guardrails``."""
    world = World(usual_agents() if agents is None else agents, routes, **options)
    with serve(world.app) as world.url:
        yield world
