"""``zentinel.agent.v2.AgentServiceV2``: any agent as one of the Rust proxy's, over gRPC."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from anyio import create_task_group

from ...agent import Agent
from ...errors import AgentProtocolError, printable
from ...protocol import (
    PROTOCOL_VERSION,
    AgentResponse,
    Answer,
    ConfigureEvent,
    EventType,
    reason_of,
)
from ...protocol.grpc import control
from ...protocol.grpc.answers import encode_answer, encode_no_verdict
from ...protocol.grpc.events import CARRIED, correlation_id_in, decode_event, event_type_of, is_event
from ...protocol.grpc.messages import PROCESS_STREAM, ProxyToAgent, parse
from ...protocol.responses import NOT_CONFIGURABLE
from ...protocol.stream import EVENT_NUMBERS, CallIds, Cancel, Framing, HealthState
from ..connection import Service
from ..dispatch import ServedCall
from ..framings import V2Connection
from ..held import EVENT_BYTES, MAX_HELD_BYTES
from ..hooks import Hooks, NoAnswer, require_agent, require_flag
from ..stream import capabilities_of, drained
from .service import GrpcService, ServedRpc

logger: Final = logging.getLogger("asgi_agents.serve")

# What a server takes that was not told otherwise is 4 MiB, with what is around the data.
_MAX_BODY_SIZE: Final = 4 * 1024 * 1024 - 64 * 1024


class AgentService(GrpcService):
    """An agent, as the Rust proxy and :class:`~asgi_agents.GrpcTransport` call it.

    The wire has no field for some of what an agent may answer: mutations of bodies, decisions about websocket messages,
    routing metadata, findings of guardrails. Such an answer is logged and fails the call, so that nothing passes that
    was to be changed. A failed call is answered with a block (503). :class:`~asgi_agents.GrpcTransport` knows it for a
    failure, to which the failure mode applies; other clients refuse the request.

    :param max_concurrency: how many hooks may be at work at a time; the rest wait.
    :param max_body_size: the bytes of a body that the agent takes at once.
    :param max_held_bytes: of events without an answer; see :func:`~asgi_agents.serve.serve_stream`.
    :param name: what the agent calls itself; its class' name by default.
    :param configurable: clients may configure the agent. False: a handshake with a configuration is refused.
    :raises ConfigurationError: for what is no agent, or not one that can be served.
    """

    name, _, _method = PROCESS_STREAM.strip("/").partition("/")

    def __init__(
        self,
        agent: Agent,
        *,
        max_concurrency: int = 100,
        max_body_size: int = _MAX_BODY_SIZE,
        max_held_bytes: int = MAX_HELD_BYTES,
        name: str | None = None,
        configurable: bool = True,
    ) -> None:
        require_agent("AgentService", agent)
        require_flag("AgentService", "configurable", configurable)
        self.streams = {self._method: self._process}
        self._hooks = Hooks(agent, name, configurable=configurable)
        self._capabilities = capabilities_of(self._hooks, max_concurrency, max_body_size)
        self._limits = (max_concurrency, max_body_size, max_held_bytes)
        self._configuration = _Configuration(self._hooks)
        self._service: Service | None = None
        silent = self._hooks.events - CARRIED - {EventType.CONFIGURE}
        if silent:
            logger.warning(
                "%s: clients are not told that it supports %s: gRPC has no message for its answers",
                self._hooks.name,
                ", ".join(sorted(silent)),
            )

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        max_concurrency, max_body_size, max_held_bytes = self._limits
        async with create_task_group() as tasks:
            self._service = service = Service(
                self._hooks, Framing.V2, self._capabilities, max_concurrency, max_body_size, tasks, max_held_bytes
            )
            try:
                yield
            finally:
                await service.stop()
                tasks.cancel_scope.cancel()

    async def drain(self) -> None:
        service = self._service
        assert service is not None
        service.drain()
        try:
            await drained(service)
        finally:
            for connection in list(service.connections):
                connection.close()

    async def _process(self, rpc: ServedRpc) -> None:
        assert self._service is not None
        connection = GrpcServedConnection(self._service, self._configuration)
        wire = rpc.wire(connection, half_open=True)
        connection.connected(wire)
        try:
            await wire.wait_closed()
        finally:
            connection.over()


class _Configuration:
    """What the agent was configured with last.

    Every stream brings a configuration, and a client has several: the hook is called when it is another one.
    """

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._taken: str | None = None
        self._lock = anyio.Lock()

    async def hand_over(self, text: str, agent_id: str) -> str:
        """Configure the agent, if it has a hook for it; returns why it does not take it, or an empty text.

        To be cancelled when the client has left.
        """
        try:
            if control.decode_config(text) is None:
                return ""
        except AgentProtocolError as exc:
            return str(exc)
        if not self._hooks.configurable:
            return NOT_CONFIGURABLE
        if EventType.CONFIGURE not in self._hooks.events:
            return ""
        async with self._lock:
            if text == self._taken:
                return ""
            # What the agent has after it has refused one, or was interrupted, is for the agent to say.
            self._taken = None
            # Decoded again: those that wait hold the text alone.
            refusal = await self._ask(ConfigureEvent(agent_id=agent_id, config=control.decode_config(text)))
            if not refusal:
                self._taken = text
            return refusal

    async def _ask(self, event: ConfigureEvent) -> str:
        refusal = ""

        def note(answer: Answer) -> bytes:
            nonlocal refusal
            if isinstance(answer, AgentResponse) and not answer.is_allow:
                refusal = f"it refuses its configuration: {printable(reason_of(answer))}"
            return b""

        try:
            await self._hooks.answer(event, note, {})
        except NoAnswer as exc:
            return str(exc)
        return refusal


class GrpcServedConnection(V2Connection):
    """A stream of events and their answers."""

    # Every client learns of it by the agent's health.
    _always_told = True

    def __init__(self, service: Service, configuration: _Configuration) -> None:
        super().__init__(service)
        self._configuration = configuration
        self._greeted = self._ready = self._half_closed = False
        # Stands for the handshake until it is answered: that is under way as an event is, and ends with the stream.
        self._greeting = ServedCall(self, CallIds(), EventType.CONFIGURE, None, True)
        self._config = self._client = ""
        # What has come before the handshake was answered.
        self._early: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._greeted and not self._ready:
            self._early.append(data)
            self.intake.add(EVENT_BYTES + len(data))
            self.intake.noted()
            return
        self._frame_bytes = len(data)
        try:
            self._received(data)
        except AgentProtocolError as exc:
            self._fail(str(exc))
        self.intake.noted()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.over()
            return
        # The client sends no more, and still reads the answers that it is owed.
        self._half_closed = True
        self._close_if_done()

    def over(self) -> None:
        """Nothing of the call is left."""
        super().connection_lost(None)

    def settle(self, call: ServedCall, answer: bytes) -> None:
        if call is self._greeting:
            self._handshake_settled(answer.decode())
            return
        super().settle(call, answer)
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._half_closed and not self.unanswered and not self._deaf and (self._ready or not self._greeted):
            self.close()

    def report_health(self) -> None:
        if self._ready and not self._deaf:
            state = HealthState.DRAINING if self._service.draining else HealthState.HEALTHY
            self._send(control.encode_health(self._service.capabilities.agent_id, state))

    # What the dispatcher calls

    def refusal(self, call: ServedCall, reason: str, error: str) -> bytes:
        return self._no_verdict(call, reason)

    def cancellation(self, call: ServedCall) -> bytes:
        return self._no_verdict(call, "cancelled")

    async def perform(self, call: ServedCall) -> bytes:
        if call is self._greeting:
            return (await self._configuration.hand_over(self._config, self._client)).encode()
        assert call.event is not None
        caller = {"traceparent": [call.ids.traceparent]} if call.ids.traceparent else {}
        try:
            return await self._service.hooks.answer(
                call.event, lambda answer: encode_answer(answer, call.ids.correlation_id), caller
            )
        except NoAnswer as exc:
            return self._no_verdict(call, str(exc))

    def _no_verdict(self, call: ServedCall, reason: str) -> bytes:
        if call is self._greeting:
            return reason.encode()
        return encode_no_verdict(reason, call.ids.correlation_id)

    # Messages

    def _received(self, frame: bytes) -> None:
        message = parse(ProxyToAgent, frame)
        kind = message.WhichOneof("message")
        if not self._ready:
            if kind != "handshake" or self._greeted:
                raise AgentProtocolError(f"expected a handshake, got {kind or 'an empty message'}")
            self._greeted = True
            self._introduced.set()
            self._shake_hands(message.handshake, len(frame))
        elif kind is None:
            # A message of a later version.
            pass
        elif is_event(kind):
            self._event_received(kind, message)
        elif kind == "ping":
            pong = control.encode_pong(message.ping)
            if self.stalled:
                # However many pings it sends, it gets one answer once it reads again.
                self._unsent_pong = pong
            else:
                self._send(pong)
        elif kind == "cancel":
            self._cancel(Cancel(correlation_id=correlation_id_in(message, kind)))
        elif kind == "guardrail":
            ids = CallIds(correlation_id_in(message, kind))
            self._malformed(ids, EventType.GUARDRAIL_INSPECT, AgentProtocolError("gRPC has no message for its answer"))
        # A configuration comes in the handshake. As an event the published agents don't answer it either.

    def _event_received(self, kind: str, message: Any) -> None:
        traceparent = message.request_headers.metadata.traceparent if kind == "request_headers" else ""
        ids = CallIds(correlation_id_in(message, kind), traceparent=traceparent)
        try:
            event = decode_event(message, kind)
        except AgentProtocolError as exc:
            self._malformed(ids, event_type_of(kind), exc)
        else:
            self._heard(ids, event)

    def _shake_hands(self, handshake: Any, size: int) -> None:
        """The client has introduced itself, with a message of so many bytes."""
        call = self._greeting
        call.size = EVENT_BYTES + size
        self._unanswered.add(call)
        self.intake.add(call.size)
        self._service.heard += 1
        versions = list(handshake.supported_versions)
        if PROTOCOL_VERSION not in versions:
            self._handshake_settled(f"version {PROTOCOL_VERSION} is supported, and none of {versions}")
            return
        self._config, self._client = handshake.config_json, handshake.proxy_id
        self._dispatcher.start(call)

    def _handshake_settled(self, error: str) -> None:
        """The agent has its configuration, or has refused it."""
        self._config = ""
        if self._lost:
            return
        self._unanswered.remove(self._greeting)
        early, self._early = self._early, []
        self.intake.add(-self._greeting.size - sum(EVENT_BYTES + len(data) for data in early))
        self.intake.noted()
        if self._deaf:
            return
        if error:
            logger.warning("%s: ended a stream: %.300r", self._service.hooks.name, error)
            self._send(control.encode_refused_handshake(error[:300]))
            self.close()
            return
        self._ready = True
        listed = self._service.hooks.events & CARRIED
        numbers = sorted(EVENT_NUMBERS[event_type] for event_type in listed)
        self._send(control.encode_handshake_response(self._service.capabilities, numbers))
        self.report_health()
        for data in early:
            self.data_received(data)
        self._close_if_done()

    def _send(self, frame: bytes) -> None:
        # Each message is one of gRPC's: they are not joined.
        self._write(frame)
