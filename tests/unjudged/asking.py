"""One request or one websocket session past some agents, and the names that these tests need of the package."""

from collections import deque
from collections.abc import Iterable
from typing import Any

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import asgi_agents
from asgi_agents import AgentConfig, AgentManager, AgentMiddleware, AgentResponse
from tests.support.asgi import Client, guarded

# Seconds after which a test that hangs has failed.
PATIENCE = 60


def config(agent: Any, agent_id: str = "agent", **options: Any) -> AgentConfig:
    """With deadlines that no machine is too slow for."""
    return AgentConfig(agent_id, agent, **{"timeout": 30.0, "chunk_timeout": 30.0} | options)


def protect(app: Any, **options: Any) -> Any:
    """``asgi_agents.protect``, looked up late: a name that is missing fails the tests that need it, and no others."""
    function: Any = vars(asgi_agents)["protect"]
    return function(app, **options)


def skip_body(**options: Any) -> AgentResponse:
    """An allow of an agent that doesn't want the body."""
    given: Any = {"skip_body": True, **options}
    return AgentResponse.allow(**given)


async def ask(app: ASGIApp, *agents: AgentConfig, client: Client | None = None, **options: Any) -> Client:
    """Send one request through ``agents`` to ``app``."""
    client = Client() if client is None else client
    middleware = guarded(app, *agents, **options)
    await ask_again(middleware, client)
    return client


async def ask_again(app: ASGIApp, client: Client | None = None) -> Client:
    """Send one request to an app that is guarded already."""
    client = Client() if client is None else client
    with anyio.fail_after(PATIENCE):
        try:
            await client.call(app)
        except asgi_agents.ResponseAborted:
            # The server breaks the connection off: the client has a part of a response, and sees that.
            assert not client.complete
    return client


def outcomes(app: ASGIApp, agent_id: str = "agent") -> dict[str, int]:
    """What became of the calls to an agent."""
    assert isinstance(app, AgentMiddleware)
    manager: AgentManager = app.manager
    return manager.metrics[agent_id].outcomes


class Session:
    """A websocket session: the client sends ``frames`` once it is accepted, and leaves."""

    def __init__(
        self, *frames: str, path: str = "/", headers: Iterable[tuple[bytes, bytes]] = (), **scope: Any
    ) -> None:
        self.scope: Scope = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": list(headers),
            "client": ("192.0.2.7", 40000),
            "server": ("app.example", 80),
            "subprotocols": [],
            "extensions": {},
            "state": {},
            **scope,
        }
        self.sent: list[Message] = []
        self._incoming = deque[Message]([{"type": "websocket.connect"}])
        self._incoming.extend({"type": "websocket.receive", "text": frame} for frame in frames)
        self._incoming.append({"type": "websocket.disconnect", "code": 1001, "reason": ""})

    @property
    def accepted(self) -> bool:
        return any(message["type"] == "websocket.accept" for message in self.sent)

    @property
    def texts(self) -> list[str]:
        """What the client got."""
        return [message["text"] for message in self.sent if message["type"] == "websocket.send"]

    async def call(self, app: ASGIApp) -> None:
        async def receive() -> Message:
            if not self._incoming:
                await anyio.sleep_forever()
            return self._incoming.popleft()

        async def send(message: Message) -> None:
            self.sent.append(message)

        with anyio.fail_after(PATIENCE):
            await app(self.scope, receive, send)


class Echo:
    """A websocket app that sends back what it gets, and remembers it and its scope."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.headers: list[tuple[bytes, bytes]] = []

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers = list(scope["headers"])
        while (message := await receive())["type"] != "websocket.disconnect":
            if message["type"] == "websocket.connect":
                await send({"type": "websocket.accept"})
            else:
                self.got.append(message["text"])
                await send({"type": "websocket.send", "text": message["text"]})
