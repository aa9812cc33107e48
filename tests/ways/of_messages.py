"""Cases of agents that receive the messages of websockets."""

from collections.abc import Sequence
from typing import Any, Final

from asgi_agents import AgentResponse, BodyMutation, EventType, WebSocketFrameEvent

from .case import AS_WITHOUT, Case, Expected, Kind, Said


def _case(name: str, said: Said, messages: Sequence[str | bytes], expected: Expected = AS_WITHOUT, **more: Any) -> Case:
    answers = {EventType.WEBSOCKET_FRAME: said}
    return Case(name=name, kind=Kind.MESSAGES, answers=answers, messages=tuple(messages), expected=expected, **more)


def _drops_spam_of_the_client(event: WebSocketFrameEvent) -> AgentResponse | None:
    return AgentResponse.websocket_drop() if event.data == b"spam" else None


def _drops_spam_of_the_app(event: WebSocketFrameEvent) -> AgentResponse | None:
    return AgentResponse.websocket_drop() if event.data == b"echo: spam" else None


def _closes(event: WebSocketFrameEvent) -> AgentResponse | None:
    return AgentResponse.websocket_close(4001, "evil") if event.data == b"evil" else None


def _replaces(event: WebSocketFrameEvent) -> AgentResponse | None:
    if not event.client_to_server or b"#" not in event.data:
        return None
    changed = BodyMutation(event.data.replace(b"#", b"[number]"), event.frame_index)
    return AgentResponse.allow(request_body_mutation=changed)


CASES: Final[Sequence[Case]] = (
    _case("allow messages", None, ("hello", b"\x00\xff", "bye")),
    _case(
        "drop a message of the client",
        _drops_spam_of_the_client,
        ("spam", "hello", "bye"),
        Expected(app_body=b"hello\nbye", body=b"echo: hello\necho: bye"),
    ),
    _case(
        "drop a message of the app",
        _drops_spam_of_the_app,
        ("spam", "hello", "bye"),
        Expected(body=b"echo: hello\necho: bye"),
    ),
    _case(
        "close a websocket",
        _closes,
        ("hello", "evil", "bye"),
        Expected(app_body=b"hello", body=b"echo: hello", close=(4001, "evil")),
        never=b"evil\n",
    ),
    _case(
        "replace a message",
        _replaces,
        ("my #", "bye"),
        Expected(app_body=b"my [number]\nbye", body=b"echo: my [number]\necho: bye"),
        never=b"#",
    ),
    _case(
        "fail on a message and be closed",
        LookupError("it is broken"),
        ("hello", "bye"),
        Expected(app_body=b"", body=b"", close=(1011, "Agent error")),
    ),
    _case("fail on a message and be open", LookupError("it is broken"), ("hello", "bye"), opens=True),
)
