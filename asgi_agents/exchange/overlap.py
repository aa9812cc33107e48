"""Guardrails that judge a request while its app runs.

::

    app ──send──> Overlap.send ──> TextAnswer.send     once the verdict is there
                      │
                 Overlap._judge    asks about the request; releases what was held, or has the app stopped
                 Overlap._watch    reads ahead: a client that leaves ends the judging
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup
from starlette.types import Message

from ..errors import printable
from ..guardrails.body import Body
from .inbound import Inbound
from .response import BODY_BYPASSES
from .text_answer import TextAnswer
from .text_asking import Asking, Stopped

logger: Final = logging.getLogger("asgi_agents")

#: How much of an answer is held until there is a verdict: bytes, and messages. Then the app's `send` waits.
MAX_HELD_BYTES: Final = 1024 * 1024
MAX_HELD_MESSAGES: Final = 1024


class Overlap:
    """Has a request judged beside the app, and holds all that the app sends, in its order, until the verdict is there.

    :param bodies: what is judged.
    :param answer: takes what the app sends after the verdict.
    """

    def __init__(self, asking: Asking, bodies: Sequence[Body], answer: TextAnswer, inbound: Inbound) -> None:
        self._asking = asking
        self._bodies = bodies
        self._answer = answer
        self._inbound = inbound
        self._judging = anyio.CancelScope()
        self._client_left = False
        self._stopped = False
        self._held: deque[Message] = deque()
        self._held_bytes = 0
        # Whether the verdict is there and nothing is held: what the app sends passes.
        self._open = False
        # Set when a task that waits may have something to go on with.
        self._changed = anyio.Event()
        # What the server, or the answer's guardrails, have raised for what was held. The app's next send raises it.
        self._error: Exception | None = None
        # What the server has raised for the answer in the app's place.
        self._reply_error: Exception | None = None

    async def run(self, call: Callable[[], Awaitable[Any]], tasks: TaskGroup) -> Any:
        """Run the app. Ends when the verdict is there as well. Returns what the app returns."""
        tasks.start_soon(self._judge)
        tasks.start_soon(self._watch)
        result: Any = None
        try:
            result = await call()
        except Exception as exc:
            too_early = not self._open
            await self._settled()
            if not (too_early and self._stopped):
                raise
            # The client has its answer, as if the app had never run.
            path = printable(str(self._asking.call.scope.get("path", "")))
            name = type(exc).__name__
            logger.warning("guardrails, %r: the app had raised %s when its call was stopped", path, name)
        else:
            await self._settled()
        if self._reply_error is not None:
            raise self._reply_error
        if self._error is not None and not self._answer.stopped:
            raise self._error
        return result

    def note_disconnect(self) -> None:
        """The client has left: nobody needs the verdict."""
        if not self._open:
            self._client_left = True
            self._judging.cancel()

    async def send(self, message: Message) -> None:
        """The app's ``send``.

        Its head doesn't wait. The end of its answer does, so that what the app does then comes after the verdict. So
        does a file, which the app may close or remove as soon as it was sent.
        """
        if self._open:
            self._raise_error()
            await self._answer.send(message)
            return
        kind = message["type"]
        waits = kind in BODY_BYPASSES or (kind == "http.response.body" and not message.get("more_body", False))
        self._hold(message)
        while not self._open and (waits or self._full):
            await self._changed.wait()
        self._raise_error()
        if self._open and self._answer.stopped:
            # It was discarded. As for any message of an app that was stopped.
            await self._answer.send(message)

    @property
    def _full(self) -> bool:
        return self._held_bytes > MAX_HELD_BYTES or len(self._held) > MAX_HELD_MESSAGES

    def _hold(self, message: Message) -> None:
        # The app may use its buffer again.
        body = bytes(message.get("body", b""))
        self._held.append({**message, "body": body} if body else {**message})
        self._held_bytes += len(body)

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    async def _settled(self) -> None:
        while not self._open:
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _discard(self) -> None:
        self._held.clear()
        self._held_bytes = 0
        self._open = True
        self._notify()

    async def _judge(self) -> None:
        try:
            with self._judging:
                for body in self._bodies:
                    await self._asking.judge_body(body, may_change=False)
        except Stopped as stopped:
            self._stopped = True
            self._answer.abandon()
            self._discard()
            try:
                await self._answer.replace(stopped)
            except Exception as exc:
                # The server's. Out of the task group, which would wrap it.
                self._reply_error = exc
            return
        except BaseException:
            # The exchange is cancelled. What is held was not judged, and a task of the app may still send.
            self._answer.abandon()
            self._discard()
            raise
        if self._client_left:
            self._answer.abandon()
            self._discard()
            return
        await self._release()

    async def _release(self) -> None:
        """Send what was held, and what the app sends meanwhile. It may hold more while this waits for the client."""
        try:
            while self._held:
                message = self._held.popleft()
                self._held_bytes -= len(message.get("body", b""))
                await self._answer.send(message)
                self._notify()
        except Exception as exc:
            self._error = exc
            if not self._answer.stopped:
                # What follows what is held must not be sent without it.
                self._answer.lost(exc)
        except BaseException:
            # Nor here.
            self._answer.abandon()
            raise
        finally:
            self._discard()

    async def _watch(self) -> None:
        """An app that does not read hears nothing of a client that leaves. It is told when it does."""
        try:
            message = await self._inbound.look_ahead()
        except Exception:
            # The server's: the app meets it when it reads.
            return
        if message is not None and message["type"] == "http.disconnect":
            self.note_disconnect()
