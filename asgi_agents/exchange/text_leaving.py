"""What may leave of an app's websocket messages, on its way to the server."""

from collections import deque
from collections.abc import Callable
from typing import Literal

import anyio
from anyio.abc import TaskGroup
from starlette.types import Send

from ..concurrency.limiter import Limiter
from ..guardrails.message import Payload, Reason
from .reply import close_reason
from .text_messages import message_of


class LeavingMessages:
    """Messages that may leave and were not sent yet, in their order.

    :param send: the server's.
    :param broken: called with what that has raised while something was sent beside the app.
    """

    __slots__ = ("_broken", "_messages", "_send", "_sending", "body", "reason", "sends")

    def __init__(self, send: Send, broken: Callable[[Exception], None]) -> None:
        self._send = send
        self._broken = broken
        self._messages: deque[Payload] = deque()
        self._sending = Limiter(1)
        #: Whether a send of the app is under way, which has a message of its own, or is a close. The app may give it up
        #: although it has more to send than its own.
        self.sends: Literal["own", "close"] | None = None
        #: Why the app closes the session, once that was judged.
        self.reason = ""
        #: Takes the body of a response to the handshake in place of the server, where there is one.
        self.body: list[bytes] | None = None

    @property
    def pending(self) -> bool:
        """Whether there is anything that was not sent yet."""
        return bool(self._messages) or self._sending.taken > 0

    def clear(self) -> None:
        """Send nothing of it."""
        self._messages.clear()

    async def leave(self, messages: list[Payload], tasks: TaskGroup | None, *, last: bool) -> None:
        """Send these, behind those that are there.

        :param tasks: for what is sent beside the app.
        :param last: whether no others wait for verdicts.
        """
        leaving = self._messages
        leaving.extend(messages)
        if not leaving:
            return
        own = self.sends == "own" and len(leaving) == 1 and last
        if tasks is None or own or self.sends is None:
            try:
                await self.drain()
            finally:
                if leaving and tasks is not None:
                    # It has waited for somebody who was given up.
                    tasks.start_soon(self._drain_aside, anyio.Event())
            return
        # The app may give up this send. The others, whose messages these are, have returned.
        sent = anyio.Event()
        tasks.start_soon(self._drain_aside, sent)
        await sent.wait()

    async def drain(self) -> None:
        """Send what is there, one after the other."""
        leaving, sending = self._messages, self._sending
        if not sending.try_acquire():
            await sending.acquire()
        try:
            while leaving:
                payload = leaving.popleft()
                if isinstance(payload, Reason):
                    self.reason = close_reason(payload)
                elif self.body is not None and isinstance(payload, bytes):
                    self.body.append(payload)
                else:
                    await self._send(message_of("websocket.send", payload))
        except Exception:
            leaving.clear()
            raise
        finally:
            sending.release()

    async def _drain_aside(self, sent: anyio.Event) -> None:
        try:
            await self.drain()
        except Exception as exc:
            # The server's: that is for the app's send to raise.
            self._broken(exc)
        finally:
            sent.set()
