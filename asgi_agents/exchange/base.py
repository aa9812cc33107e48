"""What HTTP requests and websocket sessions have in common: a head, what follows it, and an end."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar

import anyio
from msgspec import Struct
from starlette.types import Receive, Scope, Send

from ..decision import ALLOWED, AgentDecision, Verdict
from ..evaluation.route_agent import RouteAgent
from ..protocol import EventType, RequestCompleteEvent
from .head import head_event, judge_head, report_completion
from .rendering import Renderers
from .scope import App
from .state import ExchangeState

T = TypeVar("T")

# To look a member of an enumeration up by its name takes long (CPython 3.11).
_REQUEST_COMPLETE: Final = EventType.REQUEST_COMPLETE


class Summary(Struct, frozen=True):
    """How a connection has ended, for ``request_complete``.

    :ivar ended: when the client had everything, on the monotonic clock in seconds.
    :ivar received: the size of the request's body, or of the messages of the client, in bytes.
    :ivar sent: the same of what the client was sent.
    """

    status: int
    ended: float
    received: int
    sent: int


class Exchange(ABC):
    """One connection between a server and an app, with agents in between.

    :meth:`run` takes it from its head to its end. How an app is replied for, and what of the connection follows the
    head, is for the subclass to say.

    :param stop_grace: seconds for an app that an agent has stopped while it ran: it is cancelled then, unless it has
        ended, or noticed that its client is gone.
    """

    __slots__ = (
        "_app_called",
        "_raw_receive",
        "_raw_send",
        "_renderers",
        "_resolved_route",
        "_scope",
        "_state",
        "_stop_grace",
    )

    def __init__(
        self,
        state: ExchangeState,
        scope: Scope,
        receive: Receive,
        send: Send,
        renderers: Renderers,
        stop_grace: float,
    ) -> None:
        self._state = state
        self._scope = scope
        self._raw_receive = receive
        self._raw_send = send
        self._resolved_route = state.resolved_route
        self._renderers = renderers
        self._stop_grace = stop_grace
        self._app_called = False

    async def run(self, app: App, decision: AgentDecision | None = None) -> Any:
        """The whole exchange. Returns what the app returns.

        :param decision: what the agents have decided on the head, where they were asked already.
        """
        started = time.monotonic()
        error: BaseException | None = None
        provisional: Mapping[str, Verdict] = {}
        try:
            if decision is None:
                decision = ALLOWED
                if self._resolved_route.head_agents:
                    # The event has no name here: it would stay for as long as the connection.
                    judged = await self._while_there(
                        judge_head(self._state, head_event(self._state, self._scope), body_agents=self._body_agents())
                    )
                    if judged is None:
                        return None
                    decision, provisional = judged
            if not decision.is_allow:
                await self._deny(decision)
                return None
            self._state.note_ops(decision)
            return await self._serve(app, decision, provisional)
        except BaseException as exc:
            error = exc
            raise
        finally:
            if self._resolved_route.agents_for(_REQUEST_COMPLETE):
                await self._complete(started, error)

    async def refuse(self, decision: AgentDecision) -> None:
        """Answer in the app's place with ``decision``, without asking or telling any agent."""
        await self._deny(decision)

    def _while_there(self, call: Coroutine[Any, Any, T]) -> Awaitable[T | None]:
        """What ``call`` returns, which asks agents before the app is called; None where the client has left."""
        return call

    def _body_agents(self) -> Sequence[RouteAgent]:
        """The agents that receive a body behind the head, where one may follow."""
        return ()

    @abstractmethod
    async def _deny(self, decision: AgentDecision) -> None:
        """Answer in the app's place: ``decision`` on the head is not allow."""

    @abstractmethod
    async def _serve(self, app: App, decision: AgentDecision, provisional: Mapping[str, Verdict]) -> Any:
        """Take what follows the head past the agents, with the app at the other end. Returns what the app returns.

        :param decision: that on the head, which is allow.
        :param provisional: the denials of the head that agents may still take back when they are shown the body.
        """

    @property
    @abstractmethod
    def _running(self) -> anyio.CancelScope | None:
        """The scope in which the app runs, where it can be stopped."""

    def _cancel_after_grace(self) -> None:
        """Give the app :attr:`stop_grace` seconds."""
        scope = self._running
        if scope is None:
            return
        if self._stop_grace:
            # A timer of the event loop, and no task.
            scope.deadline = anyio.current_time() + self._stop_grace
        else:
            scope.cancel()

    def _app_noticed(self) -> None:
        """The app has noticed the end, and may take the time that it would take over a client that left."""
        scope = self._running
        if scope is not None:
            scope.deadline = math.inf

    @abstractmethod
    def _summary(self, error: BaseException | None) -> Summary:
        """How it has ended; ``error`` is what the app, or something around it, has raised."""

    async def _complete(self, started: float, error: BaseException | None) -> None:
        """Tell the agents how the connection has ended."""
        summary = self._summary(error)
        event = RequestCompleteEvent(
            correlation_id=self._state.correlation_id,
            status=summary.status,
            duration_ms=round((summary.ended - started) * 1000),
            request_body_size=summary.received,
            response_body_size=summary.sent,
            upstream_attempts=int(self._app_called),
            error=None if error is None else type(error).__name__,
        )
        await report_completion(self._state, event)
