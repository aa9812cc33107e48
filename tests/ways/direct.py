"""A case's client, as the server of a guarded app has it: ASGI messages, without a network."""

from urllib.parse import unquote

import anyio
from starlette.types import ASGIApp, Message, Scope

from asgi_agents import ResponseAborted
from tests.support.asgi import Client

from .app import HAVE_BEGUN, SEEN
from .case import Case, Outcome, joined

#: Seconds after which what has not happened never will.
PATIENCE = 60.0
#: What servers and the ways themselves say of a message.
NOISE = frozenset({"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding", "upgrade"})


async def outcome_of(case: Case, app: ASGIApp, run: str) -> Outcome:
    """What comes of the case. ``run`` names it to the app, and is new each time."""
    with anyio.fail_after(PATIENCE):
        return await (_http(case, app, run) if case.messages is None else _websocket(case, app, run))


async def _http(case: Case, app: ASGIApp, run: str) -> Outcome:
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in _fields(case, run)]
    client = _Client(case.method, headers=headers, body=case.body)
    client.run = run
    _put_target(client.scope, case)
    cut = False
    try:
        await client.call(app)
    except ResponseAborted:
        cut = True
    assert client.status is not None
    assert client.complete is not cut
    return outcome(case, run, client.status, client.headers, b"" if cut else client.body, cut=cut)


class _Client(Client):
    run = ""

    async def send(self, message: Message) -> None:
        await super().send(message)
        if message.get("body"):
            HAVE_BEGUN.add(self.run)


async def _websocket(case: Case, app: ASGIApp, run: str) -> Outcome:
    session = _Session(case, run)
    async with anyio.create_task_group() as tasks:
        await app(session.scope, session.receive, session.send)
        tasks.cancel_scope.cancel()
    return session.outcome(case, run)


class _Session:
    """The client of a websocket: it sends each message when it has the answer to the one before, or never gets one."""

    def __init__(self, case: Case, run: str) -> None:
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in _fields(case, run)]
        self.scope: Scope = {
            **Client(headers=headers).scope,
            "type": "websocket",
            "scheme": "ws",
            "subprotocols": [],
            "extensions": {"websocket.http.response": {}},
        }
        del self.scope["method"]
        _put_target(self.scope, case)
        inbox: list[Message] = [{"type": "websocket.connect"}]
        for message in case.messages or ():
            kind = "text" if isinstance(message, str) else "bytes"
            inbox.append({"type": "websocket.receive", kind: message})
        self._inbox = inbox
        self._status = 403
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._close: tuple[int, str] | None = None
        self._over = anyio.Event()

    async def receive(self) -> Message:
        if self._inbox:
            return self._inbox.pop(0)
        await self._over.wait()
        return {"type": "websocket.disconnect", "code": 1006 if self._close is None else self._close[0]}

    async def send(self, message: Message) -> None:
        match message["type"]:
            case "websocket.accept":
                self._status = 101
            case "websocket.send":
                text = message.get("text")
                self._body.append(message["bytes"] if text is None else text.encode())
            case "websocket.close":
                self._close = (message.get("code", 1000), message.get("reason") or "")
                self._over.set()
            case "websocket.http.response.start":
                self._status, self._headers = message["status"], list(message["headers"])
            case "websocket.http.response.body":
                self._body.append(message.get("body", b""))

    def outcome(self, case: Case, run: str) -> Outcome:
        separator = b"\n" if self._status == 101 else b""
        return outcome(case, run, self._status, self._headers, separator.join(self._body), close=self._close)


def outcome(
    case: Case,
    run: str,
    status: int,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    *,
    cut: bool = False,
    close: tuple[int, str] | None = None,
) -> Outcome:
    """What is compared of what the client got, and what the app has got."""
    fields = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers]
    declared = [int(value) for name, value in fields if name == "content-length"]
    assert declared in ([], [len(body)]) or case.method == "HEAD" or cut
    kept = [field for field in fields if field[0] not in NOISE and not field[0].startswith("x-envoy-")]
    if status == 101:
        kept = []
    read = case.read(body) if not cut and status != 503 else body
    return Outcome(status, joined(kept), read, SEEN.pop(run, None), cut, close)


def _fields(case: Case, run: str) -> list[tuple[str, str]]:
    return [("host", "app.example"), ("x-run", run), *case.headers]


def _put_target(scope: Scope, case: Case) -> None:
    path, _, query = case.target.partition("?")
    scope.update(path=unquote(path), raw_path=path.encode(), query_string=query.encode())
