"""One request to an app with one agent."""

import anyio

from asgi_agents import AgentConfig, AgentManager
from tests.support.asgi import App, Client, guarded

SECRET = "hunter2"


async def ask(config: AgentConfig) -> tuple[Client, AgentManager, App]:
    app, client = App(), Client(headers=[(b"authorization", SECRET.encode())])
    middleware = guarded(app, config)
    async with middleware.manager:
        with anyio.fail_after(60):
            await client.call(middleware)
    return client, middleware.manager, app
