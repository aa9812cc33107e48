"""Our end before an agent that answers as it finishes, and says of no answer which event it is to."""

from typing import Any

import anyio
import pytest

from asgi_agents import AgentConfig, AgentManager, AgentMiddleware, EventType, StreamTransport
from tests.peers.typescript_kit import TypeScriptKit
from tests.transports.stream.calls import PATIENCE
from tests.transports.stream.pools import get

EVENTS = frozenset({EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK, EventType.RESPONSE_HEADERS})


async def app(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"served"})


@pytest.mark.parametrize("connections", [None, 1, 3])
@pytest.mark.parametrize("config", [None, {"level": 3}])
async def test_every_request_gets_its_own_verdict(config: Any, connections: int | None) -> None:
    kit = TypeScriptKit()
    transport = StreamTransport(kit.url, framing="envelope", connections=connections, drain_timeout=0.01)
    agent = AgentConfig(
        "waf",
        transport,
        events=EVENTS,
        config=config,
        timeout=PATIENCE,
        chunk_timeout=PATIENCE,
        require_at_startup=True,
    )
    statuses: dict[str, int] = {}
    async with kit.listening(), AgentManager([agent]) as manager:
        guarded = AgentMiddleware(app, manager=manager)

        async def ask(path: str) -> None:
            statuses[path] = (await get(guarded, path, body=b"\x00\xff"))[0]

        async with anyio.create_task_group() as requests:
            for number in range(14):
                requests.start_soon(ask, f"/good/{number}")
                requests.start_soon(ask, f"/bad/{number}")

    assert len(statuses) == 28
    assert {path: status for path, status in statuses.items() if status != (403 if "bad" in path else 200)} == {}
    # One call at a time, or it couldn't be told which event an answer is to.
    assert kit.most_at_a_time == 1
    # All events of a request on one connection, or it has forgotten what they are about.
    assert kit.lost == []
    bodies = {payload["data"] for event_type, payload in kit.events if event_type == "request_body_chunk"}
    assert bodies == {"AP8="}
    if config is None:
        assert kit.configurations == []
    else:
        assert {each["agent_id"] for each in kit.configurations} == {"waf"}
        assert all(each["config"] == config for each in kit.configurations)
