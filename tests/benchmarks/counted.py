"""What :mod:`.instructions` counts: the guarded apps, and what is done with them.

No more of the package is used than its public names, so that an older one can be counted as well.
"""

import functools
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_agents import AgentConfig, AgentMiddleware, BodyMode, StreamTransport
from asgi_agents.serve import serve_stream

from .agents import AllowBody, AllowFrames, allow
from .driver import body_messages, drive, frame_messages, http_scope, websocket_scope
from .variant import is_there

# A counted process takes fifty times as long. No deadline is to pass in it.
_LONG: Final = 300.0
# In a stream of so many tokens there is something to redact.
_REDACTED: Final = 300
# 1 MiB, as a server reads it. The agent finds what it looks for at once: not its search is to be counted.
_PIECES: Final = 16
_PIECE: Final = b"\0" * 65536


@dataclass(frozen=True)
class Counted:
    """``title`` says what is done ``times`` times, by ``run(times, socket)``.

    :param peer: whether an agent in another process is needed, at the path ``socket``.
    :param needs: a module without which it can't be done.
    """

    title: str
    run: Callable[[int, Path], Coroutine[Any, Any, None]]
    peer: bool = False
    needs: str | None = None

    @property
    def available(self) -> bool:
        return self.needs is None or is_there(self.needs)


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


async def _take(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["more_body"]:
        pass
    await _answer(scope, receive, send)


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def _request(times: int, socket: Path) -> None:
    await _drive_requests(AgentMiddleware(_answer, agents=[AgentConfig("allow", allow, timeout=_LONG)]), times)


async def _upload(times: int, socket: Path) -> None:
    config = AgentConfig("allow", AllowBody(), request_body_mode=BodyMode.STREAM, chunk_timeout=_LONG)
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % (_PIECES * len(_PIECE)))]
    scope = http_scope("/uploads", method="POST", headers=headers)
    sent = await drive(AgentMiddleware(_take, agents=[config]), scope, body_messages(*[_PIECE] * _PIECES), times)
    _check(sent[0].get("status") == 200, sent)


async def _message(times: int, socket: Path) -> None:
    app = AgentMiddleware(_echo, agents=[AgentConfig("allow", AllowFrames(), timeout=_LONG)])
    sent = await drive(app, websocket_scope("/echo"), frame_messages("x" * 64, times), 1)
    _check([message["type"] for message in sent] == ["websocket.accept", *["websocket.send"] * times], sent)


async def _call(times: int, socket: Path) -> None:
    transport = StreamTransport(f"unix://{socket}", ping_interval=_LONG, stall_timeout=2 * _LONG)
    app = AgentMiddleware(_answer, agents=[AgentConfig("allow", transport, timeout=_LONG)])
    await _drive_requests(app, times)


async def _served_call(times: int, socket: Path) -> None:
    with TemporaryDirectory(prefix="asgi-agents-") as directory:
        path = Path(directory, "agent.sock")
        async with anyio.create_task_group() as tasks:
            await tasks.start(functools.partial(serve_stream, allow, f"unix://{path}"))
            await _call(times, path)
            tasks.cancel_scope.cancel()


async def _token(times: int, socket: Path) -> None:
    # Imported here: older versions of the package have none.
    from .chat import ASKED, CHAT, DONE, REDACTED, Settled, Streaming, chat_events, guarded

    sent = await drive(guarded(Streaming(chat_events(times)), Settled()), CHAT, ASKED, 1)
    body = b"".join(message.get("body", b"") for message in sent)
    _check(body.endswith(DONE) and (times < _REDACTED or REDACTED.encode() in body), sent)


async def _drive_requests(app: ASGIApp, times: int) -> None:
    sent = await drive(app, http_scope("/items/42"), body_messages(b""), times)
    _check(sent[0].get("status") == 200, sent)


def _check(right: bool, sent: list[Message]) -> None:
    if not right:
        raise RuntimeError(f"the app sends {sent[:3]!r}")


async def _exchange(times: int, socket: Path) -> None:
    # Imported here: older versions of the package have none.
    from .processed import exchanges

    await exchanges(times)


COUNTED: Final[Mapping[str, Counted]] = {
    "request": Counted("a request, judged by its headers in the process", _request),
    "upload": Counted("an upload of 1 MiB, each of its 16 pieces judged in the process", _upload),
    "message": Counted("a websocket message and its echo, each judged in the process", _message),
    "call": Counted("a request, judged over a Unix socket; only what the guarded app does", _call, peer=True),
    "guardrail": Counted("a token of a chat's stream, judged by a guardrail in the process", _token),
    "exchange": Counted(
        "an exchange of Envoy's ext_proc, judged by its headers; without gRPC's library",
        _exchange,
        needs="envoy.service",
    ),
    "served": Counted("the same, with the served agent counted as well", _served_call),
}
