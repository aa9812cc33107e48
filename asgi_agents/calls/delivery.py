"""Brings an event to the agent and the answer back, and makes answers and errors of what the agent raises."""

from collections.abc import Coroutine
from typing import Any

from anyio.lowlevel import checkpoint_if_cancelled

from ..concurrency.cancellation import first_of, is_of_cancellations, name_of, was_asked_for
from ..errors import AgentError, AgentTimeoutError
from ..failures import CallFailure, FailureKind
from ..protocol import Answer
from ..transports.base import AgentClient
from .blocking import Steps, in_steps
from .call import AgentCall
from .deadlines import Queue, within
from .raised import answer_raised


class Delivery:
    """Delivers the calls to one agent."""

    def __init__(self, client: AgentClient, steps: Steps, queue: Queue) -> None:
        self._client = client
        self._reserves = client.reserves
        self._steps = steps
        self._queue = queue

    def begin(self, call: AgentCall) -> Coroutine[Any, Any, Answer | None]:
        """Deliver the call, under its deadline; what is raised, here or by what is returned, is for :meth:`settle`.

        No coroutine function, because each would be a frame more between the app's server and the hook.
        """
        if call.raised is not None:
            try:
                raise call.raised
            finally:
                # Its traceback leads here: one would keep the other alive.
                call.raised = None
        event = call.event
        if self._reserves:
            return self._at_place(call)
        coroutine = self._client.call(event, call.started + call.timeout)
        if self._client.may_suspend(event.event_type):
            return within(coroutine, call.timeout, call.started, self._steps, event.event_type)
        return in_steps(coroutine, self._steps, event.event_type)

    async def settle(self, call: AgentCall, exc: BaseException) -> Answer:
        """The answer that was given by raising ``exc``. Raises what it comes to where it is none."""
        event_type = call.event.event_type
        try:
            match exc:
                case AgentTimeoutError():
                    raise CallFailure(FailureKind.TIMEOUT, f"{exc} within the deadline of {call.timeout:g} s") from exc
                case _ if is_of_cancellations(exc):
                    # No cancellation reaches what can't suspend.
                    if self._client.may_suspend(event_type) and was_asked_for():
                        # In the caller's scope's own words, if it has not had its say yet.
                        await checkpoint_if_cancelled()
                        # Cancelled, and maybe failed over it in a task group: what counts is that it was cancelled.
                        raise first_of(exc, errors=False) or exc
                    # Its own, from a task or future of the agent's that was cancelled: a failure like any other.
                    raise AgentError(f"raised {name_of(exc)}, though nobody has cancelled it") from exc
            answer = None
            if isinstance(exc, Exception):
                answer = answer_raised(exc, event_type, self._steps.function(event_type))
            if answer is None:
                raise exc
            return answer
        finally:
            # Its traceback leads here: one would keep the other alive.
            del exc

    async def answer_to(self, call: AgentCall) -> Answer | None:
        """Deliver the call and return the agent's answer, also one that it has raised."""
        try:
            return await self.begin(call)
        except BaseException as exc:
            return await self.settle(call, exc)

    async def _at_place(self, call: AgentCall) -> Answer | None:
        place = await self._queue.place(call)
        return await place.call(call.event, call.started + call.timeout)
