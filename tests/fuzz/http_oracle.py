"""What has to hold for one HTTP exchange, told from what its agents, its app and its client saw."""

from collections.abc import Iterable, Sequence

from asgi_agents import ClosedByAgent, ResponseAborted
from asgi_agents.protocol import EventType, RequestBodyChunkEvent, RequestCompleteEvent, ResponseBodyChunkEvent

from .agents import Hired, Shown
from .apps import AppError
from .ending import Over, check_accounts, check_decider, check_head, let_pass
from .reactions import APP_HEADER, EVIL
from .servers import HttpServer

_SSE_ERROR = b'event: error\ndata: {"type":"error"'


class Exchange(Over, kw_only=True):
    """One request."""

    server: HttpServer
    may_have_body: bool
    method: str

    @property
    def patient(self) -> bool:
        """Whether the client was there to the end, and took what it was given."""
        return self.server.plan.patient and not self.server.gone

    @property
    def too_slow(self) -> bool:
        """Whether the client takes longer for a reply than it is waited for."""
        return self.server.plan.slow >= 5.0

    @property
    def has_app_head(self) -> bool:
        """Whether the client has the head of the app's response."""
        start = self.server.start
        return start is not None and APP_HEADER in list(start.get("headers", ()))

    def story(self) -> str:
        server = self.server
        return (
            f"{self.correlation_id}: {self.method}, {server.plan}, may have a body: {self.may_have_body}\n"
            f"{server.scope}\nclient sent {server.body_read!r}, got {server.messages}; gone: {server.gone}\n"
            + Over.story(self)
        )


def check(exchange: Exchange) -> None:
    """Raise AssertionError for the first thing that does not hold."""
    _check_server(exchange)
    _check_error(exchange)
    check_decider(exchange)
    _check_request(exchange)
    _check_response(exchange)
    check_accounts(exchange, exchange.server.messages)
    _check_sizes(exchange)


def _check_server(exchange: Exchange) -> None:
    server = exchange.server
    assert not server.faults, server.faults
    illegal = [message for message in server.illegal if message["type"] != "http.response.aborted"]
    if exchange.app.script.legal:
        assert not illegal, f"the app's messages were legal, {illegal} are not"
    if server.spoilt:
        assert isinstance(exchange.error, ResponseAborted), "spoilt without reason"
        assert not server.complete or exchange.too_slow, "spoilt when it was complete"
    for headers in (exchange.app.headers, *(message.get("headers", ()) for message in server.messages)):
        for name, value in headers:
            assert EVIL.encode() not in value, f"{name!r} was set, which no agent may set"


def _check_error(exchange: Exchange) -> None:
    error, app, server = exchange.error, exchange.app, exchange.server
    match error:
        case None:
            pass
        case AppError():
            assert app.script.raises
        case ResponseAborted():
            excused = not (app.script.legal and app.script.sequential)
            assert excused or not exchange.decision.is_allow, "broken off without reason"
            assert not server.complete or exchange.too_slow, "broken off when it was complete"
        case OSError() if not isinstance(error, ClosedByAgent):
            assert server.gone
        case RuntimeError():
            assert not app.script.legal, f"the app did nothing wrong: {error!r}"
        case _:
            raise AssertionError(f"nobody raised {error!r}") from error


def _check_request(exchange: Exchange) -> None:
    app, server = exchange.app, exchange.server
    assert app.calls <= 1
    given = server.body_read
    hearing = exchange.agents_for(EventType.REQUEST_BODY_CHUNK)
    passed, resolved = chained(
        exchange, EventType.REQUEST_BODY_CHUNK, given, hearing, ended=server.body_ended, head=exchange.may_have_body
    )
    if not app.calls:
        return
    check_head(exchange, EventType.REQUEST_HEADERS, body_follows=exchange.may_have_body, what="request")
    assert passed.startswith(app.body), f"the app got {app.body!r} of {given!r}, of which {passed!r} may pass"
    if app.whole:
        assert server.body_ended, "the app takes for all what is a part"
        assert app.body == passed, f"the app takes {app.body!r} for all of {passed!r}"
        assert resolved, "the app has the whole body, on which somebody has not agreed"
        _check_length(exchange, passed)
    for hired in hearing:
        if hired.config.request_bodies.name != "buffer":
            continue
        for shown in hired.agent.of(exchange.correlation_id, EventType.REQUEST_BODY_CHUNK):
            assert let_pass(hired, shown, final=True), f"{hired.config.id} did not let the body, the app was called"


