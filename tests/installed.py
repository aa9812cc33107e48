"""A guarded app, on an installation of the package and of nothing else: ``python -I tests/installed.py`` (.ci/run)."""

import sysconfig
from pathlib import Path

import anyio
from starlette.types import Message, Receive, Scope, Send

import asgi_agents
from asgi_agents import Agent, AgentConfig, AgentMiddleware, AgentResponse, RequestHeadersEvent


class Refuses(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        return AgentResponse.block(403, "no") if event.uri == "/secret" else None


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


async def get(guarded: AgentMiddleware, path: str) -> tuple[int, bytes]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    await guarded(scope, receive, send)
    return sent[0]["status"], sent[1]["body"]


async def main() -> None:
    guarded = AgentMiddleware(app, agents=[AgentConfig("refuses", Refuses())])
    assert await get(guarded, "/") == (200, b"hello")
    assert await get(guarded, "/secret") == (403, b"no")


assert Path(asgi_agents.__file__).is_relative_to(sysconfig.get_path("purelib")), asgi_agents.__file__
assert all(hasattr(asgi_agents, name) for name in asgi_agents.__all__)
anyio.run(main)
print(f"asgi-agents {asgi_agents.__version__} guards an app")
