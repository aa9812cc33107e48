"""Headers that agents read of the client, and that the app sees as agents set them: ``AgentConfig.replaces``."""

from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from asgi_agents import Agent, AgentConfig, AgentMiddleware, AgentResponse, HeaderOp, RequestHeadersEvent
from asgi_agents.agents import ApiKey, BasicAuth, hash_password
from tests.support.asgi import Client


class Exchanging(Agent):
    """Exchanges one credential for another, or fails."""

    replaced_headers = ("Authorization",)

    def __init__(self, inner: str | None = None, *, fails: bool = False) -> None:
        self._inner = inner
        self._fails = fails
        self.seen: list[str | None] = []

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        self.seen.append(event.header("authorization"))
        if self._fails:
            raise RuntimeError("it has failed")
        if self._inner is None:
            return None
        return AgentResponse.allow(request_headers=[HeaderOp.set("authorization", self._inner)])


class Seeing(Agent):
    def __init__(self) -> None:
        self.seen: list[str | None] = []

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        self.seen.append(event.header("authorization"))


async def past(*configs: AgentConfig) -> list[str]:
    """What the app sees of a client's ``authorization: outer``."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(value.decode() for name, value in scope["headers"] if name.lower() == b"authorization")

    await Client(headers=[(b"Authorization", b"outer")]).call(AgentMiddleware(app, agents=configs))
    return seen


@pytest.mark.parametrize(
    ("agent", "expected"),
    [(Exchanging("inner"), "inner"), (Exchanging(), None), (Exchanging(fails=True), None)],
    ids=["set", "left out", "failed"],
)
async def test_agents_that_come_after_it_see_what_the_app_will_see(agent: Exchanging, expected: str | None) -> None:
    agent.seen.clear()
    beside, after = Seeing(), Seeing()
    seen = await past(
        AgentConfig("exchange", agent, failure_mode="open"),
        AgentConfig("beside", beside),
        AgentConfig("after", after, after=["exchange"]),
    )
    assert (agent.seen, beside.seen, after.seen) == (["outer"], ["outer"], [expected])
    assert seen == ([] if expected is None else [expected])


async def test_a_shadow_agent_takes_nothing_from_the_app() -> None:
    assert await past(AgentConfig("exchange", Exchanging("inner"), enforce=False)) == ["outer"]


async def test_another_agent_may_set_it_too() -> None:
    class Other(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
            return AgentResponse.allow(request_headers=[HeaderOp.set("authorization", "other")])

    exchange = AgentConfig("exchange", Exchanging(fails=True), failure_mode="open")
    assert await past(exchange, AgentConfig("other", Other())) == ["other"]


def test_ready_made_agents_replace_what_they_take_out() -> None:
    def names(agent: Any) -> tuple[set[str], set[str]]:
        config = AgentConfig("a", agent)
        return set(config.sets), set(config.replaces)

    assert names(ApiKey({"key": "alice"})) == ({"x-user"}, {"x-api-key"})
    assert names(ApiKey({"key": "alice"}, user_header="authorization")) == (set(), {"authorization", "x-api-key"})
    assert names(BasicAuth({"alice": hash_password("secret")})) == ({"x-user"}, {"authorization"})
