"""The state of one connection: its correlation id, the verdicts of its agents, and what waits to be applied."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock
from types import MappingProxyType
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from ..decision import AgentDecision, Verdict, merge
from ..evaluation.evaluate import evaluate
from ..evaluation.guardrail import inspect_guardrail, unavailable
from ..evaluation.resolved_route import ResolvedRoute
from ..evaluation.route_agent import RouteAgent
from ..evaluation.text_judges import RouteJudge
from ..failures import RULES
from ..guard import Guard
from ..observability.attributes import EVENT, ROUTE
from ..observability.correlation import current, live_ids
from ..observability.trace_context import ServerSpan
from ..observability.tracing import SessionSpan, Tracing
from ..protocol import (
    ALLOW,
    AuditMetadata,
    BodyChunkEvent,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    HeaderOp,
    Headers,
    ResponseHeadersEvent,
    WebSocketFrameEvent,
)
from ..registry import AgentRegistry
from .guardrail_report import GuardrailReport
from .remembered import (
    MAX_VERDICT_BYTES,
    MAX_VERDICTS,
    MAX_WAITING_OP_BYTES,
    compacted,
    newest,
    remembered,
    weigh_ops,
)
from .scope import CORRELATION_HEADER, given_correlation_id, new_id

# Answers to these events are no part of the decision on the connection: a handler acts on those to its questions, a
# message that was dropped does not end the session, and nothing can be changed any more at the end.
_APART = frozenset({EventType.GUARDRAIL_INSPECT, EventType.WEBSOCKET_FRAME, EventType.REQUEST_COMPLETE})

# To look a member of an enumeration up by its name takes long (CPython 3.11).
_WEBSOCKET_FRAME = EventType.WEBSOCKET_FRAME
_SESSION_NAMES = {
    EventType.REQUEST_BODY_CHUNK: "request_body",
    EventType.RESPONSE_BODY_CHUNK: "response_body",
    EventType.WEBSOCKET_FRAME: "websocket_session",
    EventType.GUARDRAIL_INSPECT: "guardrail_windows",
}


# A handler in a thread, or what it logs, may be the first to ask for the id of a connection. Reentrant: the garbage
# collector may close a connection's coroutine in any thread, at any time.
_naming = RLock()


class CallCount:
    """The calls to one agent for one connection: how many, how many seconds, and whether it would have stopped it."""

    __slots__ = ("calls", "passed_open", "seconds", "would_stop")

    def __init__(self) -> None:
        self.calls = 0
        self.seconds = 0.0
        self.would_stop = False
        self.passed_open = False

    def add(self, verdict: Verdict) -> None:
        """Count one verdict."""
        if verdict.failure is None or RULES[verdict.failure.kind].counts_as_call:
            self.calls += 1
        self.seconds += verdict.duration
        self.would_stop = self.would_stop or verdict.would_stop
        self.passed_open = self.passed_open or verdict.passed_open


class ExchangeState(Struct, eq=False):
    """What is known of one connection and its agents, for the package's own code: ids, verdicts, waiting changes.

    Handlers see an :class:`~asgi_agents.AgentContext` of it.

    :ivar route: the pattern of the matched :class:`AgentRoute`, or None.
    """

    # A struct, because every guarded connection makes one: it is filled in without a line of Python.

    _registry: AgentRegistry
    resolved_route: ResolvedRoute
    _name: str | None
    route: str | None
    #: Where the client's name for the connection is; empty where there is none.
    correlation_header: str = CORRELATION_HEADER
    #: The request's, where they were read already.
    headers: Headers | None = None
    #: The span that was current when the connection came; messages may be sent from another's task.
    server_span: ServerSpan | None = None
    # Tuples, for most connections have none, and an empty list of their own takes time and memory.
    request_ops: tuple[HeaderOp, ...] = ()
    response_ops: tuple[HeaderOp, ...] = ()
    #: Whether the app was called with the request's head, and whether the client has been sent the response's.
    request_head_gone: bool = False
    response_head_gone: bool = False
    #: How many verdicts there were since calls are counted, those included that are forgotten by now.
    verdicts_recorded: int = 0
    # A websocket or an event stream may live for days: the newest are remembered, without mutated bytes.
    _verdicts: list[Verdict] = []
    # About how many bytes these take, and how many are forgotten.
    _verdict_bytes: int = 0
    _forgotten: int = 0
    #: About how many bytes the header operations take that wait for a head.
    op_bytes: int = 0
    _decided: AgentDecision | None = None
    # Other agents that keep something under the correlation id: guardrail agents that are not on the route, and the
    # agents of middlewares that this one is around.
    _forget_too: set[Guard] | None = None
    # The spans that many events share, by type. None as a value: nothing is traced.
    _sessions: dict[EventType, SessionSpan | None] | None = None
    #: Whether this middleware has finished with the connection.
    closed: bool = False
    _calls: dict[str, CallCount] | None = None
    #: The agents that were shown a body as it was encoded.
    shown_encoded: tuple[str, ...] = ()
    #: What each guardrail did.
    guardrails: tuple[GuardrailReport, ...] = ()
    #: Those that handlers have asked, by the identity of what configures them. It is not changed, but replaced.
    asked_by_handlers: Mapping[int, tuple[RouteJudge, GuardrailReport]] = MappingProxyType({})
    # That of the outermost middleware around this one, of the same connection: it has the names, for all.
    _outermost: "ExchangeState | None" = None
    #: The id of the request, where the client has given the correlation id, once an agent has received it.
    request_id: str | None = None
    # Calls under way, and middlewares within this one, that keep its id from being free.
    _pending: int = 0
    # Whether the name was made in this process; False where the client has given it.
    _made_here: bool = True
    #: The path that was asked for, as it came, or as the server has decoded it. The short way leaves it to its events.
    given_path: bytes | str = ""
    #: What of that path is none of the app's own paths. The short way, whose agents ask for no more than a head, leaves
    #: this out, and the next ones.
    root_path: str = ""
    #: Whether it is a websocket, of which the event looks like that of a request.
    is_websocket: bool = False
    #: What is called when the connection is over: it ends what still reads ahead.
    endings: tuple[Callable[[], None], ...] = ()
    #: Whether the client has left before the app was called, so that the app never is.
    departed: bool = False
    #: What the middleware wraps, and the app that the server or an outer app has called, where the scope says so.
    app: object = None
    scope_app: object = None

    def __repr__(self) -> str:
        return f"<ExchangeState {self.correlation_id!r}>"

    @property
    def correlation_id(self) -> str:
        """Names the connection to agents, in logs and in traces.

        Where the client has not given one, it is made when it is asked for first, which often never happens.
        """
        return self._name or self.find_name()

    @property
    def path(self) -> str:
        """The path that was asked for, as it was written in the request; empty where only the events have it."""
        given = self.given_path
        return quote(given, errors="surrogatepass") if isinstance(given, str) else given.decode("latin-1")

    def find_name(self) -> str:
        """The id of the connection; where it has none yet, it is given one."""
        with _naming:
            name = self._name
            if name is None:
                if self._outermost is not None:
                    name = self._name = self._outermost.correlation_id
                else:
                    given = given_correlation_id(self.headers, live_ids, self.correlation_header)
                    self._made_here = given is None
                    name = self._name = given or new_id()
                    if not self.closed or self._pending:
                        live_ids[name] = self._made_here
            return name

    def join(self, outer: "ExchangeState | None") -> None:
        """Take correlation id and request id from ``outer``, if that is the state of the same connection.

        ``outer`` is what was there when this middleware was called. It is of the same connection if it is the current
        one and not over. Otherwise it may be another's: a server may give one ``scope["state"]`` to several
        connections, and an app that a handler calls in this process serves a connection of its own.
        """
        if outer is not None and outer is current() and not outer.over:
            outermost = self._outermost = outer._outermost or outer
            with _naming:
                # The app may leave this middleware behind, so that it ends last: the id is kept for it too.
                outermost._pending += 1
            self.correlation_header = outer.correlation_header
            self.request_id = outermost.request_id

    @property
    def joined(self) -> bool:
        """Whether :meth:`join` was given the state of the same connection."""
        return self._outermost is not None

    def note_request_id(self, request_id: str) -> None:
        """Remember that agents have received this id of the request."""
        self.request_id = (self._outermost or self).request_id = request_id

    @property
    def tracing(self) -> Tracing:
        """Makes spans, if any are made now."""
        return self._registry.telemetry.tracing

    @property
    def over(self) -> bool:
        """Whether all middlewares around the app have finished with the connection, so that its id is free."""
        return (self._outermost or self).closed

    @property
    def decision(self) -> AgentDecision:
        """The decision so far, with the verdicts behind it.

        Plain allows of body chunks and frames are left out.
        """
        if self._decided is not None:
            return replace(self._decided, verdicts=self._newest)
        counting = merge((verdict for verdict in self._newest if verdict.event_type not in _APART), final=False)
        return replace(counting, verdicts=self._newest)

    @property
    def verdicts_forgotten(self) -> int:
        """How many verdicts are not among those of :attr:`decision` any more, or only with what was decided.

        The newest 1,000 are remembered, within 2 MiB, and of a mutation no more than its size.
        """
        return self._forgotten + max(0, len(self._verdicts) - MAX_VERDICTS)

    @property
    def _newest(self) -> Sequence[Verdict]:
        return tuple(self._verdicts[-MAX_VERDICTS:])

    @property
    def audit(self) -> Sequence[tuple[str, AuditMetadata]]:
        """Agent id and audit metadata of every agent that gave any, oldest first."""
        return merge(self._newest, final=False).audit

    async def inspect_guardrail(self, agent_id: str, event: GuardrailInspectEvent) -> GuardrailResponse:
        """Ask a guardrail agent about the content of ``event``, in the failure mode that the route gives the agent.

        Raises :class:`~asgi_agents.GuardrailUnavailableError` when it fails closed.
        """
        agent = self.agent_of(agent_id)
        with self.reserved_id((agent.guard,)) as name:
            if name != event.correlation_id:
                event = replace(event, correlation_id=name)
            verdict, response = await inspect_guardrail(agent.guard, event, agent.failure_mode)
        self.record((verdict,))
        if verdict.fails_closed:
            raise unavailable(verdict)
        return response

    def evaluate(
        self,
        agents: Sequence[RouteAgent],
        event: BodyChunkEvent | WebSocketFrameEvent,
        *,
        chunk: bool,
        final: bool,
        continued: bool = False,
    ) -> Awaitable[Sequence[Verdict]]:
        """Show a piece of a body, or a websocket message, to ``agents`` in parallel.

        Many pieces share a span.

        :param continued: agents of an earlier step were shown the same event, so that the span has counted it.
        """
        if self.closed or self.resolved_route.keeping_requests:
            return self.evaluate_with_reserved_id(agents, event, chunk=chunk, final=final, continued=continued)
        if self._registry.telemetry.tracing.idle or not (chunk or event.event_type is _WEBSOCKET_FRAME):
            return evaluate(agents, event, chunk=chunk, final=final)
        return self._evaluate_in_session(agents, event, chunk=chunk, final=final, continued=continued)

    async def evaluate_with_reserved_id(
        self,
        agents: Sequence[RouteAgent],
        event: BodyChunkEvent | WebSocketFrameEvent | ResponseHeadersEvent,
        *,
        chunk: bool = False,
        final: bool,
        continued: bool = False,
    ) -> Sequence[Verdict]:
        """Show ``event`` to ``agents`` where its id has to be kept from other connections meanwhile.

        Either agents keep something under the id. Or the connection is over: a task that the app has left behind may
        still send or receive, or wait for a verdict.
        """
        with self.reserved_id(self.resolved_route.keeping_requests) as name:
            if name != event.correlation_id:
                event = replace(event, correlation_id=name)
            if self._registry.telemetry.tracing.idle or not (chunk or event.event_type is _WEBSOCKET_FRAME):
                return await evaluate(agents, event, chunk=chunk, final=final)
            assert not isinstance(event, ResponseHeadersEvent)
            return await self._evaluate_in_session(agents, event, chunk=chunk, final=final, continued=continued)

    @contextmanager
    def reserved_id(self, guards: Iterable[Guard]) -> Iterator[str]:
        """The correlation id for a call. No other connection gets it before the call ends, even if this one ends first.

        If the connection is over when the call ends, the ``guards`` forget the id. If another
        connection has taken the id by now, the call gets a new one.
        """
        outermost = self._outermost or self
        with _naming:
            name = self.correlation_id
            own = not outermost.closed or outermost._pending > 0 or name not in live_ids
            if own:
                outermost._pending += 1
            else:
                name = new_id()
            if outermost.closed:
                live_ids[name] = outermost._made_here or not own
        try:
            yield name
        finally:
            if outermost.closed:
                for guard in guards:
                    guard.forget(name)
            with _naming:
                if own:
                    outermost._pending -= 1
                if outermost.closed and not (own and outermost._pending):
                    live_ids.pop(name, None)

    def _forget_later(self, guards: Iterable[Guard]) -> None:
        """Have ``guards`` forget the correlation id when the connection is over for all middlewares."""
        outermost = self._outermost or self
        outermost._forget_too = {*guards, *(outermost._forget_too or ())}

    async def _evaluate_in_session(
        self,
        agents: Sequence[RouteAgent],
        event: BodyChunkEvent | WebSocketFrameEvent,
        *,
        chunk: bool,
        final: bool,
        continued: bool,
    ) -> Sequence[Verdict]:
        session = self.session(event.event_type)
        if session is None:
            return await evaluate(agents, event, chunk=chunk, final=final)
        with session.current():
            verdicts = await evaluate(agents, event, chunk=chunk, final=final)
        session.note(verdicts, counted=not continued)
        return verdicts

    def record(self, verdicts: Sequence[Verdict], *, every: bool = True) -> None:
        """Remember verdicts; unless ``every``, only those that are not a plain allow."""
        telling = verdicts if every else [verdict for verdict in verdicts if verdict.response is not ALLOW]
        for verdict in telling:
            kept, size, whole = remembered(verdict)
            self._verdicts.append(kept)
            self._verdict_bytes += size
            if not whole:
                self._forgotten += 1
        if len(self._verdicts) >= 2 * MAX_VERDICTS or self._verdict_bytes > MAX_VERDICT_BYTES:
            self._verdicts, self._verdict_bytes, lost = newest(self._verdicts)
            self._forgotten += lost
        if self._calls is not None:
            self.count(verdicts, len(telling))

    def record_allow(self, verdicts: Sequence[Verdict]) -> None:
        """Remember the verdicts on a head that all agents simply allow, where it is all that any of them receives."""
        self._verdicts += verdicts
        if self._calls is not None:
            self.count(verdicts, len(verdicts))

    def count(self, verdicts: Sequence[Verdict], telling: int) -> None:
        """Count calls, where calls are counted; ``telling`` is how many of the verdicts are remembered."""
        if self._calls is None:
            return
        self.verdicts_recorded += telling
        for verdict in verdicts:
            count = self._calls.get(verdict.agent_id)
            if count is None:
                count = self._calls[verdict.agent_id] = CallCount()
            count.add(verdict)

    def note_ops(self, decision: AgentDecision) -> None:
        """Keep the header operations of a decision until there are headers to apply them to."""
        if not (decision.request_headers or decision.response_headers):
            return
        self.request_ops = (*self.request_ops, *decision.request_headers)
        self.response_ops = (*self.response_ops, *decision.response_headers)
        size = weigh_ops(self.request_ops) + weigh_ops(self.response_ops)
        if size > MAX_WAITING_OP_BYTES // 2:
            # Agents that answer to every piece of a body mostly set the same again and again.
            self.request_ops = tuple(compacted(self.request_ops))
            self.response_ops = tuple(compacted(self.response_ops))
            size = weigh_ops(self.request_ops) + weigh_ops(self.response_ops)
        self.op_bytes = size

    def note_encoded(self, agent: RouteAgent, event_type: EventType) -> None:
        """An agent is shown a body that it can't read, because it is encoded."""
        agent_id = agent.guard.config.id
        if agent_id not in self.shown_encoded:
            self.shown_encoded += (agent_id,)
        agent.guard.recorder.warn_of_encoding(event_type, agent.route)

    def decide(self, decision: AgentDecision) -> None:
        """Remember the decision that ended the connection."""
        if self._decided is None:
            self._registry.traffic.stopped(failed=decision.failure is not None)
        self._decided = replace(decision, verdicts=(), request_body_mutation=None, response_body_mutation=None)

    @property
    def counting(self) -> bool:
        """Whether every verdict is counted, also a plain allow."""
        return self._calls is not None

    def count_calls(self) -> Mapping[str, CallCount]:
        """From now on, count the calls to each agent here."""
        self._calls = {}
        return self._calls

    def close(self) -> None:
        """The connection is over."""
        for end in self.endings:
            end()
        guards: Collection[Guard] = self.resolved_route.keeping_requests
        if self._forget_too is not None:
            guards = {*guards, *self._forget_too}
        outermost = self._outermost
        with _naming:
            self.closed = True
            if not guards and outermost is None and self._name is not None and not self._pending:
                live_ids.pop(self._name, None)
        if self._sessions is not None:
            for session in self._sessions.values():
                if session is not None:
                    session.end()
        if outermost is None and not guards:
            return
        if outermost is not None and not outermost.closed:
            # The middlewares around this one may still ask the same agents.
            self._forget_later(guards)
            guards = ()
        try:
            for guard in guards:
                guard.forget(self.correlation_id)
        finally:
            # The id is no other's until they have forgotten it.
            with _naming:
                if outermost is None:
                    outermost = self
                else:
                    outermost._pending -= 1
                if outermost.closed and outermost._name is not None and not outermost._pending:
                    live_ids.pop(outermost._name, None)

    def session(self, event_type: EventType) -> SessionSpan | None:
        """The span that all events of a type share; None where nothing is traced."""
        if self.closed:
            # A task that the app has left behind still sends.
            return None
        if self._sessions is None:
            self._sessions = {}
        if event_type not in self._sessions:
            attributes = {EVENT: event_type.value}
            if self.route is not None:
                attributes[ROUTE] = self.route
            self._sessions[event_type] = self._registry.telemetry.tracing.session(
                _SESSION_NAMES[event_type], attributes, self.correlation_id, self.server_span
            )
        return self._sessions[event_type]

    def agent_of(self, agent_id: str) -> RouteAgent:
        """An agent as a handler asks it: the one of that id now, in the failure mode that the route gives it.

        Raises :class:`~asgi_agents.UnknownAgentError`.
        """
        guard = self._registry.guard(agent_id)
        for agent in self.resolved_route.agents:
            if agent.guard.config.id == agent_id:
                return RouteAgent(guard, agent.failure_mode, self.route)
        if guard.client.keeps_requests:
            self._forget_later((guard,))
        return RouteAgent(guard, guard.config.fails, self.route)
