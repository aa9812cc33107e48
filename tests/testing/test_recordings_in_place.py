"""A recording of an agent takes the place of the agent, as a fake does, and answers as the agent did."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentResponse,
    ConfigureEvent,
    EventType,
    HeaderOp,
    RequestHeadersEvent,
    Transport,
    protect,
)
from asgi_agents.manager import registry_of
from asgi_agents.placement import middlewares_of
from asgi_agents.recording import RecordedAgent, record
from asgi_agents.testing import assert_blocked_by, assert_failed_closed, override_agents

from .apps import HEADS, NOBODY, left_as_it_was, shop


class Waf(Agent):
    """Decides by the target."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def on_configure(self, event: ConfigureEvent) -> None: ...

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        self.asked.append(event.uri)
        if "union" in event.uri:
            return AgentResponse.block(403, "not like this", headers={"x-rule": "942100"})
        return AgentResponse.allow(response_headers=[HeaderOp.set("x-judged", str(len(event.uri)))])


#: Of the agent that is replaced: what it is, and its configuration.
PLACES: dict[str, tuple[type[Agent] | str, dict[str, Any]]] = {
    "in the process": (Waf, {}),
    "in the process, with a configuration": (Waf, {"config": {"paranoia": 2}}),
    "elsewhere": (NOBODY, {"events": HEADS}),
    "elsewhere, with more events": (NOBODY, {"events": {*HEADS, EventType.RESPONSE_HEADERS, EventType.CONFIGURE}}),
}
TARGETS = ["/orders", "/orders?q=union", "/orders?q=lamp"]


def guarded(agent: Agent | Transport | str, **options: Any) -> Any:
    app = shop()
    protect(app, agents=[AgentConfig("waf", agent, **options)])
    return app


async def found(app: Any, targets: Sequence[str]) -> list[httpx.Response]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        return [await client.get(target) for target in targets]


def shown(responses: Sequence[httpx.Response]) -> list[object]:
    return [
        (each.status_code, each.text, each.headers.get("x-judged"), each.headers.get("x-rule")) for each in responses
    ]


async def recorded(path: Path) -> list[httpx.Response]:
    app = guarded(Waf())
    with record(app, path):
        return await found(app, TARGETS)


@pytest.mark.parametrize("place", PLACES)
async def test_it_answers_as_the_agent_did_wherever_that_is(tmp_path: Path, place: str) -> None:
    path = tmp_path / "traffic.jsonl"
    expected = shown(await recorded(path))
    given, options = PLACES[place]
    replaced = given if isinstance(given, str) else given()
    app = guarded(replaced, **options)
    with left_as_it_was(app):
        with override_agents(app, waf=RecordedAgent(path)):
            [middleware] = middlewares_of(app)
            client = registry_of(middleware.manager).guard("waf").client
            assert client.remote is isinstance(given, str)
            responses = await found(app, TARGETS)
            [other] = await found(app, ["/orders?q=new"])
        assert shown(responses) == expected
        assert_blocked_by(responses[1], "waf")
        assert_failed_closed(other, "waf")
    if isinstance(replaced, Waf):
        assert replaced.asked == []
        # It is asked again.
        assert shown(await found(app, TARGETS)) == expected


async def test_the_one_that_was_entered_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    expected = shown(await recorded(path))
    app, waf = guarded(NOBODY, events=HEADS), Waf()
    with override_agents(app, waf=waf):
        with override_agents(app, waf=RecordedAgent(path)):
            assert shown(await found(app, TARGETS)) == expected
        assert waf.asked == []
        assert shown(await found(app, TARGETS)) == expected
    assert waf.asked == TARGETS
