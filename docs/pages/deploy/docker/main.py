import logging
import os

from fastapi import FastAPI

from asgi_agents import AgentConfig, AgentRoute, FailureMode, protect

# uvicorn sets up its own loggers alone. Without this, what the package logs has no time, and no INFO.
logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s %(message)s")

app = FastAPI()


@app.get("/healthz")
async def healthz() -> str:
    return "ok"


@app.get("/")
async def shop() -> str:
    return "welcome"


protect(
    app,
    agents=[
        AgentConfig(
            "waf",
            os.environ.get("WAF", "unix:///run/waf/waf.sock"),
            # Longer than a restart of the agent takes: who comes meanwhile waits, and is not refused.
            timeout=3.0,
            failure_mode=FailureMode(os.environ.get("WAF_FAILURE_MODE", "closed")),
        )
    ],
    routes=[AgentRoute("/healthz", agents=[])],
    default_agents=["waf"],
)
