"""What a handler finds at ``request.state.asgi_agents``, and at ``request.state.agents``."""

from collections.abc import Awaitable, Mapping, Sequence
from threading import Lock
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ..attributes import EVENT, ROUTE
from ..config import FailureMode
from ..decision import BODY_NOT_INSPECTED, AgentDecision, FailureKind, Verdict, merge
from ..lineup import Lineup, RouteAgent, consult
from ..manager import AgentManager, unavailable
from ..protocol import (
    ALLOW,
    AuditMetadata,
    BodyChunkEvent,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    HeaderOp,
    Headers,
    WebSocketFrameEvent,
)
from ..telemetry import SessionSpan
from ..trace_context import ServerSpan
from .scope import CORRELATION_HEADER, find_correlation_id

#: Where the context of a connection is in ``scope["state"]``, whatever other name the middleware gives it there.
STATE_KEY: Final = "asgi_agents"

# A websocket or event stream may live for days: remember the newest.
_MAX_VERDICTS = 1000
# What was said to a handler is the handler's to act on, a frame that was dropped is no word on the session, and what is
# said at the end changes nothing.
_NO_SAY = frozenset({EventType.GUARDRAIL_INSPECT, EventType.WEBSOCKET_FRAME, EventType.REQUEST_COMPLETE})


# Failures that came without a call.
_NOT_CALLED = BODY_NOT_INSPECTED | {FailureKind.BREAKER_OPEN}
# To look a member of an enumeration up by its name takes long (CPython 3.11).
_WEBSOCKET_FRAME = EventType.WEBSOCKET_FRAME
_SESSION_NAMES = {
    EventType.REQUEST_BODY_CHUNK: "request_body",
    EventType.RESPONSE_BODY_CHUNK: "response_body",
    EventType.WEBSOCKET_FRAME: "websocket_session",
}


# Handlers in threads, and what they log, may ask for a name that nobody has asked for yet.
_naming = Lock()


class CallCount:
    """How often one agent was called for a connection, for how many seconds, and whether it stood in the way."""

    __slots__ = ("calls", "passed_open", "seconds", "would_stop")

    def __init__(self) -> None:
        self.calls = 0
        self.seconds = 0.0
        self.would_stop = False
        self.passed_open = False

    def add(self, verdict: Verdict) -> None:
        """Count one verdict."""
        if verdict.failure is None or verdict.failure.kind not in _NOT_CALLED:
            self.calls += 1
        self.seconds += verdict.duration
        self.would_stop = self.would_stop or verdict.would_stop
        self.passed_open = self.passed_open or verdict.passed_open


