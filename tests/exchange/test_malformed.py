"""Connections that no agent is asked about: a target that is no path is answered 400."""

import logging
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from asgi_agents import Agent, AgentConfig, AgentMiddleware, AuditRecord, EventType, Route
from asgi_agents.protocol.target import NO_PATH
from tests.support.asgi import Client


class _Hearing(Agent):
    def __init__(self) -> None:
        self.heard: list[EventType] = []

    async def on_request_headers(self, event: Any) -> None:
        self.heard.append(event.event_type)

    on_request_complete = on_request_headers


MALFORMED = [
    ("/admin", b"%2fadmin", ""),
    ("/admin", b"%2Fadmin", ""),
    ("/outer/admin", b"/outer%2fadmin", "/outer"),
    ("admin", b"admin", ""),
    ("http://host/admin", b"http://host/admin", ""),
    ("", b"", ""),
    ("admin", None, ""),
    ("", None, ""),
]


@pytest.mark.parametrize(
    ("path", "raw_path", "root_path", "pattern"),
    [
        (*target, pattern)
        for target in MALFORMED
        for pattern in (None, "/{rest:path}", "/public")
        # Where no agent is asked about a path, it does not matter what one would see.
        if pattern != "/public" or not target[0].startswith("/")
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket", "websocket without a response"])
async def test_a_target_that_is_no_path_is_answered_400_and_nobody_is_asked(
    path: str,
    raw_path: bytes | None,
    root_path: str,
    pattern: str | None,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    routes = None if pattern is None else [Route(pattern, ["a"])]
    agent = _Hearing()
    called: list[str] = []
    records: list[AuditRecord] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        called.append(scope["path"])

    guarded = AgentMiddleware(app, agents=[AgentConfig("a", agent)], routes=routes, on_audit=records.append)
    client = _client(path, raw_path, root_path, kind)
    with caplog.at_level(logging.WARNING, "asgi_agents"):
        await client.call(guarded)
        again = _client(path, raw_path, root_path, kind)
        await again.call(guarded)

    assert (called, agent.heard) == ([], [])
    for sent in (client.messages, again.messages):
        if kind == "websocket without a response":
            assert [(message["type"], message.get("code")) for message in sent] == [("websocket.close", 1008)]
        else:
            assert sent[0]["status"] == 400
    assert [record.decision for record in records] == ["block", "block"]
    assert [record.decided_by for record in records] == [None, None]
    # One line a minute, and nothing of the target in it.
    lines = [line for line in caplog.messages if NO_PATH in line]
    assert len(lines) == 1
    assert "outer" not in lines[0]


def _client(path: str, raw_path: bytes | None, root_path: str, kind: str) -> Client:
    client = Client()
    client.scope.update(path=path, raw_path=raw_path, root_path=root_path)
    if kind != "http":
        del client.scope["method"]
        client.scope.update(type="websocket", subprotocols=[])
        if kind == "websocket":
            client.scope["extensions"] = {"websocket.http.response": {}}
        client._inbox.clear()
        client._inbox.append({"type": "websocket.connect"})
    return client
