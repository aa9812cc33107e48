"""``ray://`` without Ray, what is no deployment, and what one is asked. tests/compat/test_ray.py has a cluster."""

import sys
from typing import Any

import anyio
import pytest

from asgi_agents import AgentConfig, AgentMiddleware, AgentResponse, ConfigurationError, EventType
from asgi_agents.observability.correlation import outside_name
from asgi_agents.protocol import Encoding, decode_event, encode_answer
from asgi_agents.protocol.codec import decode_value, encode_value
from asgi_agents.protocol.stream import AgentCapabilities, correlation_id_of
from asgi_agents.transports.ray_client import RayClient, RayQuestion, RayReply, config_id_of
from tests.support.asgi import App, Client


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with pytest.raises(ConfigurationError, match=r"^AgentConfig\('waf'\): .*pip install 'asgi-agents\[ray\]'$"):
        AgentConfig("waf", "ray://guards/Waf")


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("ray://", False),
        ("ray://guards", False),
        ("ray://guards/", False),
        ("ray:///Waf", False),
        ("ray://guards/Waf/more", False),
        ("ray://head:10001", True),
    ],
)
def test_what_is_no_deployment_is_refused(given: str, hint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "ray.serve"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    with pytest.raises(ConfigurationError, match="expected ray://application/deployment") as caught:
        AgentConfig("waf", given)
    assert ("for ray.init" in str(caught.value)) == hint


def test_nothing_can_be_learnt_from_the_name_of_a_configuration() -> None:
    assert config_id_of(b'{"key": "secret"}') != config_id_of(b'{"key": "other"}')
    assert b"secret" not in config_id_of(b'{"key": "secret"}').encode()


def test_what_crosses_says_nothing_in_its_repr() -> None:
    assert "secret" not in repr(RayQuestion(b"secret", "id", b"secret"))
    assert "secret" not in repr(RayReply(answer=b"secret"))


class Link:
    """Carries questions to no deployment, but notes the session and the event of each, and replies."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.cancelled: list[str] = []
        self.replies = True

    async def ask(self, data: bytes, session_id: str, deadline: float) -> object:
        question = decode_value(RayQuestion, data, Encoding.MSGPACK)
        if question.event is None:
            reply = RayReply("1", capabilities=AgentCapabilities(agent_id="waf"))
            return encode_value(reply, Encoding.MSGPACK, "reply")
        self.asked.append((session_id, correlation_id_of(decode_event(question.event, Encoding.MSGPACK))))
        if not self.replies:
            try:
                await anyio.sleep_forever()
            finally:
                self.cancelled.append(session_id)
        reply = RayReply("1", answer=encode_answer(AgentResponse.allow(), Encoding.MSGPACK))
        return encode_value(reply, Encoding.MSGPACK, "reply")

    async def aclose(self) -> None:
        pass

    async def retire(self) -> None:
        pass


class Deployment:
    """A deployment at the other end of a link, for which Ray need not be installed."""

    kind = "ray"
    remote = True
    events: frozenset[EventType] | None = None
    carries = frozenset(EventType)
    learns_events = True

    def __init__(self) -> None:
        self.link = Link()

    def bind(
        self, agent_id: str, *, events: frozenset[EventType] | None, config: Any, max_concurrent_calls: int
    ) -> RayClient:
        return RayClient(self.link, "ray://guards/Waf", events, config)


async def test_events_and_sessions_have_the_name_that_no_other_process_has_for_a_connection() -> None:
    deployment = Deployment()
    link = deployment.link
    middleware = AgentMiddleware(App(), agents=[AgentConfig("waf", deployment, timeout=100.0, circuit_breaker=None)])
    await Client(headers=[(b"x-request-id", b"given")]).call(middleware)
    assert len(link.asked) > 1
    assert set(link.asked) == {(outside_name("given"),) * 2}

    link.replies = False
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Client(headers=[(b"x-request-id", b"later")]).call, middleware)
        await anyio.wait_all_tasks_blocked()
        link.replies = True
        tasks.cancel_scope.cancel()
    assert link.cancelled == [outside_name("later")]
