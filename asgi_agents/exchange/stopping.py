"""What the app and its client meet where a response is stopped: the same whoever has stopped it."""

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import anyio
from anyio.lowlevel import checkpoint
from starlette.types import Message, Scope, Send

from ..errors import ClosedByAgent, ResponseAborted
from .scope import raises_when_gone

#: Seconds for a client to take a reply.
REPLY_TIMEOUT: Final = 10.0
# Seconds for a middleware around this one to take the abort marker.
_ABORT_TIMEOUT: Final = 1.0


class Dropping:
    """Takes what an app sends for a response that was stopped, as servers do once the client is gone.

    :param fault: what the error says that ``send`` raises.
    :param on_stop: called with True when an app whose response was only replaced goes on streaming.
    :param on_noticed: called when the app has noticed it, or has sent its whole response nevertheless.
    :ivar cut_off: whether the app is to find its client gone.
    """

    __slots__ = ("_any", "_fault", "_on_noticed", "_on_stop", "_scope", "cut_off")

    def __init__(
        self, scope: Scope, fault: str, *, on_stop: Callable[[bool], None], on_noticed: Callable[[], None]
    ) -> None:
        self._scope = scope
        self._fault = fault
        self._on_stop = on_stop
        self._on_noticed = on_noticed
        # Whether it has taken anything.
        self._any = False
        self.cut_off = False

    async def take(self, message: Message) -> None:
        """The app's next message."""
        # An app that streams from memory would block the event loop if this did not yield. But the first call does not:
        # when the app is cancelled because its client has left, the cancellation has to reach the generator that it
        # streams from while that waits, which ends it. In a send it would leave the generator to the garbage collector.
        if self._any:
            await checkpoint()
        self._any = True
        more = message.get("more_body", False)
        if (more or self.cut_off) and raises_when_gone(self._scope):
            self._on_noticed()
            raise ClosedByAgent(self._fault)
        if more and not self.cut_off:
            # It was only replaced, but its app goes on streaming, perhaps for ever.
            self.cut_off = True
            self._on_stop(True)
        elif not more and message["type"].endswith("http.response.body"):
            self._on_noticed()


async def send_whole(send: Send, *messages: Message) -> ResponseAborted | None:
    """Send messages that belong together, also if the task is cancelled.

    Returns why the response is broken off, where the client has not taken them: one that doesn't read is not waited for
    longer than REPLY_TIMEOUT.
    """
    with anyio.move_on_after(REPLY_TIMEOUT, shield=True) as scope:
        for message in messages:
            await send(message)
    if not scope.cancelled_caught:
        return None
    return ResponseAborted(f"response broken off: the client has not taken it within {REPLY_TIMEOUT:g} s")


async def send_abort_marker(send: Send, error: ResponseAborted | None, prefix: str = "") -> None:
    """Keep middlewares between this one and the server from completing a response that was broken off.

    Starlette's ``BaseHTTPMiddleware`` ends the body in good order when the app inside it raises, unless a message that
    it doesn't know has come before. Then it raises an AssertionError whose text is the message. This one has the reason
    in it, so that the server's log has it too. Servers don't know the message either, and raise as well.
    """
    # A client that has stopped reading is not waited for.
    with anyio.move_on_after(_ABORT_TIMEOUT, shield=True), suppress(Exception):
        await send({"type": f"{prefix}http.response.aborted", "reason": str(error)})
