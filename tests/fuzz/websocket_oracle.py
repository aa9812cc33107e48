"""What has to hold for one websocket session, told from what its agents, its app and its client saw."""

from collections.abc import Sequence

from starlette.types import Message

from asgi_agents import ResponseAborted
from asgi_agents.protocol import Allow, EventType, WebSocketDrop, WebSocketFrameEvent

from .agents import Hired, Shown
from .apps import AppError
from .ending import Over, check_accounts, check_decider, check_head, let_pass
from .reactions import APP_HEADER, EVIL
from .servers import WebSocketServer


class Session(Over, kw_only=True):
    """One session."""

    server: WebSocketServer

    @property
    def left_alone(self) -> bool:
        """Whether the client was gone, or took longer for a reply or a close than it is waited for."""
        return self.server.gone or self.server.plan.slow >= 5.0

    def story(self) -> str:
        server = self.server
        return (
            f"{self.correlation_id}: {server.plan}\n{server.scope}\n{server.delivered} messages from the client, which "
            f"got {server.messages}; {server.state}, gone: {server.gone}\n" + Over.story(self)
        )


def check(session: Session) -> None:
    """Raise AssertionError for the first thing that does not hold."""
    server, app, error = session.server, session.app, session.error
    assert not server.faults, server.faults
    illegal = [message for message in server.illegal if message["type"] != "websocket.http.response.aborted"]
    if app.script.legal:
        assert not illegal, f"the app's messages were legal, {illegal} are not"
    for headers in (app.headers, *(message.get("headers", ()) for message in server.messages)):
        for name, value in headers:
            assert EVIL.encode() not in value, f"{name!r} was set, which no agent may set"
    match error:
        case None:
            pass
        case AppError():
            assert app.script.raises
        case ResponseAborted():
            assert server.state in ("connecting", "denying") or not app.script.legal, "broken off when it was complete"
        case RuntimeError():
            assert not app.script.legal, f"the app did nothing wrong: {error!r}"
        case OSError() if type(error) is OSError:
            assert server.gone
        case _:
            raise AssertionError(f"nobody raised {error!r}") from error
    check_decider(session)
    check_accounts(session, server.messages)
    if app.calls:
        check_head(session, EventType.REQUEST_HEADERS, body_follows=False, what="handshake")
    _check_frames(session)
    _check_end(session)


def _check_frames(session: Session) -> None:
    server, app = session.server, session.app
    given = [_payload(piece) for piece, _ in server.plan.pieces][: server.delivered]
    got = [_payload(message) for message in app.received if message["type"] == "websocket.receive"]
    passed = _passed(session, given, client_to_server=True)
    assert _is_subsequence(got, passed), f"the app got {got} of {given}, of which {passed} may pass"
    whole = app.finished and app.script.sequential and app.received[-1:] and _is_end(app.received[-1])
    if whole and session.decision.is_allow and not app.script.stubborn:
        assert got == passed[: len(got)], f"the app got {got}, and should have got {passed}"
        assert len(got) == len(passed), f"the app got {got}, and should have got {passed}"
    if not app.script.sequential and not app.script.legal:
        return
    sent = [_payload(message) for message in app.sent if message["type"] == "websocket.send"]
    out = [_payload(message) for message in server.messages if message["type"] == "websocket.send"]
    if app.script.legal and session.agents_for(EventType.WEBSOCKET_FRAME):
        passed = _passed(session, sent, client_to_server=False)
        assert _is_subsequence(out, passed), f"the client got {out} of {sent}, of which {passed} may pass"


def _is_end(message: Message) -> bool:
    return bool(message["type"] == "websocket.disconnect")


def _payload(message: Message) -> bytes:
    data = message.get("bytes")
    return bytes(data) if data is not None else message["text"].encode()


def _is_subsequence(some: Sequence[bytes], of: Sequence[bytes]) -> bool:
    """Both in order, nothing twice."""
    rest = iter(of)
    return all(item in rest for item in some)


def _passed(session: Session, payloads: Sequence[bytes], *, client_to_server: bool) -> list[bytes]:
    """Those that may pass."""
    hearing = session.agents_for(EventType.WEBSOCKET_FRAME)
    passed = []
    for index, payload in enumerate(payloads):
        verdicts = []
        for hired in hearing:
            shown = _shown(session, hired, index, client_to_server=client_to_server)
            if shown is None:
                verdicts.append(not hired.closed)
                continue
            event = shown.event
            assert isinstance(event, WebSocketFrameEvent)
            assert event.data == payload, f"{hired.config.id} was shown {event.data!r} for {payload!r}"
            assert (event.opcode == "text") != (payload in _binaries(session))
            verdicts.append(let_pass(hired, shown, final=True))
        if all(verdicts):
            passed.append(payload)
    return passed


def _binaries(session: Session) -> set[bytes]:
    messages = [*(piece for piece, _ in session.server.plan.pieces), *session.app.sent]
    return {bytes(message["bytes"]) for message in messages if message.get("bytes") is not None}


def _shown(session: Session, hired: Hired, index: int, *, client_to_server: bool) -> Shown | None:
    found = [
        shown
        for shown in hired.agent.of(session.correlation_id, EventType.WEBSOCKET_FRAME)
        if isinstance(shown.event, WebSocketFrameEvent)
        and shown.event.client_to_server == client_to_server
        and shown.event.frame_index == index
    ]
    assert len(found) <= 1, f"{hired.config.id} was shown one message twice"
    return found[0] if found else None


def _check_end(session: Session) -> None:
    server, app, decision = session.server, session.app, session.decision
    handshake_denied = not app.calls
    if handshake_denied:
        assert not decision.is_allow, "nobody has denied it, and the app was not called"
        assert server.state in ("closed", "denied") or session.left_alone, f"denied, and left {server.state}"
        assert APP_HEADER not in [pair for message in server.messages for pair in message.get("headers", ())]
        return
    heads = [message for message in server.messages if message["type"] == "websocket.http.response.start"]
    if heads and APP_HEADER in list(heads[0].get("headers", ())):
        inspected = bool(session.agents_for(EventType.RESPONSE_BODY_CHUNK))
        check_head(session, EventType.RESPONSE_HEADERS, body_follows=inspected, what="denial")
    drops = isinstance(decision.websocket_decision, WebSocketDrop) and isinstance(decision.decision, Allow)
    if not decision.is_allow and not drops and not session.left_alone and session.error is None:
        assert server.state != "open", "an agent has closed it, and it is open"
