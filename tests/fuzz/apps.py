"""Apps that do as they are told by the input, and remember what they saw."""

from collections.abc import Sequence
from contextlib import suppress

import anyio
from anyio.lowlevel import checkpoint
from msgspec import Struct
from starlette.types import Message, Receive, Scope, Send


class AppError(Exception):
    """The app's own."""


class Step(Struct, frozen=True):
    """One thing that an app does.

    ``how``: ``await`` it, ``give up`` at its first suspension, or do it ``beside`` what follows.
    """

    kind: str
    message: Message | None = None
    how: str = "await"
    seconds: float = 0.0


class Script(Struct, frozen=True):
    """An app. ``legal``: ASGI allows all that it sends, in that order; ``stubborn``: it goes on whatever is raised."""

    steps: Sequence[Step]
    legal: bool
    stubborn: bool = False

    @property
    def raises(self) -> bool:
        """Whether it raises of its own accord."""
        return any(step.kind == "raise" for step in self.steps)

    @property
    def sequential(self) -> bool:
        """Whether it does one thing after the other, each to its end."""
        return all(step.how == "await" for step in self.steps)


class ScriptedApp:
    """Runs a script."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.received: list[Message] = []
        #: What it has begun to send, and how much of that has been taken.
        self.sent: list[Message] = []
        self.finished = False
        self._reading = anyio.Lock()

    @property
    def body(self) -> bytes:
        """What it has of the request body."""
        return b"".join(bytes(m.get("body", b"")) for m in self.received if m["type"] == "http.request")

    @property
    def whole(self) -> bool:
        """Whether it takes that for all of it."""
        return any(m["type"] == "http.request" and not m.get("more_body", False) for m in self.received)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> str:
        self.calls += 1
        self.headers = list(scope["headers"])
        error: Exception | None = None
        async with anyio.create_task_group() as beside:
            try:
                for step in self.script.steps:
                    if step.how == "beside":
                        beside.start_soon(self._aside, step, receive, send)
                    elif step.how == "give up":
                        with anyio.CancelScope() as scope_:
                            scope_.cancel()
                            await self._tolerantly(step, receive, send)
                    else:
                        await self._tolerantly(step, receive, send)
            except Exception as exc:
                # Not out of the group, which would wrap it.
                error = exc
                beside.cancel_scope.cancel()
        if error is not None:
            raise error
        self.finished = True
        return "returned by the app"

    async def _aside(self, step: Step, receive: Receive, send: Send) -> None:
        with suppress(Exception):
            await self._do(step, receive, send)

    async def _tolerantly(self, step: Step, receive: Receive, send: Send) -> None:
        try:
            await self._do(step, receive, send)
        except AppError:
            raise
        except Exception:
            if not self.script.stubborn:
                raise

    async def _do(self, step: Step, receive: Receive, send: Send) -> None:
        match step.kind:
            case "read":
                await self._read(receive)
            case "read all":
                while True:
                    message = await self._read(receive)
                    if message["type"].endswith("disconnect") or (
                        message["type"] == "http.request" and not message.get("more_body", False)
                    ):
                        return
            case "send":
                assert step.message is not None
                self.sent.append(step.message)
                await send(dict(step.message))
            case "raise":
                raise AppError
            case "pause" if step.seconds:
                await anyio.sleep(step.seconds)
            case _:
                await checkpoint()

    async def _read(self, receive: Receive) -> Message:
        # One reader at a time, as ASGI has it.
        async with self._reading:
            message = await receive()
            self.received.append(message)
            return message
