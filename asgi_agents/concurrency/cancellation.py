"""Tells a cancellation that came from outside from a CancelledError that code raised itself."""

import asyncio
import math

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from .background import on_trio


def given_up() -> bool:
    """Whether the running code is cancelled, so that nobody waits for its result."""
    return anyio.current_effective_deadline() == -math.inf


def was_asked_for() -> bool:
    """Whether asyncio's CancelledError that is under way comes from outside the call."""
    if given_up():
        return True
    try:
        task = asyncio.current_task()
    except RuntimeError:
        # On trio nothing raises asyncio's CancelledError but the code itself.
        return False
    return task is not None and task.cancelling() > 0


def cancel_requests() -> int:
    """How many requests to cancel asyncio's running task are pending; 0 on other event loops.

    Cancel scopes and :func:`asyncio.timeout` take their requests back when they end. So a request that was added since
    an earlier call of this function comes from outside of the code that ran in between.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return 0
    return 0 if task is None else task.cancelling()


def is_of_cancellations(exc: BaseException) -> bool:
    """Whether ``exc`` is a cancellation, or a group with one and with nothing beside it but exceptions.

    Whether anybody has asked for it is another question.
    """
    if isinstance(exc, Exception):
        return False
    cancellations: tuple[type[BaseException], ...] = (asyncio.CancelledError,)
    if on_trio():
        cancellations += (anyio.get_cancelled_exc_class(),)
    if not isinstance(exc, BaseExceptionGroup):
        return isinstance(exc, cancellations)
    cancelled, rest = exc.split(cancellations)
    return cancelled is not None and isinstance(rest, Exception | None)


def first_of(exc: BaseException, *, errors: bool) -> BaseException | None:
    """The first that is an :class:`Exception`, or the first that is none, in a group or by itself."""
    if not isinstance(exc, BaseExceptionGroup):
        return exc if isinstance(exc, Exception) is errors else None
    return next((found for each in exc.exceptions if (found := first_of(each, errors=errors)) is not None), None)


def name_of(exc: BaseException) -> str:
    """What to call a failure that is of cancellations: the error beside them says more than the group."""
    names = (type(found).__name__ for errors in (True, False) if (found := first_of(exc, errors=errors)) is not None)
    return " beside ".join(names)


async def raise_swallowed(requests: int) -> None:
    """Raise the cancellation of the running code again, if the call that has just ended swallowed it.

    Does nothing, and does not suspend, if nothing outside of the call has cancelled it.

    :param requests: what :func:`cancel_requests` returned before the call.
    """
    if given_up():
        await checkpoint_if_cancelled()
    if cancel_requests() > requests:
        raise asyncio.CancelledError
