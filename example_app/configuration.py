"""The agents, and how each is treated."""

from asgi_agents import AgentConfig, EventType

from .api_key import ApiKey
from .failing import failing_agents
from .redactor import PiiRedactor
from .rooms import Moderator
from .routes import ADMIN
from .text_guardrails import Injections, PersonalData, Unannounced
from .waf import CANDIDATE_RULES, Waf

# A real shop has them in its secret store.
API_KEYS = {"key-of-alice": "alice", "key-of-bob": "bob"}
ADMIN_TOKENS = {"token-of-root": "root"}

MAX_UPLOAD_BYTES = 256 * 1024

# Projects that nobody outside of the house is to hear of.
UNANNOUNCED = ("Nightjar",)


def agent_configs(waf_url: str | None = None) -> list[AgentConfig]:
    """The agents. With ``waf_url`` the firewall is behind that URL, else in this process."""
    return [
        AgentConfig("api-key", ApiKey(API_KEYS, ADMIN_TOKENS, bearer_routes={ADMIN}), sets={"x-user"}),
        AgentConfig(
            "waf",
            waf_url or Waf(),
            events={EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK},
            max_request_body_bytes=MAX_UPLOAD_BYTES,
        ),
        # Tomorrow's rules: what they would have refused is recorded, and passes.
        AgentConfig("waf-next", Waf(CANDIDATE_RULES), enforce=False),
        AgentConfig("pii", PiiRedactor(), body_access="write"),
        AgentConfig("moderator", Moderator()),
        AgentConfig("injections", Injections()),
        AgentConfig("personal-data", PersonalData()),
        AgentConfig("unannounced", Unannounced(UNANNOUNCED)),
        *failing_agents(),
    ]
