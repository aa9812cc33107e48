"""``check`` finds agents that read headers before, or without, the agent that sets them."""

from .conftest import Command

APP = """
from fastapi import FastAPI
from asgi_agents import AgentConfig, AgentMiddleware, AgentRoute, protect
from asgi_agents.agents import ApiKey, RateLimit

app = FastAPI(openapi_url=None)


@app.get("/o")
async def o(): ...


key = AgentConfig("api-key", ApiKey({"a": "alice"}))
limit = RateLimit("1/minute", by="user")
rate = AgentConfig("rate", limit, after=["api-key"])
"""
RIGHT = "protect(app, agents=[key, rate])\n"
NO_AFTER = 'protect(app, agents=[key, AgentConfig("rate", limit)])\n'
ELSEWHERE = (
    'protect(app, agents=[key, rate], routes=[AgentRoute("/o", ["rate"])], default_agents=["api-key", "rate"])\n'
)
AROUND = """
protect(app, agents=[AgentConfig("rate", limit)])
app = AgentMiddleware(app, agents=[key])
"""


def test_a_limit_by_user_that_is_none_is_found(command: Command) -> None:
    done = command("check", "main:app", "--json", "--offline", main=APP + NO_AFTER)
    (finding,) = done.json["findings"]
    assert (done.code, finding["kind"]) == (1, "warning")
    assert finding["message"].startswith("agent 'rate' reads 'x-user' before 'api-key' has set it")

    done = command("check", "main:app", "--json", main=APP + ELSEWHERE)
    (finding,) = done.json["findings"]
    assert done.code == 1
    assert "which no agent before it on '/o' sets, so that clients choose it" in finding["message"]


def test_one_that_is_asked_after_the_agent_that_knows_the_user_is_well(command: Command) -> None:
    for main in (APP + RIGHT, APP + AROUND):
        done = command("check", "main:app", "--json", main=main)
        assert (done.code, done.json["findings"]) == (0, [])