def _check_length(exchange: Exchange, passed: bytes) -> None:
    """What the app is told of the size of a body that it has got all of."""
    app, given = exchange.app, exchange.server.body_read
    declared = [value for name, value in exchange.server.scope["headers"] if name == b"content-length"]
    chunked = any(name == b"transfer-encoding" for name, _ in exchange.server.scope["headers"])
    lengths = [value for name, value in app.headers if name.lower() == b"content-length"]
    if any(_holds_all(hired) for hired in exchange.agents_for(EventType.REQUEST_BODY_CHUNK)):
        # All of it was there before the app was called, so that nothing else than the truth is told.
        assert lengths in ([], [] if chunked else [b"%d" % len(passed)]), f"content-length {lengths} of {passed!r}"
    elif lengths and declared == [b"%d" % len(given)] and not chunked:
        assert lengths == [b"%d" % len(passed)], f"content-length {lengths} of {passed!r}"


def _holds_all(hired: Hired) -> bool:
    """Whether the agent is given the whole body before the app is called, and is never left out."""
    config = hired.config
    return config.request_bodies.name == "buffer" and (hired.closed or config.max_request_body_bytes is None)


def _check_response(exchange: Exchange) -> None:
    app, server = exchange.app, exchange.server
    start = server.start
    inspected = exchange.agents_for(EventType.RESPONSE_BODY_CHUNK)
    starts = [message for message in app.sent if message["type"] == "http.response.start"]
    if start is None or not exchange.has_app_head:
        if start is not None and starts == []:
            assert not exchange.decision.is_allow, "an answer that nobody gave"
        if exchange.app.script.legal and exchange.patient and not exchange.app.script.raises:
            # The app's own head may have been on its way.
            assert server.complete or isinstance(exchange.error, ResponseAborted), "the client has no answer"
            assert not exchange.decision.is_allow
        return
    status: int = start["status"]
    bodiless = exchange.method == "HEAD" or status in (204, 304)
    event_stream = any(b"text/event-stream" in value for _, value in start["headers"])
    # An agent may have changed it by then.
    sse_sent = any(b"text/event-stream" in value for m in starts for _, value in m.get("headers", ()))
    if len(starts) == 1:
        check_head(exchange, EventType.RESPONSE_HEADERS, body_follows=bool(inspected) and not bodiless, what="response")
    if inspected and not bodiless and not (event_stream or sse_sent):
        for hired in inspected:
            if hired.config.response_bodies.name == "buffer":
                for shown in hired.agent.of(exchange.correlation_id, EventType.RESPONSE_BODY_CHUNK):
                    assert let_pass(hired, shown, final=True), f"{hired.config.id} did not let it, the head is out"
    if not (app.script.legal and app.script.sequential):
        return
    given = b"".join(bytes(m.get("body", b"")) for m in app.sent if m["type"] == "http.response.body")
    ended = any(m["type"] == "http.response.body" and not m.get("more_body", False) for m in app.sent)
    got = server.body
    if bodiless:
        assert not inspected or got == b""
        return
    passed, resolved = chained(exchange, EventType.RESPONSE_BODY_CHUNK, given, inspected, ended=ended, head=True)
    if not exchange.decision.is_allow and _SSE_ERROR in got:
        assert event_stream, "an error event in what is no event stream"
        got = got[: got.index(_SSE_ERROR)]
        if not passed.startswith(got):
            # What came out of a writer need not have ended where an event does.
            got = got.removesuffix(b"\n\n")
        assert passed.startswith(got), f"the client got {got!r} of {given!r}, of which {passed!r} may pass"
        return
    assert passed.startswith(got), f"the client got {got!r} of {given!r}, of which {passed!r} may pass"
    if server.complete:
        assert ended, "complete before the app has ended it"
        assert got == passed, f"the client takes {got!r} for all of {passed!r}"
        assert resolved, "complete, though somebody has not agreed"
        lengths = [value for name, value in start["headers"] if name.lower() == b"content-length"]
        assert len(lengths) <= 1
        assert lengths in ([], [b"%d" % len(got)]), f"content-length {lengths} of {got!r}"
    elif exchange.patient and not app.script.raises:
        assert not exchange.decision.is_allow, f"the client waits in vain: {exchange.error!r}"


