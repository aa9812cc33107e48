"""Mistakes in an AgentConfig."""

from typing import Final

from .mistake import Mistake

CONFIGURATION: Final = (
    Mistake(
        title="Milliseconds instead of seconds",
        code='protect(app, agents=[AgentConfig("waf", Waf(), timeout=500)])',
        instead="`timeout=0.5`",
    ),
    Mistake(
        title="The same in a circuit breaker",
        code="""
breaker = CircuitBreakerConfig(reset_timeout=30_000)
protect(app, agents=[AgentConfig("waf", Waf(), circuit_breaker=breaker)])
""",
        instead="`reset_timeout=30`",
    ),
    Mistake(
        title="A failure mode that does not exist",
        code='AgentConfig("waf", Waf(), failure_mode="fail-open")',
        instead='`failure_mode="open"` or `FailureMode.OPEN`',
    ),
    Mistake(
        title="A body mode that is not called",
        code='AgentConfig("waf", Waf(), request_body_mode=BodyMode.hybrid)',
        instead='`BodyMode.hybrid(threshold=65536)`, or `"hybrid"`',
    ),
    Mistake(
        title="False for no circuit breaker",
        code='AgentConfig("waf", Waf(), circuit_breaker=False)',
        instead="`circuit_breaker=None`",
    ),
    Mistake(
        title="An agent behind HTTP that is not told its events",
        code='AgentConfig("waf", "http://waf.internal/")',
        instead='`events={EventType.REQUEST_HEADERS}`, or `{"request_headers"}`',
    ),
    Mistake(
        title="A misspelt event",
        code='AgentConfig("waf", "http://waf.internal/", events={"request_header"})',
        instead="`EventType.REQUEST_HEADERS`",
    ),
    Mistake(
        title="Events in which the agent has no hook",
        code='AgentConfig("waf", Waf(), events={"request_headers", "request_body_chunk"})',
        instead=(
            "Override `on_request_body_chunk`. Without `events` an agent in the process is shown what it has hooks for."
        ),
    ),
    Mistake(
        title="The path of a socket",
        code='AgentConfig("waf", "/run/waf.sock")',
        instead='`"unix:///run/waf.sock"`',
    ),
    Mistake(
        title="A host and a port",
        code='AgentConfig("waf", "waf.internal:9000")',
        instead=(
            '`"tcp://waf.internal:9000"` for `python -m asgi_agents.serve --bind`, `"http://waf.internal:9000/"` for'
            " `--http`"
        ),
    ),
    Mistake(
        title="The app in place of an agent",
        code='AgentConfig("waf", app)',
        instead="An instance of your `Agent`, or the address of a served one.",
    ),
    Mistake(
        title="Headers set by an agent that is not asked about requests",
        code="""
class Stamp(Agent):
    async def on_response_headers(self, event): ...

protect(app, agents=[AgentConfig("stamp", Stamp(), sets={"x-user"})])
""",
        instead="Override `on_request_headers`: only there can request headers be set.",
    ),
    Mistake(
        title="Headers set by a shadow agent",
        code='protect(app, agents=[AgentConfig("waf", Waf(), sets={"x-user"}, enforce=False)])',
        instead="`sets` of the agent that is enforced.",
    ),
    Mistake(
        title="Bodies decoded for an agent that is shown none",
        code='protect(app, agents=[AgentConfig("waf", Waf(), decode=True, body_access="write")])',
        instead="Override `on_request_body_chunk` or `on_response_body_chunk`.",
    ),
    Mistake(
        title="Two agents of one id",
        code='protect(app, agents=[AgentConfig("waf", Waf()), AgentConfig("waf", Waf())])',
        instead='`AgentConfig("waf-2", Waf())`',
    ),
    Mistake(
        title="A limit by user that is not asked after the agent that knows the user",
        code="""
from asgi_agents.agents import ApiKey, RateLimit

agents = [AgentConfig("api-key", ApiKey({"s3cret": "alice"})), AgentConfig("rate", RateLimit("100/minute", by="user"))]
protect(app, agents=agents)
""",
        ask="/items",
        instead='`AgentConfig("rate", ..., after=["api-key"])`. Without it all users of an address share a limit.',
    ),
    Mistake(
        title="A limit by user on a route without the agent that knows the user",
        code="""
from asgi_agents.agents import ApiKey, RateLimit

limit = RateLimit("100/minute", by="user")
agents = [AgentConfig("api-key", ApiKey({"s3cret": "alice"})), AgentConfig("rate", limit, after=["api-key"])]
protect(app, agents=agents, routes=[AgentRoute("/items", ["rate"])], default_agents=["api-key", "rate"])
""",
        ask="/items",
        instead=(
            '`AgentRoute("/items", ["api-key", "rate"])`. Without the key there is no limit: a client sends another'
            " `x-user` each time."
        ),
    ),
    Mistake(
        title="After an agent that does not exist",
        code='protect(app, agents=[AgentConfig("waf", Waf(), after=["api_key"]), AgentConfig("api-key", Waf())])',
        instead='`after=["api-key"]`',
    ),
)
