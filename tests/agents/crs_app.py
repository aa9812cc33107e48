"""An app behind the OWASP Core Rule Set, as the page shows it. Import it where that is installed."""

from fastapi import FastAPI

from asgi_agents import AgentConfig, protect
from asgi_agents.agents import ModSecurity

app = FastAPI()


@app.get("/search")
async def search(q: str) -> str:
    return q


waf = ModSecurity(crs="/usr/share/modsecurity-crs")
protect(app, agents=[AgentConfig("waf", waf)])
