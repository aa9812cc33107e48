"""One replica of a deployment, without a cluster."""

import anyio
import grpc
import pytest

pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install '.[ray]'")

from asgi_agents import Agent, AgentResponse, ConfigureEvent, EventType, RequestHeadersEvent
from asgi_agents.protocol import Encoding, encode_event
from asgi_agents.protocol.codec import decode_value, encode_value
from asgi_agents.ray import proxied
from asgi_agents.ray.replica import AgentReplica
from asgi_agents.serve.grpc.service import ServedRpc, StatusError
from asgi_agents.transports.ray_client import RayQuestion, RayReply, config_id_of
from tests.serve.test_cancelled_inside import EVENTS, Cut, Form, forms


class Picky(Agent):
    """Has taken a part of a configuration when it refuses it."""

    def __init__(self) -> None:
        self.mode = ""

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        pass

    async def on_configure(self, event: ConfigureEvent) -> AgentResponse | None:
        self.mode = event.config["mode"]
        return AgentResponse.block(400, "unknown mode") if self.mode == "off" else None


async def ask(replica: AgentReplica, mode: str, *, sends: bool = True) -> RayReply:
    config = encode_value({"mode": mode}, Encoding.JSON, "config")
    question = RayQuestion(None, config_id_of(config), config if sends else None)
    reply = await replica.ask(encode_value(question, Encoding.MSGPACK, "question"))
    decoded: RayReply = decode_value(RayReply, reply, Encoding.MSGPACK, at="reply")
    return decoded


async def test_an_agent_that_has_refused_a_configuration_gets_the_one_before_again() -> None:
    agent = Picky()
    replica = AgentReplica(lambda: agent, None, 1)
    assert (await ask(replica, "on")).capabilities is not None
    assert (await ask(replica, "off")).refused
    # What it has now is for the agent to say: events are not judged by it.
    assert (await ask(replica, "on", sends=False)).needs_config
    assert (await ask(replica, "on")).capabilities is not None
    assert agent.mode == "on"


@forms
@pytest.mark.parametrize("event_type", EVENTS.keys() - {EventType.CONFIGURE})
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_hook_in_which_something_was_cancelled_has_failed(
    event_type: EventType, form: Form, anyio_backend: str
) -> None:
    replica = AgentReplica(lambda: Cut(event_type, form), None, 1)
    question = RayQuestion(encode_event(EVENTS[event_type], Encoding.MSGPACK), "", None)
    reply = await replica.ask(encode_value(question, Encoding.MSGPACK, "question"))
    decoded: RayReply = decode_value(RayReply, reply, Encoding.MSGPACK, at="reply")
    assert (decoded.fault or "").startswith("agent raised ")


@forms
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_configuration_in_which_something_was_cancelled_is_refused(form: Form, anyio_backend: str) -> None:
    replica = AgentReplica(lambda: Cut(EventType.CONFIGURE, form), None, 1)
    assert ((await ask(replica, "on")).refused or "").startswith("agent raised ")


class Messages:
    """Ray's stream of a client that sends nothing, and waits."""

    def __init__(self) -> None:
        self._ended = anyio.Event()

    async def __anext__(self) -> bytes:
        await self._ended.wait()
        raise AssertionError

    def is_cancelled(self) -> bool:
        return False


class Context:
    """Ray's context of a call."""

    code: grpc.StatusCode | None = None
    details = ""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def peer(self) -> str:
        return ""

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_was_answered_before_a_failure_is_sent_before_it(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxied, "_check_application", lambda _: None)

    async def method(rpc: ServedRpc) -> None:
        stream = rpc.stream()
        for _ in range(50):
            await stream.send(b"answer")
        raise StatusError("PERMISSION_DENIED", "not you")

    context = Context()
    answers: list[bytes] = []

    async def take() -> None:
        async for answer in proxied.answer_stream(method, Messages(), context):
            answers.append(answer)  # noqa: PERF401 - what comes before it raises counts

    with pytest.raises(proxied.CallEndedError):
        await take()
    assert answers == [b"answer"] * 50
    assert (context.code, context.details) == (grpc.StatusCode.PERMISSION_DENIED, "not you")
