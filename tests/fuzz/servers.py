"""The server's side of a connection: does nothing that ASGI forbids, and notes what it is sent that is forbidden."""

from collections.abc import Sequence
from typing import Any, Final

import anyio
from msgspec import Struct
from starlette.types import Message, Scope

#: Virtual seconds after which every client has lost its patience.
PATIENCE: Final = 100_000.0


class Plan(Struct, frozen=True):
    """What a client does.

    ``pieces`` are what it sends and how many seconds each takes; ``unfinished``: it never says that they were all.
    ``leaves_at`` is when it breaks the connection off, ``leaves_after`` how many messages to it that takes. ``slow`` is
    how many seconds it takes to read each.
    """

    pieces: Sequence[tuple[Any, float]] = ()
    unfinished: bool = False
    leaves_at: float | None = None
    leaves_after: int | None = None
    slow: float = 0.0

    @property
    def patient(self) -> bool:
        """Whether it says all that it has to say, and takes the answer within the time that clients are given."""
        return self.leaves_at is None and self.leaves_after is None and not self.unfinished and self.slow < 5.0


class Server:
    """What servers of both kinds of connections have in common."""

    def __init__(self, scope: Scope, plan: Plan) -> None:
        self.scope = scope
        self.plan = plan
        self.gone = False
        #: What it got, in order, and what of it ASGI forbids there.
        self.messages: list[Message] = []
        self.illegal: list[Message] = []
        self.faults: list[str] = []
        self._pieces = list(plan.pieces)
        self._reading = False
        self._news = anyio.Event()
        self._raises = scope["asgi"]["spec_version"] >= "2.4"

    async def leave_in_time(self) -> None:
        """The client's clock."""
        await anyio.sleep(PATIENCE if self.plan.leaves_at is None else self.plan.leaves_at)
        self.leave()

    def leave(self) -> None:
        """The client is gone."""
        self.gone = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    async def receive(self) -> Message:
        if self._reading:
            self.faults.append("two readers of receive")
        self._reading = True
        try:
            return await self._next()
        finally:
            self._reading = False

    async def _next(self) -> Message:
        raise NotImplementedError

    async def send(self, message: Message) -> None:
        if len(self.messages) == self.plan.leaves_after:
            self.leave()
        if self.gone:
            if self._raises:
                raise OSError("the client is gone")
            return
        if not self._fits(message):
            self.illegal.append(message)
            raise RuntimeError(f"Unexpected ASGI message {message['type']!r}")
        self.messages.append(message)
        self._tell()
        # Servers take a message, and then wait for what they have of it to leave.
        if self.plan.slow:
            with anyio.move_on_after(self.plan.slow):
                await self._left()

    def _fits(self, message: Message) -> bool:
        raise NotImplementedError

    async def _left(self) -> None:
        while not self.gone:
            await self._news.wait()


class HttpServer(Server):
    """One request. ASGI HTTP spec, 2.4."""

    _DISCONNECT: Final[Message] = {"type": "http.disconnect"}

    def __init__(self, scope: Scope, plan: Plan) -> None:
        super().__init__(scope, plan)
        self.body_read = b""
        # The last piece of it that was read.
        self.last_piece = b""
        self.body_ended = False
        self.start: Message | None = None
        self.complete = False
        self.spoilt = False
        self._body_complete = False

    @property
    def body(self) -> bytes:
        """What the client has of the body."""
        return b"".join(m.get("body", b"") for m in self.messages if m["type"] == "http.response.body")

    async def _next(self) -> Message:
        while not (self.gone or self.complete):
            if self._pieces:
                data, delay = self._pieces[0]
                if delay:
                    with anyio.move_on_after(delay):
                        await self._left()
                    self._pieces[0] = (data, 0.0)
                    continue
                del self._pieces[0]
                more = bool(self._pieces) or self.plan.unfinished
                self.body_read += data
                self.last_piece = data
                self.body_ended = not more
                message: Message = {"type": "http.request", "body": data, "more_body": more}
                # Keys that may be left out.
                if not more:
                    del message["more_body"]
                if not data:
                    del message["body"]
                return message
            if not self.plan.unfinished and not self.body_ended:
                self.body_ended = True
                return {"type": "http.request"}
            await self._news.wait()
        return self._DISCONNECT

    def _fits(self, message: Message) -> bool:
        match message["type"]:
            case "http.response.start":
                if self.start is not None:
                    return False
                self.start = message
                return True
            case "http.response.body":
                if self.start is None or self._body_complete:
                    return False
                self._body_complete = not message.get("more_body", False)
                self.complete = self._body_complete and not self.start.get("trailers", False)
                return True
            case "http.response.trailers":
                if not self._body_complete or self.complete:
                    return False
                self.complete = not message.get("more_trailers", False)
                return True
            case "http.response.early_hint" | "http.response.debug" | "http.response.push":
                return not self.complete
            case "http.response.aborted":
                self.spoilt = True
                return False
            case _:
                return False


class WebSocketServer(Server):
    """One websocket session. ASGI websocket spec, 2.4, with denial responses."""

    def __init__(self, scope: Scope, plan: Plan) -> None:
        super().__init__(scope, plan)
        self.state = "connecting"
        self.delivered = 0
        self.denial: list[Message] = []
        self._connected = False

    async def _next(self) -> Message:
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        while not self.gone and self.state not in ("closed", "denied"):
            if self._pieces and self.state == "open":
                data, delay = self._pieces[0]
                if delay:
                    with anyio.move_on_after(delay):
                        await self._left()
                    self._pieces[0] = (data, 0.0)
                    continue
                del self._pieces[0]
                self.delivered += 1
                return {"type": "websocket.receive", **data}
            if not self._pieces and not self.plan.unfinished and self.state == "open":
                self.leave()
                break
            await self._news.wait()
        self.leave()
        return {"type": "websocket.disconnect", "code": 1005, "reason": ""}

    def _fits(self, message: Message) -> bool:
        match message["type"], self.state:
            case "websocket.accept", "connecting":
                self.state = "open"
            case "websocket.close", "connecting" | "open":
                self.state = "closed"
            case "websocket.send", "open":
                return (message.get("bytes") is None) != (message.get("text") is None)
            case "websocket.http.response.start", "connecting":
                self.state = "denying"
                self.denial.append(message)
            case "websocket.http.response.body", "denying":
                self.denial.append(message)
                if not message.get("more_body", False):
                    self.state = "denied"
            case _:
                return False
        return True
