"""Agents that are deployments on Ray Serve: what their replicas are asked, whatever carries it there.

The other end is :mod:`asgi_agents.ray`. An event and its answer cross as bytes of the protocol's msgpack, so that both
ends check what they get as they do on any other transport. Nothing here needs Ray.
"""

import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Protocol, cast

from msgspec.structs import replace

from ..concurrency.one_at_a_time import OneAtATime
from ..errors import AgentError, AgentProtocolError, EventTooLargeError, printable
from ..observability.endpoints import EndpointStatistics
from ..observability.trace_context import inject_trace_context
from ..protocol import Answer, Encoding, Event, EventType, decode_answer, encode_event
from ..protocol.codec import decode_value, encode_value
from ..protocol.redacted_repr import RedactedRepr, redacted_repr, size_of
from ..protocol.stream import AgentCapabilities, correlation_id_of
from .base import AgentClient


class RayQuestion(RedactedRepr, frozen=True, array_like=True):
    """What a replica is asked: an event, or, without one, what its agent is.

    ``config_id`` names the configuration that the agent is to have, and is empty where it needs none. ``config`` is
    that configuration, in JSON. It is sent where a replica has said that it has another one.
    """

    event: bytes | None
    config_id: str = ""
    config: bytes | None = None
    trace_context: Mapping[str, list[str]] = {}

    def __repr__(self) -> str:
        return redacted_repr(self, event=size_of(self.event or b""), config="…")


class RayReply(RedactedRepr, frozen=True, array_like=True):
    """What a replica says: one of these.

    ``fault`` is why there is no answer, ``refused`` why the agent does not take its configuration. ``version`` names
    what the agent is, beside any of them: it is another after an update that makes the agent hear other events.
    """

    version: str = ""
    answer: bytes | None = None
    capabilities: AgentCapabilities | None = None
    needs_config: bool = False
    refused: str | None = None
    fault: str | None = None

    def __repr__(self) -> str:
        return redacted_repr(self, answer=size_of(self.answer or b""))


class RayLink(Protocol):
    """What carries questions to the replicas of a deployment."""

    async def ask(self, data: bytes, session_id: str, deadline: float) -> object:
        """What a replica has replied to the question ``data``. When this is cancelled, so is the call at the replica.

        :param session_id: questions that have the same go to the same replica, while that lives; empty: to any.
        :param deadline: when the guard cancels it, on :func:`time.monotonic`.
        :raises AgentError: there is no reply.
        """
        ...

    async def aclose(self) -> None:
        """Close what belongs to the running event loop. A later :meth:`ask` opens it again."""
        ...

    async def retire(self) -> None:
        """Close what belongs to any event loop, for good."""
        ...


class RayClient(AgentClient):
    """One agent that is a deployment.

    :param link: carries the questions.
    :param address: where the deployment is, for messages.
    """

    kind = "ray"
    remote = True
    configures_itself = True

    def __init__(self, link: RayLink, address: str, events: frozenset[EventType] | None, config: Any) -> None:
        self.address = address
        self.hears = frozenset(EventType) if events is None else events
        self._events = events
        self._link = link
        self._config = _Config(config)
        self._fault = ""
        #: What the agent is, as its replicas name it; None until one has said it.
        self._version: str | None = None
        self._asking = OneAtATime()
        self._in_flight = 0

    def statistics(self) -> tuple[Sequence[EndpointStatistics], int]:
        state = "up" if self._version is not None and not self._fault else "down" if self._fault else "connecting"
        # Ray keeps the connections to the replicas, and tells nothing of them.
        connections = 1 if state == "up" else 0
        return (
            EndpointStatistics(
                address=self.address,
                state=cast(Any, state),
                connections=connections,
                in_flight=self._in_flight,
                fault=self._fault,
            ),
        ), 0

    # Calls

    async def call(self, event: Event, deadline: float = math.inf) -> Answer | None:
        if self._version is None:
            await self.connect()
        carrier: dict[str, str] = {}
        inject_trace_context(carrier)
        question = RayQuestion(
            encode_event(event, Encoding.MSGPACK),
            self._config.id,
            trace_context={name: [value] for name, value in carrier.items()},
        )
        reply = await self._ask(question, self._config, correlation_id_of(event), deadline)
        if reply.fault is not None:
            raise AgentError(printable(reply.fault))
        if reply.answer is None:
            raise AgentProtocolError("answered without an answer")
        if reply.version != self._version:
            # It was updated: the next call asks first what it is now.
            self._version = None
        return decode_answer(reply.answer, Encoding.MSGPACK, event.event_type)

    # Life

    async def connect(self) -> None:
        while self._version is None:
            under_way = self._asking.begin()
            if under_way is not None:
                await under_way.wait()
                continue
            try:
                await self._learn(self._config)
            finally:
                self._asking.end()

    async def push_config(self, config: Any) -> None:
        # Replicas that nobody asks in the meantime take it with their next event.
        pushed = _Config(config)
        await self._learn(pushed)
        self._config = pushed

    async def aclose(self) -> None:
        self._version = None
        await self._link.aclose()

    async def retire(self) -> None:
        await self._link.retire()

    async def _learn(self, config: "_Config") -> None:
        reply = await self._ask(RayQuestion(None, config.id), config, "", math.inf)
        if reply.capabilities is None:
            raise AgentError(printable(reply.fault or "says nothing of its capabilities"))
        self.capabilities = (reply.capabilities,)
        limits = reply.capabilities.limits
        self.max_body_size = limits.max_body_size if limits.max_body_size > 0 else None
        if self._events is None:
            self.hears = reply.capabilities.events or self.hears
        came_up, self._version = self._version is None, reply.version
        self.on_change(came_up)

    async def _ask(self, question: RayQuestion, config: "_Config", session_id: str, deadline: float) -> RayReply:
        """What a replica replies, once it has the configuration."""
        reply = await self._send(question, session_id, deadline)
        if reply.needs_config:
            question = replace(question, config=config.encoded)
            reply = await self._send(question, session_id, deadline)
            if reply.needs_config:
                raise AgentProtocolError("asks for the configuration that it was sent")
        if reply.refused is not None:
            raise AgentError(f"it refused its configuration: {printable(reply.refused)}")
        return reply

    async def _send(self, question: RayQuestion, session_id: str, deadline: float = math.inf) -> RayReply:
        data = encode_value(question, Encoding.MSGPACK, "question")
        self._in_flight += 1
        try:
            returned = await self._link.ask(data, session_id, deadline)
        except EventTooLargeError:
            # It says nothing of how the deployment is.
            raise
        except AgentError as exc:
            self._note(str(exc))
            raise
        finally:
            self._in_flight -= 1
        self._note("")
        if not isinstance(returned, bytes):
            raise AgentProtocolError(f"answered with {type(returned).__name__}, expected bytes of an agent deployment")
        reply: RayReply = decode_value(RayReply, returned, Encoding.MSGPACK, at="reply")
        return reply

    def _note(self, fault: str) -> None:
        came_up = bool(self._fault) and not fault
        self._fault = fault
        if came_up:
            self.on_change(True)


class _Config:
    """A configuration as it is sent, and a short name for it; both are empty where there is none."""

    def __init__(self, config: Any) -> None:
        self.encoded = None if config is None else encode_value(config, Encoding.JSON, "config")
        self.id = "" if self.encoded is None else config_id_of(self.encoded)


def config_id_of(encoded: bytes) -> str:
    """The name of a configuration: the same for the same bytes, and nothing can be learnt from it."""
    return blake2b(encoded, digest_size=16).hexdigest()
