"""An agent as an Envoy external processor: ``envoy.service.ext_proc.v3.ExternalProcessor``."""

import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, Final, Literal

from anyio import CancelScope
from opentelemetry import trace
from starlette.types import ASGIApp

from ...agent import Agent
from ...audit import Auditor
from ...config import AgentConfig
from ...errors import AgentProtocolError, ConfigurationError
from ...exchange.request_form import REQUEST_KINDS
from ...guardrails import Guardrail, TextGuardrail
from ...guardrails.slots import KINDS, Kind
from ...messages.throttle import Throttle
from ...middleware import AgentMiddleware
from ...observability.tracing import serving_span
from ...policy import BodyMode
from ...protocol import Answer, Event, EventType
from ...protocol.stream import correlation_id_of
from ...transports.grpc.ext_proc_messages import ProcessingMode, decode, messages, side_of
from ...transports.grpc.ext_proc_sides import Held, TwoSides
from ...transports.grpc.transport import MAX_EVENT_BYTES
from ...transports.in_process import InProcessTransport
from ..held import MAX_HELD_BYTES
from ..hooks import require_agent, require_positive
from .ext_proc_exchange import FailedError, ServedExchange, Wanted, upstream
from .service import Beginnings, GrpcService, ServedRpc, StatusError, values_of

logger: Final = logging.getLogger("asgi_agents.serve")

#: Bytes of a body that is judged as a whole.
MAX_BODY_BYTES: Final = 10 * 1024 * 1024

#: Seconds that the first message of a stream may take once the server shuts down.
FIRST_MESSAGE: Final = 1.0

_TRACE_CONTEXT: Final = ("traceparent", "tracestate")
# Seconds. Envoy's filter has a timeout for each message, and ends the stream, and so the hook, when that has passed.
_NO_DEADLINE: Final = 300.0
_REQUESTS: Final = frozenset({EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK})
# The events of a request that Envoy does not show, by the first message that it sends.
_UNSEEN: Final = {"request_headers": frozenset[EventType](), "request_body": frozenset({EventType.REQUEST_HEADERS})}
# Without their answers, the headers of a response can't be what the agent makes them.
_MAY_CHANGE_RESPONSES: Final = frozenset(
    {
        EventType.REQUEST_BODY_CHUNK,
        EventType.RESPONSE_HEADERS,
        EventType.RESPONSE_BODY_CHUNK,
        EventType.REQUEST_COMPLETE,
    }
)
# By event, the place of its mode in what Envoy says.
_BODIES: Final = {EventType.REQUEST_BODY_CHUNK: 0, EventType.RESPONSE_BODY_CHUNK: 1}
_FIELDS: Final = ("request_body_mode", "response_body_mode")
_OF_RESPONSES: Final = KINDS - {"input"}
# The modes in which text can be held back until it was judged, and the head with it.
_HOLDING: Final = frozenset({ProcessingMode.BUFFERED, ProcessingMode.FULL_DUPLEX_STREAMED})
_KNOWN: Final = _HOLDING | {ProcessingMode.NONE, ProcessingMode.STREAMED, ProcessingMode.BUFFERED_PARTIAL}

# The trace context that came with the stream whose exchange is served here.
_carrier: Final[ContextVar[Mapping[str, list[str]]]] = ContextVar("asgi_agents_ext_proc_carrier")


