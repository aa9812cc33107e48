"""Asking an agent to take its configuration: by one call at a time, and more and more seldom while it refuses."""

import logging
import time
from collections.abc import Callable
from typing import Any, Final

import anyio
from anyio import CancelScope

from ..concurrency.cancellation import cancel_requests, raise_swallowed
from ..concurrency.one_at_a_time import OneAtATime
from ..config import AgentConfig
from ..errors import AgentError
from ..failures import CallFailure, Failure, failure_of
from ..policy import FailureMode
from ..protocol import ConfigureEvent, EventType, reason_of
from ..transports.base import AgentClient
from .call import AgentCall
from .checking import check_general
from .deadlines import no_answer
from .delivery import Delivery
from .given_config import GivenConfig
from .recording import Recorder

logger = logging.getLogger("asgi_agents")

# An agent that refuses its configuration is asked again after 0.1 s, 0.2 s, … up to this many seconds.
_MAX_BACKOFF: Final = 30.0
# Seconds an agent may take to digest its configuration, if its own timeout is shorter.
_CONFIGURE_TIMEOUT: Final = 10.0


class Configuring:
    """Whether one agent has its configuration, and how it gets it.

    Clients that configure the agent themselves are only asked to connect, and to push another configuration.

    :ivar done: whether the agent has taken its configuration, or needs none.
    :ivar logged: whether the log says that the agent refuses. Of one that is only to take another's place, the caller
        is told.
    """

    def __init__(
        self,
        config: AgentConfig,
        client: AgentClient,
        delivery: Delivery,
        recorder: Recorder,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._given = config.config
        self._client = client
        self._delivery = delivery
        self._recorder = recorder
        self._clock = clock
        self._asking = OneAtATime()
        self.logged = True
        self.done = not self._needed
        self._error = ""
        self._backoff = 0.0
        self._not_before = 0.0

    @property
    def delay(self) -> float:
        """Seconds until :meth:`configure` asks the agent again."""
        return max(0.0, self._not_before - self._clock())

    async def configure(self) -> None:
        """Hand the agent its configuration, unless it has it; raises :class:`AgentError` when it doesn't take it.

        Of concurrent calls one asks, the others wait for it. An agent behind lasting connections is waited for until
        there is one.
        """
        if self._client.configures_itself:
            await self._client.connect()
            return
        try:
            await self.wait(self._timeout, time.monotonic())
        except CallFailure as exc:
            raise AgentError(f"not configured: {self._error or exc}") from exc

    async def wait(self, timeout: float, started: float) -> None:
        """Ask the agent to take its configuration, or wait for whoever does, and take over should that be cancelled."""
        while not self.done:
            under_way = self._asking.begin()
            if under_way is not None:
                requests = cancel_requests()
                with CancelScope(deadline=anyio.current_time() + started + timeout - time.monotonic()) as scope:
                    await under_way.wait()
                # The wait may have ended in the same moment as the cancellation: the agent is asked nothing then.
                await raise_swallowed(requests)
                if scope.cancelled_caught:
                    raise no_answer(timeout)
            else:
                try:
                    if not self.done and self._clock() >= self._not_before:
                        await self._ask(timeout, started)
                finally:
                    self._asking.end()
            if not self.done and self._clock() < self._not_before:
                raise AgentError(f"not configured: {self._error}")

    async def push(self, config: Any) -> None:
        """Give the agent another configuration while it runs; raises :class:`AgentError` when it doesn't take it."""
        if self._client.configures_itself:
            await self._client.push_config(config)
        else:
            try:
                await self._hand_over(config, self._timeout, time.monotonic())
            except Exception as exc:
                raise AgentError(self._failure_of(exc).message) from exc
            self.done = True
        self._given = config

    def forget(self) -> None:
        """The agent is to be configured anew before its next call."""
        self.done = not self._needed
        self._not_before = self._backoff = 0.0

    @property
    def _needed(self) -> bool:
        if self._client.configures_itself:
            return False
        # An agent in the same process is told that it is being connected; others may refuse what says nothing.
        return self._given is not None or (not self._client.remote and EventType.CONFIGURE in self._client.hears)

    @property
    def _timeout(self) -> float:
        return max(self._config.timeout, _CONFIGURE_TIMEOUT)

    async def _ask(self, timeout: float, started: float) -> None:
        try:
            await self._hand_over(self._given, timeout, started)
        except Exception as exc:
            self._refused(self._failure_of(exc), exc)
            if isinstance(exc, CallFailure):
                raise
        else:
            if self._error:
                logger.info("agent %r has taken its configuration", self._config.id)
            self.done = True
            self._error = ""

    async def _hand_over(self, config: Any, timeout: float, started: float) -> None:
        if self._client.agent is not None and type(config) is dict:
            config = GivenConfig(config)
        event = ConfigureEvent(agent_id=self._config.id, config=config)
        answer = await self._delivery.answer_to(AgentCall(event, FailureMode.CLOSED, None, timeout, started))
        response = check_general(self._config, event, answer)
        if not response.is_allow:
            raise AgentError(f"refused its configuration: {reason_of(response)}")

    def _refused(self, failure: Failure, exc: Exception) -> None:
        if self.logged and self._error != failure.message:
            logger.warning(
                "%s; it is treated by its failure mode and asked again",
                failure.message,
                exc_info=self._recorder.traceback_of(exc),
            )
        self._error = failure.message
        self._backoff = min(_MAX_BACKOFF, max(0.1, self._backoff * 2))
        self._not_before = self._clock() + self._backoff

    def _failure_of(self, exc: Exception) -> Failure:
        return failure_of(
            exc,
            EventType.CONFIGURE,
            agent_id=self._config.id,
            function=self._client.function(EventType.CONFIGURE),
            configured=self._given is not None,
        )
