"""A deployment on Ray Serve behind its gRPC proxy, with a server in the proxy's place. tests/compat has a real one."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest

pytest.importorskip("grpc", reason="grpcio is not installed: pip install '.[grpc]'")

from asgi_agents import AgentConfig, EventType, GrpcTransport
from asgi_agents.errors import (
    AgentConnectionError,
    AgentError,
    AgentProtocolError,
    AgentTimeoutError,
    AgentUnavailableError,
    ConfigurationError,
    EventTooLargeError,
)
from asgi_agents.protocol import AgentResponse, Encoding, decode_event, encode_answer
from asgi_agents.protocol.codec import decode_value, encode_value
from asgi_agents.protocol.stream import AgentCapabilities
from asgi_agents.serve import serve_grpc
from asgi_agents.serve.grpc.service import GrpcService, StatusError
from asgi_agents.transports.grpc.ray import SERVICE, as_metadata
from asgi_agents.transports.ray_client import RayQuestion, RayReply
from tests.transports.stream.pools import until
from tests.transports.test_forward_auth import head


class Deployment(GrpcService):
    """Answers as a replica does, or with a status.

    :param status: in the place of answers to events.
    """

    name = SERVICE

    def __init__(self, status: StatusError | None = None, *, silent: bool = False) -> None:
        self.unary = {"Ask": self._ask}
        self.metadata: list[dict[str, Any]] = []
        self.cancelled = 0
        self._status = status
        self._silent = silent

    async def _ask(self, message: bytes, rpc: Any) -> bytes:
        self.metadata.append(dict(rpc.metadata))
        question: RayQuestion = decode_value(RayQuestion, message, Encoding.MSGPACK, at="question")
        if question.event is None:
            capabilities = AgentCapabilities(supported_events=[1, 2])
            return encode_value(RayReply("v1", capabilities=capabilities), Encoding.MSGPACK, "reply")
        if self._status is not None:
            raise self._status
        if self._silent:
            try:
                await anyio.sleep_forever()
            finally:
                self.cancelled += 1
        event = decode_event(question.event, Encoding.MSGPACK)
        answer = encode_answer(AgentResponse.block(403, event.event_type), Encoding.MSGPACK)
        return encode_value(RayReply("v1", answer), Encoding.MSGPACK, "reply")


@asynccontextmanager
async def client_of(deployment: GrpcService, **settings: Any) -> AsyncIterator[Any]:
    async with anyio.create_task_group() as tasks:
        address = await tasks.start(partial(serve_grpc, [deployment], "127.0.0.1:0"))
        metadata = {"application": "guards", "authorization": "Bearer it"}
        given = {"protocol": "ray", "metadata": metadata, **settings}
        client = GrpcTransport(f"grpc://{address.rpartition('/')[2]}", **given).bind("guard")
        try:
            yield client
        finally:
            await client.retire()
        tasks.cancel_scope.cancel()


async def test_it_is_asked_what_it_is_and_then_about_events_by_the_request() -> None:
    async with client_of(deployment := Deployment()) as client:
        answer = await client.call(head())
        assert answer.decision.body == "request_headers"
        assert client.hears == {EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK}
        (endpoint,), _ = client.statistics()
        assert endpoint.state == "up"
    about, event = deployment.metadata
    assert (about["application"], about["authorization"]) == ("guards", "Bearer it")
    assert "session_id" not in about
    assert event["session_id"] == head().metadata.correlation_id


@pytest.mark.parametrize(
    ("status", "kind", "told"),
    [
        (StatusError("NOT_FOUND", "no"), AgentConnectionError, "Ray Serve has no such application with a route"),
        (StatusError("RESOURCE_EXHAUSTED", "busy"), AgentUnavailableError, "the deployment's queue is full"),
        (StatusError("RESOURCE_EXHAUSTED", "larger than max. 9"), EventTooLargeError, "does not take a message of"),
        (StatusError("UNAVAILABLE", "secret"), AgentConnectionError, "it can't be reached"),
        (StatusError("UNIMPLEMENTED", "secret"), AgentProtocolError, "it does not know the method"),
        (StatusError("INTERNAL", "secret"), AgentError, "it ended the call with the status INTERNAL"),
        (StatusError("DEADLINE_EXCEEDED", "secret"), AgentTimeoutError, "no answer"),
    ],
)
async def test_statuses_of_the_proxy_are_failures(status: StatusError, kind: type[AgentError], told: str) -> None:
    async with client_of(Deployment(status)) as client:
        with pytest.raises(kind, match=told) as raised:
            await client.call(head())
        assert "secret" not in str(raised.value)


async def test_a_call_that_is_cancelled_is_cancelled_there() -> None:
    async with client_of(deployment := Deployment(silent=True)) as client:
        await client.connect()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call, head())
            await until(lambda: len(deployment.metadata) == 2)
            tasks.cancel_scope.cancel()
        await until(lambda: deployment.cancelled == 1)


async def test_a_longer_event_is_not_sent() -> None:
    async with client_of(deployment := Deployment(), max_event_bytes=300) as client:
        with pytest.raises(EventTooLargeError, match="max_event_bytes=300"):
            await client.call(head(headers={"x-long": ["x" * 300]}), math.inf)
        # It says nothing of the deployment.
        (endpoint,), _ = client.statistics()
        assert (endpoint.state, endpoint.fault) == ("up", "")
    assert len(deployment.metadata) == 1


@pytest.mark.parametrize(
    ("metadata", "config", "told"),
    [
        (None, None, "protocol='ray' without an application, expected metadata={'application': …}"),
        ({"application": "guards"}, {"secret": 1}, "expected agent_deployment(config=…)"),
    ],
)
def test_what_cant_work_is_refused(metadata: Any, config: Any, told: str) -> None:
    transport = GrpcTransport("grpc://head:9000", protocol="ray", metadata=metadata)
    with pytest.raises(ConfigurationError) as raised:
        transport.bind("guard", config=config)
    assert str(raised.value).startswith("AgentConfig('guard'): ")
    assert told in str(raised.value)
    assert "secret" not in str(raised.value)


def test_an_agents_events_need_not_be_named() -> None:
    transport = GrpcTransport("grpc://head:9000", protocol="ray", metadata={"application": "guards"})
    assert AgentConfig("guard", transport).events is None


@pytest.mark.parametrize("given", ["a b", "\u00e9", "x" * 129, "a\n", "\ud800"])
def test_ids_that_metadata_can_not_carry_have_a_short_name_there(given: str) -> None:
    assert as_metadata("req-1") == "req-1"
    named = as_metadata(given)
    assert named.isascii()
    assert named.isalnum()
    assert named == as_metadata(given) != as_metadata(given + "x")