class AgentContext(Struct, eq=False):
    """One connection's dealings with its agents so far.

    :ivar route: the pattern of the matched :class:`Route`, or None.
    """

    # A struct, because every guarded connection makes one: it is filled in without a line of Python.

    _manager: AgentManager
    lineup: Lineup
    _name: str | None
    route: str | None
    #: Where the client's name for the connection is; empty where there is none.
    correlation_header: str = CORRELATION_HEADER
    #: The request's, where they were read already.
    headers: Headers | None = None
    #: The span that was current when the connection came; messages may be sent from another's task.
    server_span: ServerSpan | None = None
    request_ops: list[HeaderOp] = []
    response_ops: list[HeaderOp] = []
    #: Whether the app was called with the request's head, and whether the client has been sent the response's.
    request_head_gone: bool = False
    response_head_gone: bool = False
    #: How many verdicts there were since calls are counted, those included that are forgotten by now.
    verdicts_recorded: int = 0
    _verdicts: list[Verdict] = []
    _decided: AgentDecision | None = None
    # Guardrail agents that are not on the route.
    _asked_aside: set[str] | None = None
    # The spans of what comes in many events. None: nobody traces.
    _sessions: dict[EventType, SessionSpan | None] | None = None
    _closed: bool = False
    _calls: dict[str, CallCount] | None = None
    #: The agents that were shown a body as it was encoded.
    shown_encoded: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<AgentContext {self.correlation_id!r}>"

    @property
    def correlation_id(self) -> str:
        """Names the connection to agents, in logs and in traces.

        Where the client has not given one, it is made when somebody asks for it first: often nobody does.
        """
        return self._name or self.find_name()

    def find_name(self) -> str:
        """Give the connection its id."""
        with _naming:
            return self._name or self._named()

    def _named(self) -> str:
        live = self._manager.live_correlation_ids
        name = self._name = find_correlation_id(self.headers, live, self.correlation_header)
        if not self._closed:
            live.add(name)
        return name

    @property
    def decision(self) -> AgentDecision:
        """The decision so far, with the verdicts behind it.

        Verdicts on body chunks and frames that said nothing are left out.
        """
        if self._decided is not None:
            return replace(self._decided, verdicts=self._newest)
        counting = merge((verdict for verdict in self._newest if verdict.event_type not in _NO_SAY), final=False)
        return replace(counting, verdicts=self._newest)

    @property
    def _newest(self) -> Sequence[Verdict]:
        return tuple(self._verdicts[-_MAX_VERDICTS:])

    @property
    def audit(self) -> Sequence[tuple[str, AuditMetadata]]:
        """Agent id and audit metadata of every agent that gave any, oldest first."""
        return merge(self._newest, final=False).audit

    @property
    def routing_metadata(self) -> Mapping[str, str]:
        """What the agents said for routing, later agents winning."""
        return self.decision.routing_metadata

    async def inspect_guardrail(
        self,
        agent_id: str,
        content: str,
        *,
        inspection_type: str,
        model: str | None = None,
        categories: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> GuardrailResponse:
        """Ask a guardrail agent about ``content``, in the failure mode that the route gives the agent.

        A fail-closed agent that gives no verdict raises :class:`~asgi_agents.GuardrailUnavailableError`, which answers
        503 or 504 if the handler lets it through. Spans of detections are indices of ``content``. ``inspection_type``
        is one of :class:`~asgi_agents.InspectionType`, or another token that the agent knows; anything else raises
        ValueError.
        """
        event = GuardrailInspectEvent(
            correlation_id=self.correlation_id,
            inspection_type=inspection_type,
            content=content,
            model=model,
            categories=tuple(categories),
            route_id=self.route,
            metadata=metadata or {},
        )
        failure_mode = self._failure_mode(agent_id)
        if failure_mode is None:
            self._asked_aside = {agent_id, *(self._asked_aside or ())}
        verdict, response = await self._manager.inspect_guardrail(agent_id, event, failure_mode)
        self.record((verdict,))
        if verdict.fails_closed:
            raise unavailable(verdict)
        return response

    def consult(
        self, agents: Sequence[RouteAgent], event: BodyChunkEvent | WebSocketFrameEvent, *, chunk: bool, final: bool
    ) -> Awaitable[Sequence[Verdict]]:
        """Show a piece of a body, or a websocket message, to ``agents`` in parallel.

        Many pieces share a span.
        """
        if self._manager.telemetry.tracing.idle or not (chunk or event.event_type is _WEBSOCKET_FRAME):
            return consult(agents, event, chunk=chunk, final=final)
        return self._consult_in_session(agents, event, chunk=chunk, final=final)

    async def _consult_in_session(
        self, agents: Sequence[RouteAgent], event: BodyChunkEvent | WebSocketFrameEvent, *, chunk: bool, final: bool
    ) -> Sequence[Verdict]:
        session = self._session(event.event_type)
        if session is None:
            return await consult(agents, event, chunk=chunk, final=final)
        with session.current():
            verdicts = await consult(agents, event, chunk=chunk, final=final)
        session.note(verdicts)
        return verdicts

    def record(self, verdicts: Sequence[Verdict], *, every: bool = True) -> None:
        """Remember verdicts; unless ``every``, only those that say something."""
        telling = verdicts if every else [verdict for verdict in verdicts if verdict.response is not ALLOW]
        self._verdicts += telling
        if len(self._verdicts) >= 2 * _MAX_VERDICTS:
            del self._verdicts[:-_MAX_VERDICTS]
        if self._calls is not None:
            self.verdicts_recorded += len(telling)
            for verdict in verdicts:
                count = self._calls.get(verdict.agent_id)
                if count is None:
                    count = self._calls[verdict.agent_id] = CallCount()
                count.add(verdict)

    def note_ops(self, decision: AgentDecision) -> None:
        """Keep the header operations of a decision until there are headers to apply them to."""
        self.request_ops += decision.request_headers
        self.response_ops += decision.response_headers

    def note_encoded(self, agent: RouteAgent, event_type: EventType) -> None:
        """An agent is shown a body that it can't read, because it is encoded."""
        agent_id = agent.guard.config.id
        if agent_id not in self.shown_encoded:
            self.shown_encoded += (agent_id,)
        agent.guard.warn_of_encoding(event_type, agent.route)

    def applicable(self, agents: Sequence[RouteAgent], verdicts: Sequence[Verdict]) -> Sequence[Verdict]:
        """The verdicts on a piece of a body, as they can be applied now.

        An agent that allows it with operations on headers that are gone has failed instead.
        """
        if not (self.request_head_gone or self.response_head_gone):
            return verdicts
        return [self._in_time(agents, verdict) for verdict in verdicts]

    def _in_time(self, agents: Sequence[RouteAgent], verdict: Verdict) -> Verdict:
        response = verdict.response
        if response is None or not response.is_allow:
            return verdict
        if response.request_headers and self.request_head_gone:
            field, until = "request_headers", "the app is called"
        elif response.response_headers and self.response_head_gone:
            field, until = "response_headers", "the head of the response is sent"
        else:
            return verdict
        (agent,) = (agent for agent in agents if agent.guard.config.id == verdict.agent_id)
        event = verdict.event_type.value
        fault = f"{field} does not apply to this {event}: header operations may only be in answers before {until}"
        return agent.not_applicable(verdict, self.correlation_id, fault)

    def decide(self, decision: AgentDecision) -> None:
        """This is what the connection ended on."""
        self._decided = decision

    @property
    def counting(self) -> bool:
        """Whether every verdict counts, also one that says nothing."""
        return self._calls is not None

    def count_calls(self) -> Mapping[str, CallCount]:
        """From now on, count the calls to each agent here."""
        self._calls = {}
        return self._calls

    def close(self) -> None:
        """The connection is over."""
        with _naming:
            self._closed = True
            if self._name is not None:
                self._manager.live_correlation_ids.discard(self._name)
        if self._sessions is not None:
            for session in self._sessions.values():
                if session is not None:
                    session.end()
        if self.lineup.lasting:
            self.lineup.forget(self.correlation_id)
        for agent_id in self._asked_aside or ():
            self._manager.forget_request(agent_id, self.correlation_id)

    def _session(self, event_type: EventType) -> SessionSpan | None:
        if self._closed:
            # A task that the app has left behind still sends.
            return None
        if self._sessions is None:
            self._sessions = {}
        if event_type not in self._sessions:
            attributes = {EVENT: event_type.value}
            if self.route is not None:
                attributes[ROUTE] = self.route
            self._sessions[event_type] = self._manager.telemetry.tracing.session(
                _SESSION_NAMES[event_type], attributes, self.correlation_id, self.server_span
            )
        return self._sessions[event_type]

    def _failure_mode(self, agent_id: str) -> FailureMode | None:
        for agent in self.lineup.agents:
            if agent.guard.config.id == agent_id:
                return agent.failure_mode
        return None
