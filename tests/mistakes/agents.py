"""Mistakes in writing an agent."""

from typing import Final

from .mistake import Mistake

AGENTS: Final = (
    Mistake(
        title="A misspelt hook",
        code="""
class ApiKey(Agent):
    async def on_request_header(self, event): ...

AgentConfig("api-key", ApiKey())
""",
        instead="`on_request_headers`",
    ),
    Mistake(
        title="A hook that is no coroutine function",
        code="""
class ApiKey(Agent):
    def on_request_headers(self, event): ...

AgentConfig("api-key", ApiKey())
""",
        instead="`async def`. Work that blocks belongs in `await anyio.to_thread.run_sync(...)`.",
    ),
    Mistake(
        title="A hook without its event",
        code="""
class ApiKey(Agent):
    async def on_request_headers(self): ...

AgentConfig("api-key", ApiKey())
""",
        instead="`(self, event)`",
    ),
    Mistake(
        title="A hook that wants more than the event",
        code="""
class ApiKey(Agent):
    async def on_request_headers(self, event, database): ...

AgentConfig("api-key", ApiKey())
""",
        instead="Give it to the agent's `__init__`: `ApiKey(database)`.",
    ),
    Mistake(
        title="A static method that expects self",
        code="""
class ApiKey(Agent):
    @staticmethod
    async def on_request_headers(self, event): ...

AgentConfig("api-key", ApiKey())
""",
        instead="A method, without `@staticmethod`.",
    ),
    Mistake(
        title="An agent without hooks",
        code="""
class ApiKey(Agent):
    async def check(self, request): ...

AgentConfig("api-key", ApiKey())
""",
        instead="Override the hooks of the events that the agent is to be shown.",
    ),
    Mistake(
        title="The class instead of an instance",
        code='AgentConfig("waf", Waf)',
        instead='`AgentConfig("waf", Waf())`',
    ),
    Mistake(
        title="A key that is not in the configuration",
        code="""
class Limit(Agent):
    async def on_configure(self, event):
        self.rate = event.config["rate"]

    async def on_request_headers(self, event): ...

protect(app, agents=[AgentConfig("limit", Limit(), config={"Rate": 10})])
""",
        ask="/items",
        instead='`config={"rate": 10}`',
    ),
    Mistake(
        title="No configuration at all",
        code="""
class Limit(Agent):
    async def on_configure(self, event):
        self.rate = event.config["rate"]

    async def on_request_headers(self, event): ...

protect(app, agents=[AgentConfig("limit", Limit())])
""",
        ask="/items",
        instead='`AgentConfig("limit", Limit(), config={"rate": 10})`',
    ),
    Mistake(
        title="A configuration that no hook reads",
        code='protect(app, agents=[AgentConfig("waf", Waf(), config={"rules": "strict"})])',
        instead="Override `on_configure`, or give what the agent needs to its `__init__`.",
    ),
    Mistake(
        title="A hook that raises",
        code="""
class ApiKey(Agent):
    async def on_request_headers(self, event):
        if event.header("x-api-key").lower() != "s3cret":
            return AgentResponse.block(401)

protect(app, agents=[AgentConfig("api-key", ApiKey())])
""",
        ask="/items",
        instead='`event.header(name)` is None where the request has no such header: `(event.header(name) or "")`.',
    ),
    Mistake(
        title="A hook that blocks the event loop",
        code="""
import time

class Slow(Agent):
    async def on_request_headers(self, event):
        time.sleep(0.2)

protect(app, agents=[AgentConfig("slow", Slow())])
""",
        ask="/items",
        instead="`await anyio.sleep(...)`, an asynchronous client, or `await anyio.to_thread.run_sync(...)`.",
    ),
)
