"""Uses that an app makes of a directory, which may fail: what has failed is told to who has asked, and to the log."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from anyio import CapacityLimiter, to_thread
from msgspec import Struct

from ..errors import AgentsError, escaped
from ..messages.throttle import Throttle

logger: Final = logging.getLogger("asgi_agents")

R = TypeVar("R")


class UnusableDirectoryError(AgentsError):
    """The directory can't be used; the message says why."""


class Fault(Struct, frozen=True):
    """Why something could not be done, in one printable line."""

    reason: str


def unheard(app: str) -> Fault:
    """What is to be told where the other workers would answer, and don't hear of this one."""
    return Fault(
        f"this worker tells the others nothing, expected {app}(...) before the app starts, and an app that runs its"
        " lifespan"
    )


class Attempts:
    """What is tried, and comes back with its :class:`Fault`.

    :param complaint: how the line of the log begins that says so.
    """

    def __init__(self, complaint: str) -> None:
        self._complaint = complaint
        self._throttle = Throttle()

    async def in_thread(self, function: Callable[[], R]) -> R | Fault:
        """What the function returns in a thread, or why it has failed."""
        # Not one of those threads that the app's own handlers may have taken up.
        return await to_thread.run_sync(self.make, function, limiter=CapacityLimiter(1))

    async def in_background(self, function: Callable[[], Awaitable[R]]) -> R | None:
        """What the function returns; None: it has raised something. That is logged, so that the next may succeed.

        There may be no thread, for one, as long as the app has taken all that there are.
        """
        try:
            return await function()
        except Exception:
            if self._throttle.due(None):
                logger.exception("%s (logged once a minute)", self._complaint)
            return None

    def make(self, function: Callable[[], R]) -> R | Fault:
        """What the function returns, or why it has failed."""
        try:
            return function()
        except (OSError, UnusableDirectoryError) as exc:
            # A path may have bytes in it that are no text.
            reason = escaped(f"{type(exc).__name__}: {exc}" if isinstance(exc, OSError) else str(exc))
            self.complain(reason)
            return Fault(reason)

    def complain(self, reason: str) -> None:
        """Have the log say so, once a minute."""
        if self._throttle.due(reason):
            logger.warning("%s: %s (logged once a minute)", self._complaint, reason)