class ExtProcService(GrpcService):
    """Serves ``agent`` to Envoy's ``envoy.filters.http.ext_proc``. To be given to :func:`serve_grpc`.

    Each exchange passes an :class:`~asgi_agents.AgentMiddleware` that has this agent alone, so that what its answers
    mean is what they mean there. What bodies it is shown, and how, is for the filter's ``processing_mode`` to say:
    ``BUFFERED`` is the mode ``buffer``, all others are ``stream``. A :class:`~asgi_agents.guardrails.TextGuardrail`
    judges the text of requests and responses whose mode is ``FULL_DUPLEX_STREAMED`` or ``BUFFERED``.

    Where the agent fails, or can't judge what Envoy shows, the stream ends with the status ``INTERNAL`` or
    ``FAILED_PRECONDITION``. What that means for the exchange is for the filter's ``failure_mode_allow`` to say.

    :param judges: the kinds of text that a text guardrail judges. None: all.
    :param body_access: ``"write"``: the agent may change bodies. ``"read"``: it does not, so that headers about their
        content (``etag``, ``digest``) stay also where a body is streamed.
    :param max_concurrency: how many hooks may be at work at a time; the rest wait.
    :param max_body_bytes: a longer body that is to be judged as a whole is refused.
    :param max_held_bytes: the bytes of messages that the agent has not judged, over all streams. Where there are more,
        each stream has to wait until most of its own are judged. Where there are twice as many, and 4 MiB, the stream
        of which more come is refused with ``RESOURCE_EXHAUSTED``.
    :param name: what the agent calls itself; its class' name by default.
    :raises ConfigurationError: for arguments that can't work.
    """

    name = "envoy.service.ext_proc.v3.ExternalProcessor"

    def __init__(
        self,
        agent: Agent,
        *,
        judges: Iterable[Kind] | None = None,
        body_access: Literal["read", "write"] = "write",
        max_concurrency: int = 100,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_held_bytes: int = MAX_HELD_BYTES,
        name: str | None = None,
    ) -> None:
        require_agent("ExtProcService", agent)
        require_positive("ExtProcService", "max_concurrency", max_concurrency)
        require_positive("ExtProcService", "max_body_bytes", max_body_bytes)
        require_positive("ExtProcService", "max_held_bytes", max_held_bytes)
        self._agent_name = type(agent).__name__ if name is None else name
        self._transport = _ServedTransport(agent, self._agent_name)
        self._events = agent.events
        self._guardrails: tuple[Guardrail, ...] = ()
        if isinstance(agent, TextGuardrail):
            self._guardrails = (Guardrail(self._agent_name, on=KINDS if judges is None else judges),)
        elif judges is not None:
            raise ConfigurationError(
                f"ExtProcService: judges, expected None or a TextGuardrail for an agent, and not {type(agent).__name__}"
            )
        self._body_access = body_access
        self._max_concurrency = max_concurrency
        self._max_body_bytes = max_body_bytes
        self._apps: dict[tuple[int, int, frozenset[EventType]], ASGIApp] = {}
        self._held = Held(max_held_bytes, 2 * max_held_bytes + MAX_EVENT_BYTES)
        self._complaints = Throttle()
        # The modes of Envoy's in which it is shown all that it hears.
        self._sound: set[tuple[int, ...]] = set()
        self._wanted = self._what_is_wanted()
        self._beginnings = Beginnings(FIRST_MESSAGE)
        self.streams = {"Process": self._process}
        # What can't work is seen now, and not with the first request.
        self._app(ProcessingMode.BUFFERED, ProcessingMode.BUFFERED, "request_headers")

    async def drain(self) -> None:
        self._beginnings.drain()

    async def _process(self, rpc: ServedRpc) -> None:
        with CancelScope() as scope:
            await self._exchange(rpc, scope.cancel)
        if scope.cancel_called:
            fault = f"all streams together hold more than {self._held.most_of_all} bytes"
            self._complain(fault)
            raise StatusError("RESOURCE_EXHAUSTED", fault)

    async def _exchange(self, rpc: ServedRpc, refuse: Callable[[], object]) -> None:
        stream = _Stream(rpc, self._held, refuse)
        exchange = ServedExchange(stream.incoming, stream.write)
        token = _carrier.set(values_of(rpc.metadata, _TRACE_CONTEXT))
        try:
            scope = await self._beginnings.wait_for(exchange.begin)
            if scope is not None:
                if exchange.modes not in self._sound:
                    self._check(*exchange.modes)
                app = self._app(*exchange.modes, exchange.begins_with)
                await exchange.run(app, scope, self._wanted)
        except FailedError as exc:
            if not exc.logged:
                self._complain(str(exc))
            raise StatusError("INTERNAL", "the agent has failed") from exc
        except AgentProtocolError as exc:
            raise StatusError("INVALID_ARGUMENT", str(exc)) from exc
        finally:
            stream.incoming.discard()
            _carrier.reset(token)

    def _check(self, *modes: int) -> None:
        """Refuse what would pass unjudged, and say in the log what Envoy does not show."""
        judged, complaints = self._judged, []
        for field, mode, kinds in zip(_FIELDS, modes, (REQUEST_KINDS, _OF_RESPONSES), strict=True):
            fault = f"{field} is {ProcessingMode.BodySendMode.Name(mode)}"
            if mode not in _KNOWN:
                raise self._refusal(f"{fault}, which is not supported")
            if not judged or mode in _HOLDING:
                continue
            fault += ", and text is judged where it is FULL_DUPLEX_STREAMED or BUFFERED (Envoy says which from 1.34 on)"
            if mode != ProcessingMode.NONE:
                raise self._refusal(fault)
            if judged & kinds:
                complaints.append(f"{fault}: none of it is judged")
        for event_type, index in _BODIES.items():
            if event_type in self._events and modes[index] == ProcessingMode.NONE:
                complaints.append(f"Envoy's {_FIELDS[index]} is NONE: its hook for {event_type} is not called")
        for complaint in complaints:
            self._complain(complaint)
        if not complaints:
            self._sound.add(modes)

    def _refusal(self, fault: str) -> StatusError:
        self._complain(fault)
        return StatusError("FAILED_PRECONDITION", fault)

    @property
    def _judged(self) -> frozenset[Kind]:
        return frozenset().union(*(guardrail.kinds for guardrail in self._guardrails))

    def _complain(self, fault: str) -> None:
        if self._complaints.due(fault):
            logger.warning("%s: %s (logged once a minute)", self._agent_name, fault)

    def _what_is_wanted(self) -> Wanted:
        judged, hears = self._judged, self._events
        return Wanted(
            response_headers=bool(judged or hears & _MAY_CHANGE_RESPONSES),
            response_head_events=EventType.RESPONSE_HEADERS in hears,
            request_body=bool(judged) or EventType.REQUEST_BODY_CHUNK in hears,
            response_body=bool(judged & _OF_RESPONSES) or EventType.RESPONSE_BODY_CHUNK in hears,
            upgrades=not judged and EventType.WEBSOCKET_FRAME not in hears,
        )

    def _app(self, request_mode: int, response_mode: int, begins_with: str) -> ASGIApp:
        unseen = _UNSEEN.get(begins_with, _REQUESTS)
        key = request_mode, response_mode, unseen
        app = self._apps.get(key)
        if app is None:
            app = self._apps[key] = self._make(request_mode, response_mode, unseen)
        return app

    def _make(self, request_mode: int, response_mode: int, missing: frozenset[EventType]) -> ASGIApp:
        unseen = {EventType.WEBSOCKET_FRAME, *missing}
        for event_type, index in _BODIES.items():
            if (request_mode, response_mode)[index] == ProcessingMode.NONE:
                unseen.add(event_type)
        events = self._events - unseen
        bodies = events & _BODIES.keys()
        agent = AgentConfig(
            self._agent_name,
            self._transport,
            events=events,
            timeout=_NO_DEADLINE,
            chunk_timeout=_NO_DEADLINE,
            max_concurrent_calls=self._max_concurrency,
            circuit_breaker=None,
            body_access=self._body_access if bodies else "read",
            may_set_host=bool(events & _REQUESTS),
            **_settings("request", request_mode, EventType.REQUEST_BODY_CHUNK in events, self._max_body_bytes),
            **_settings("response", response_mode, EventType.RESPONSE_BODY_CHUNK in events, self._max_body_bytes),
        )
        return _ServedMiddleware(
            upstream,
            agents=[agent],
            guardrails=self._guardrails,
            # An exchange that was stopped has nothing to clean up.
            stop_grace=0.0,
            tracer_provider=trace.NoOpTracerProvider(),
        )


