"""One deadline for a call: waiting for a permit, waiting for a place on a connection, and the answer."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio
from anyio import CancelScope

from ..breaker import CircuitBreaker
from ..concurrency.cancellation import cancel_requests, given_up, raise_swallowed
from ..concurrency.shared_limiter import SharedLimiter
from ..errors import AgentUnavailableError
from ..failures import CallFailure, FailureKind
from ..policy import FailureMode
from ..protocol import EventType
from ..transports.base import AgentClient, Place
from .blocking import Steps, in_steps
from .call import AgentCall

T = TypeVar("T")


def no_answer(timeout: float) -> CallFailure:
    """The deadline of ``timeout`` seconds has passed."""
    return CallFailure(FailureKind.TIMEOUT, f"no answer within the deadline of {timeout:g} s")


def refusal(breaker: CircuitBreaker) -> CallFailure:
    """The breaker lets no call through."""
    return CallFailure(FailureKind.BREAKER_OPEN, "its circuit breaker is open", breaker.retry_after)


class Queue:
    """Where the calls to one agent wait, each under its deadline: for a permit, and for a place on a connection."""

    def __init__(self, client: AgentClient, breaker: CircuitBreaker | None, limiter: SharedLimiter) -> None:
        self._client = client
        self._breaker = breaker
        self._limiter = limiter
        self._reserving = 0

    @property
    def waiting(self) -> int:
        """Calls that wait for either."""
        return self._limiter.waiting + self._reserving

    async def permit(self, call: AgentCall) -> None:
        """Wait for one of the permits that all calls under way have."""
        waited_from = time.monotonic()
        try:
            if call.failure_mode is FailureMode.OPEN and self._client.is_paused(call.event):
                # The permits are with calls that are held until the pause is over. This one need not be.
                raise AgentUnavailableError("it has asked for a pause")
            if self._breaker is not None and self._breaker.would_refuse:
                # Don't make anyone wait for a permit only to be turned away.
                raise refusal(self._breaker)
            with CancelScope(deadline=anyio.current_time() + call.timeout) as scope:
                await self._limiter.acquire()
            if scope.cancelled_caught:
                raise CallFailure(
                    FailureKind.QUEUE_TIMEOUT,
                    f"none of its {self._limiter.limit} concurrent calls ended within the deadline of "
                    f"{call.timeout:g} s",
                )
        finally:
            call.queued += time.monotonic() - waited_from

    async def place(self, call: AgentCall) -> Place:
        """Wait for a place on one of the agent's connections, under what is left of the deadline."""
        waited_from = time.monotonic()
        self._reserving += 1
        try:
            with CancelScope(deadline=anyio.current_time() + call.started + call.timeout - waited_from):
                # While an agent has paused, there is nothing to wait for where it can be done without.
                return await self._client.reserve(call.event, hold=call.failure_mode is not FailureMode.OPEN)
        finally:
            self._reserving -= 1
            call.queued += time.monotonic() - waited_from
        waited_for = self._client.why_waiting(call.event)
        if waited_for:
            raise CallFailure(
                FailureKind.QUEUE_TIMEOUT, f"not sent within the deadline of {call.timeout:g} s: {waited_for}"
            )
        raise CallFailure(FailureKind.TIMEOUT, f"not connected within the deadline of {call.timeout:g} s")


async def within(
    call: Coroutine[Any, Any, T], timeout: float, started: float, steps: Steps, event_type: EventType
) -> T:
    """Await ``call``, the hook for such an event, under what is left of the deadline.

    Entering a scope is cheap, arming its timer is not, and most in-process calls finish in their first step. So the
    scope gets its deadline once the call suspends. The call runs inside of it from the start, so that scopes of its
    own nest as they should.

    A call that was cancelled may swallow that and go on. Whatever it returns or raises then is discarded: it has
    timed out if the deadline cancelled it, and a cancellation from outside is raised again.
    """
    # Empty until the call suspends: before that nothing can cancel it.
    requests: list[int] = []

    def arm() -> None:
        requests.append(cancel_requests())
        scope.deadline = anyio.current_time() + started + timeout - time.monotonic()

    try:
        with CancelScope() as scope:
            result = await in_steps(call, steps, event_type, arm)
    except (Exception, BaseExceptionGroup, asyncio.CancelledError) as exc:
        if requests:
            if isinstance(exc, asyncio.CancelledError):
                if given_up() or cancel_requests() > requests[0]:
                    raise
            else:
                await raise_swallowed(requests[0])
            if scope.cancel_called:
                raise no_answer(timeout) from exc
        raise
    if requests:
        await raise_swallowed(requests[0])
        if scope.cancel_called:
            raise no_answer(timeout)
    return result
