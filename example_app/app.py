"""The app: endpoints, agents, and which agents guard which paths."""

from fastapi import FastAPI

from asgi_agents import AgentConfig, AgentMiddleware, CircuitBreakerConfig, EventType, FailureMode, Route

from .agents import ApiKey, AuditLog, Flaky, Moderator, PiiRedactor, Waf
from .agents.waf_rules import CANDIDATE_RULES
from .api import first_orders, router
from .rooms import Rooms

# A real shop has them in its secret store.
API_KEYS = {"key-of-alice": "alice", "key-of-bob": "bob"}
ADMIN_TOKENS = {"token-of-root": "root"}
INSULTS = ("idiot", "moron", "nitwit")

ADMIN = "/admin/{rest:path}"
MAX_UPLOAD_BYTES = 256 * 1024

# The first match wins. The order within a route says whose refusal counts where two refuse, and who is asked first
# along a body: the firewall sees a body before anyone changes it.
ROUTES = (
    Route("/healthz", agents=[]),
    Route("/old-orders", agents=["audit", "waf"]),
    Route("/api/{rest:path}", agents=["audit", "api-key", "waf", "waf-next", "pii"]),
    Route(ADMIN, agents=["audit", "api-key", "waf", "pii"]),
    Route("/room/{name}", agents=["audit", "api-key", "waf", "moderator"]),
    Route("/demo/flaky", agents=["audit", "flaky"]),
)
# A path that nobody thought of is not a path that nobody guards.
DEFAULT_AGENTS = ("audit", "waf")


def agent_configs(waf_url: str | None = None) -> list[AgentConfig]:
    """The agents. With ``waf_url`` the firewall is behind that URL, else in this process."""
    return [
        # An audit log that fails must not close the shop.
        AgentConfig("audit", AuditLog(), failure_mode=FailureMode.OPEN),
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
        # For the demonstration only.
        AgentConfig(
            "flaky",
            Flaky(failures=2),
            circuit_breaker=CircuitBreakerConfig(failure_threshold=2, success_threshold=1, reset_timeout=1.0),
        ),
    ]


def create_app(*, waf_url: str | None = None, token_delay: float = 0.03) -> FastAPI:
    """The shop. ``token_delay``: seconds between two tokens of a chat answer."""
    app = FastAPI(title="A shop behind agents")
    app.state.orders = first_orders()
    app.state.rooms = Rooms()
    app.state.token_delay = token_delay
    app.include_router(router)
    app.add_middleware(AgentMiddleware, agents=agent_configs(waf_url), routes=ROUTES, default_agents=DEFAULT_AGENTS)
    return app