def chained(
    exchange: Exchange, event_type: EventType, given: bytes, agents: Iterable[Hired], *, ended: bool, head: bool
) -> tuple[bytes, bool]:
    """The most that may pass of ``given``, and whether nobody has a say left.

    Each agent must have been shown the right bytes at the right place of what came out of the one before.
    """
    resolved = True
    stream = given
    # Neighbours that only read are shown the same bytes at the same time.
    neighbours = given
    for hired in agents:
        if hired.writes:
            neighbours = stream
        shown = hired.agent.of(exchange.correlation_id, event_type)
        heads = hired.agent.of(
            exchange.correlation_id,
            EventType.REQUEST_HEADERS if event_type is EventType.REQUEST_BODY_CHUNK else EventType.RESPONSE_HEADERS,
        )
        pending = (
            head and hired.config.enforce and any(each.done and hired.outcome(each) == "provisional" for each in heads)
        )
        passed, settled = _through(hired, shown, neighbours, pending=pending)
        resolved = resolved and settled
        if hired.writes:
            stream = neighbours = passed
        elif len(passed) < len(stream):
            stream = passed
    return stream, resolved


def _through(hired: Hired, shown: Sequence[Shown], stream: bytes, *, pending: bool) -> tuple[bytes, bool]:
    """What may pass of ``stream`` after this agent; whether it has no say left."""
    out, held = b"", b""
    position = 0
    for index, each in enumerate(shown):
        event = each.event
        assert isinstance(event, RequestBodyChunkEvent | ResponseBodyChunkEvent)
        running = event.bytes_received if isinstance(event, RequestBodyChunkEvent) else event.bytes_sent
        offset = running - len(event.data)
        assert event.data == stream[offset:running], (
            f"{hired.config.id} was shown {event.data!r} at {offset} of {stream!r}"
        )
        assert offset >= position, f"{hired.config.id} was shown something twice"
        assert not (event.is_last and index < len(shown) - 1), f"{hired.config.id} was shown more after the last"
        if offset > position:
            assert not hired.closed, f"{hired.config.id} was not shown all of {stream!r}"
            out, held = out + held + stream[position:offset], b""
        position = running
        data = event.data
        if not hired.config.enforce:
            out += data
            continue
        outcome = hired.outcome(each) if each.done else "fail"
        if outcome == "provisional" and not event.is_last:
            pending = True
            held += data
        elif outcome == "allow":
            out, held, pending = out + held + each.reaction.mutated(data), b"", False
        elif outcome == "fail" and not hired.closed:
            out, held, pending = out + held + data, b"", False
        else:
            return out, False
    if not hired.closed:
        # It may have failed without being asked, or have been left out.
        return out + held + stream[position:], True
    return out, not pending and position == len(stream)


def _check_sizes(exchange: Exchange) -> None:
    """What agents and operators are told of the end is what the client has seen of it."""
    server = exchange.server
    if server.gone or server.plan.slow or not exchange.app.script.legal or server.start is None:
        return
    (record,) = exchange.records
    assert (record.status, record.complete) == (server.start["status"], server.complete)
    for hired in exchange.agents_for(EventType.REQUEST_COMPLETE):
        for shown in hired.agent.of(exchange.correlation_id, EventType.REQUEST_COMPLETE):
            event = shown.event
            assert isinstance(event, RequestCompleteEvent)
            assert event.status == server.start["status"]
            assert event.response_body_size == (0 if exchange.method == "HEAD" else len(server.body))
            # While agents take their time one message may have been read ahead, which nobody has got then.
            assert len(server.body_read) - event.request_body_size in (0, len(server.last_piece))