class _ServedMiddleware(AgentMiddleware):
    """Envoy has the audit in its dynamic metadata, and who serves agents in other ways writes no records either.

    The log of a served agent would have a line for each exchange, which takes more time than all the rest.
    """

    _make_auditor = Auditor.none


class _Stream:
    """The messages of one call."""

    def __init__(self, rpc: ServedRpc, held: Held, refuse: Callable[[], object]) -> None:
        self.incoming: TwoSides[Any] = TwoSides(
            lambda: self._wire.pause_reading(), lambda: self._wire.resume_reading(), held, refuse
        )
        self._wire = rpc.wire(self, half_open=True)

    def data_received(self, data: bytes) -> None:
        try:
            message = decode(messages.ProcessingRequest, data)
            side = side_of(message.WhichOneof("request"))
            if side is None:
                raise AgentProtocolError("a message is about neither request nor response")
        except AgentProtocolError as exc:
            self.incoming.end(exc)
            return
        self.incoming.put(message, side, len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self.incoming.end(exc)

    async def write(self, answer: Any) -> None:
        self._wire.write(answer.SerializeToString())
        if self._wire.congested:
            await self._wire.drain()


class _ServedTransport(InProcessTransport):
    """The agent, called in a span of its own as wherever it is served."""

    def __init__(self, agent: Agent, name: str) -> None:
        super().__init__(agent)
        self._name = name

    def call(self, event: Event) -> Coroutine[Any, Any, Answer | None]:
        return self._call(event)

    async def _call(self, event: Event) -> Answer | None:
        with serving_span(_carrier.get({}), self._name, event.event_type.value, correlation_id_of(event)):
            return await super().call(event)


def _settings(side: str, mode: int, heard: bool, max_bytes: int) -> dict[str, Any]:
    """The settings of an agent for the bodies of one side."""
    if not heard:
        return {}
    if mode == ProcessingMode.BUFFERED:
        return {f"{side}_body_mode": BodyMode.BUFFER, f"max_{side}_body_bytes": max_bytes}
    settings: dict[str, Any] = {f"{side}_body_mode": BodyMode.STREAM}
    if side == "request":
        # Or else the body of a request that may be changed would be kept until it has ended.
        settings["request_length"] = "unknown"
    return settings
