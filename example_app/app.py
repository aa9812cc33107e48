"""The app: endpoints, agents, and which agents guard which paths."""

from typing import Any

from fastapi import FastAPI
from starlette import routing
from starlette.requests import Request

from asgi_agents import (
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentRoute,
    CircuitBreakerConfig,
    EventType,
    FailureMode,
    status_app,
)
from asgi_agents.prometheus import metrics_app

from .agents import ApiKey, Flaky, Moderator, PiiRedactor, Recommender, Waf
from .agents.waf_rules import CANDIDATE_RULES
from .api import first_orders, router
from .rooms import Rooms

# A real shop has them in its secret store.
API_KEYS = {"key-of-alice": "alice", "key-of-bob": "bob"}
ADMIN_TOKENS = {"token-of-root": "root"}
INSULTS = ("idiot", "moron", "nitwit")

ADMIN = "/admin/{rest:path}"
MAX_UPLOAD_BYTES = 256 * 1024

# The first match wins. The order within a route decides which refusal counts if two agents refuse, and which agent
# receives a body first: the firewall receives it before another agent changes it.
ROUTES = (
    AgentRoute("/healthz", agents=[]),
    # These check by themselves who is asking.
    AgentRoute("/-/{rest:path}", agents=[]),
    AgentRoute("/old-orders", agents=["waf"]),
    AgentRoute("/api/{rest:path}", agents=["api-key", "waf", "waf-next", "pii"]),
    AgentRoute(ADMIN, agents=["api-key", "waf", "pii"]),
    AgentRoute("/room/{name}", agents=["api-key", "waf", "moderator"]),
    AgentRoute("/demo/flaky", agents=["flaky"]),
    AgentRoute("/demo/wishes", agents=["recommender"]),
)
# A path that is in no route is guarded as well.
DEFAULT_AGENTS = ("waf",)


def agent_configs(waf_url: str | None = None) -> list[AgentConfig]:
    """The agents. With ``waf_url`` the firewall is behind that URL, else in this process."""
    return [
        AgentConfig("api-key", ApiKey(API_KEYS, ADMIN_TOKENS, bearer_routes={ADMIN})),
        AgentConfig(
            "waf",
            waf_url or Waf(),
            events={EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK},
            max_request_body_bytes=MAX_UPLOAD_BYTES,
        ),
        # Tomorrow's rules: what they would have refused is recorded, and passes.
        AgentConfig("waf-next", Waf(CANDIDATE_RULES), enforce=False),
        AgentConfig("pii", PiiRedactor(), body_access="write"),
        AgentConfig("moderator", Moderator(INSULTS)),
        # The shop stays open without it.
        AgentConfig(
            "recommender",
            Recommender(failures=1),
            failure_mode=FailureMode.OPEN,
            max_concurrent_calls=1,
            max_request_body_bytes=1024,
        ),
        # For the demonstration only.
        AgentConfig(
            "flaky",
            Flaky(failures=2),
            circuit_breaker=CircuitBreakerConfig(failure_threshold=2, success_threshold=1, reset_timeout=1.0),
        ),
    ]


def create_app(*, waf_url: str | None = None, token_delay: float = 0.03, **providers: Any) -> FastAPI:
    """The shop. ``token_delay``: seconds between two tokens of a chat answer; ``providers``: OpenTelemetry's."""
    app = FastAPI(title="A shop behind agents")
    app.state.orders = first_orders()
    app.state.rooms = Rooms()
    app.state.token_delay = token_delay
    app.include_router(router)
    manager = AgentManager(agent_configs(waf_url), **providers)
    app.mount("/-/agents", status_app(manager, authorize=is_local))
    app.routes.append(routing.Route("/-/metrics", metrics_app(manager, authorize=is_local)))
    app.add_middleware(
        AgentMiddleware,
        manager=manager,
        routes=ROUTES,
        default_agents=DEFAULT_AGENTS,
        audit_headers=["user-agent"],
        expose_correlation_id=True,
    )
    return app


def is_local(request: Request) -> bool:
    """Whether somebody on this machine asks. Behind a proxy that is everybody: ask for a password there."""
    return request.client is not None and request.client.host in ("127.0.0.1", "::1")
