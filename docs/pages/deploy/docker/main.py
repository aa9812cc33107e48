import os

from fastapi import FastAPI

from asgi_agents import AgentConfig, AgentRoute, protect

app = FastAPI()


@app.get("/healthz")
async def healthz() -> str:
    return "ok"


@app.get("/")
async def shop() -> str:
    return "welcome"


protect(
    app,
    agents=[AgentConfig("waf", os.environ.get("WAF", "unix:///run/waf/waf.sock"))],
    routes=[AgentRoute("/healthz", agents=[])],
    default_agents=["waf"],
)
