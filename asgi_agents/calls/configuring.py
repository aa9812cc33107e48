"""Asking an agent to take its configuration: by one call at a time, and more and more seldom while it refuses."""

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import anyio
from anyio import CancelScope

from ..concurrency.cancellation import cancel_requests, raise_swallowed
from ..concurrency.one_at_a_time import OneAtATime
from ..config import AgentConfig
from ..errors import AgentError, AgentUnavailableError
from ..failures import CallFailure, Failure, failure_of
from ..policy import FailureMode
from ..protocol import ConfigureEvent, EventType, reason_of
from ..protocol.responses import NOT_CONFIGURABLE
from ..transports.base import AgentClient, NotConnectedError
from .call import AgentCall
from .checking import check_general
from .deadlines import no_answer
from .delivery import Delivery
from .given_config import GivenConfig
from .recording import Recorder
from .sharing import is_same_config, lead_to_one_agent

logger = logging.getLogger("asgi_agents")

# An agent that refuses its configuration is asked again after 0.1 s, 0.2 s, … up to this many seconds.
_MAX_BACKOFF: Final = 30.0
# Seconds an agent may take to digest its configuration, if its own timeout is shorter.
_CONFIGURE_TIMEOUT: Final = 10.0


class Configuring:
    """Whether one agent has its configuration, and how it gets it.

    Clients that configure the agent themselves are only asked to connect, and to push a configuration.

    Once its guard was replaced or removed, it hands over what another one gives that leads to the same agent now. Where
    there is none it has its own configuration until its guard is closed, and nothing to hand over then.

    :ivar done: whether the agent has taken its configuration, or needs none.
    :ivar closed: whether its guard was closed, and hands over nothing of its own any more.
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
        # Whether the agent was given another configuration by another guard, and has not had ours since.
        self._lost = False
        # Of clients that don't configure the agent themselves: whether it may have been handed one.
        self._handed_over = False
        self.closed = False
        # Its guard is in no place any more; and who leads to the agent now, where that is known.
        self._has_left = False
        self._successor: Configuring | None = None
        self.logged = True
        self.done = not self._needed
        self._error = ""
        self._backoff = 0.0
        self._not_before = 0.0

    @property
    def delay(self) -> float:
        """Seconds until :meth:`configure` asks the agent again."""
        return max(0.0, self._not_before - self._clock())

    @property
    def asking(self) -> bool:
        """Whether the agent is being asked to take a configuration, or somebody has the :meth:`turn`."""
        return self._asking.is_under_way

    async def configure(self) -> None:
        """Hand the agent its configuration, unless it has it; raises :class:`AgentError` when it doesn't take it.

        Of concurrent calls one asks, the others wait for it. An agent behind lasting connections is waited for until
        there is one.
        """
        if self.done and self._client.configures_itself:
            with _as_agent_errors(self):
                await self._client.connect()
            return
        try:
            await self.wait(self._timeout, time.monotonic())
        except CallFailure as exc:
            raise AgentError(f"not configured: {self._error or exc}") from exc

    async def wait(self, timeout: float, started: float) -> None:
        """Ask the agent to take its configuration, or wait for whoever does, and take over should that be cancelled."""
        while not self.done:
            if self._successor is not None:
                await self._latest.wait(timeout, started)
                self.done, self._lost = True, False
                return
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
                    # Whoever had the turn may have changed any of this.
                    in_force = self._successor is None and not self.closed
                    if in_force and not self.done and self._clock() >= self._not_before:
                        await self._ask(timeout, started)
                finally:
                    self._asking.end()
            if self.done or self._successor is not None:
                continue
            if self.closed:
                raise AgentUnavailableError("not configured: it was removed")
            if self._clock() < self._not_before:
                raise AgentError(f"not configured: {self._error}")

    async def push(self, config: Any) -> None:
        """Give the agent another configuration while it runs; raises :class:`AgentError` when it doesn't take it.

        The caller has its :meth:`turn`. What it was given by one that leaves its place meanwhile is not in force.
        """
        self._require_place()
        overwritten = self._client.overwritten
        if self._client.configures_itself:
            with _as_agent_errors(self):
                await self._client.push_config(config)
        else:
            try:
                await self._hand_over(config, self._timeout, time.monotonic())
            except Exception as exc:
                raise AgentError(self._failure_of(exc).message) from exc
        self._given = config
        self._taken(overwritten)
        self._require_place()

    def _require_place(self) -> None:
        if self._has_left:
            raise AgentError(f"agent {self._config.id!r} was replaced or removed meanwhile")

    def forget(self) -> None:
        """The agent is to be configured anew before its next call."""
        self.done = not self._needed
        self.try_again()

    def try_again(self) -> None:
        """The agent may be asked at once: what it has failed in before says nothing any more."""
        self._not_before = self._backoff = 0.0

    @property
    def asks(self) -> bool:
        """Whether the agent is asked to take anything at all."""
        # An agent in the same process is told that it is being connected; others may refuse what says nothing.
        return self._given is not None or (not self._client.remote and EventType.CONFIGURE in self._client.hears)

    @property
    def _needed(self) -> bool:
        return self._lost or (self.asks and not self._client.configures_itself)

    @property
    def may_have_configured(self) -> bool:
        """Whether an agent may have been handed a configuration by this one, whatever has come of that."""
        return self._client.may_have_configured if self._client.configures_itself else self._handed_over

    # Where several guards lead to one agent

    def may_share_agent(self, other: "Configuring") -> bool:
        """Whether an agent that is asked to take this configuration may be that of ``other``.

        It is to be asked in its turn then, also where ``other`` gives the same: what that is being given, or has been
        given and not answered, is not known here.
        """
        if not self.asks:
            return False
        # One agent may have several addresses. To give it its own configuration once more does no harm.
        may_be_one = self._config.id == other._config.id and self._client.remote and other._client.remote
        return may_be_one or self._is_one_with(other)

    def overwrites(self, other: "Configuring", *, held: bool) -> bool:
        """Whether an agent that was asked to take this configuration may have lost that of ``other``.

        It may have taken it also where it has failed, and where nobody has waited for its answer.

        :param held: whether ``other`` was :meth:`held` all the time. Else the same may have come after another one.
        """
        given = other._latest._given
        if not self.may_share_agent(other):
            return False
        if held and is_same_config(self._given, given, sent=self._client.remote):
            return False
        return given is not None or self._is_one_with(other)

    def _is_one_with(self, other: "Configuring") -> bool:
        return lead_to_one_agent(self._config, self._client, other._config, other._client)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Nobody else hands the agent a configuration by this one meanwhile, save whoever connects."""
        while (under_way := self._asking.begin()) is not None:
            await under_way.wait()
        try:
            yield
        finally:
            self._asking.end()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Nobody hands the agent this configuration meanwhile, and whoever was about to has done so before.

        Calls to an agent that has not taken it yet wait, and so do connections that are made.
        """
        async with self.turn():
            try:
                await self._client.hold_config()
                yield
            finally:
                self._client.release_config()

    async def handed_over(self) -> None:
        """Wait for what is under way to configure the agent."""
        await self._client.config_handed_over()

    def lose(self) -> bool:
        """The agent was asked to take another configuration: it is to be handed this one again, and calls wait for it.

        Returns whether it was not going to be anyway.
        """
        self._client.overwritten += 1
        if not (self.done or self._lost):
            return False
        self._lost = True
        self.done = False
        self.try_again()
        return True

    def follow(self, other: "Configuring") -> None:
        """``other`` leads to the agent now. Whenever that is configured from now on, it gets what ``other`` gives.

        Else one that connects anew for the last calls of this guard would have the configuration of before again. Does
        nothing where ``other`` may lead to another agent.

        To be called again when ``other`` was given another configuration, for connections to come.
        """
        # At one host and port there may be several agents.
        same_name = self._config.id == other._config.id or self._client.agent is not None
        if same_name and lead_to_one_agent(self._config, self._client, other._config, other._client):
            latest = other._latest
            if latest is not self:
                self._successor = latest
                self._client.adopt_config(latest._given)

    def follows(self, other: "Configuring") -> bool:
        """Whether it hands over what ``other`` gives."""
        return self._latest is other

    def leave(self) -> None:
        """Its guard was replaced or removed: nobody gives the agent another configuration by it any more."""
        self._has_left = True

    def close(self) -> None:
        """Its guard is closed: it has nothing to hand over any more, be it asked for calls that are still under way."""
        self.closed = True

    @property
    def _latest(self) -> "Configuring":
        """Whoever gives the agent its configuration: this one, or the last that has come after it."""
        latest = self
        while latest._successor is not None:
            latest = latest._successor
        return latest

    @property
    def _timeout(self) -> float:
        return max(self._config.timeout, _CONFIGURE_TIMEOUT)

    async def _ask(self, timeout: float, started: float) -> None:
        overwritten = self._client.overwritten
        try:
            await self._hand_over(self._given, timeout, started)
        except Exception as exc:
            self._refused(self._failure_of(exc), exc)
            if isinstance(exc, CallFailure):
                raise
        else:
            self._taken(overwritten)

    def _taken(self, overwritten: int) -> None:
        """The agent has taken what it was given, when it had been overwritten so many times."""
        if overwritten != self._client.overwritten:
            return
        if self._error:
            logger.info("agent %r has taken its configuration", self._config.id)
        self.done = True
        self._lost = False
        self._error = ""

    async def _hand_over(self, config: Any, timeout: float, started: float) -> None:
        if self._client.configures_itself:
            with CancelScope(deadline=anyio.current_time() + started + timeout - time.monotonic()) as scope:
                # Whoever connects hands it over, and may have begun with that before the agent has lost it.
                await self._client.connect()
                await self._client.give_again(config)
            if scope.cancelled_caught:
                raise no_answer(timeout)
            return
        if self._client.agent is not None and type(config) is dict:
            config = GivenConfig(config)
        event = ConfigureEvent(agent_id=self._config.id, config=config)
        before, self._handed_over = self._handed_over, True
        try:
            answer = await self._delivery.answer_to(AgentCall(event, FailureMode.CLOSED, None, timeout, started))
        except NotConnectedError:
            self._handed_over = before
            raise
        response = check_general(self._config, event, answer)
        if not response.is_allow:
            reason = reason_of(response)
            if self._lost and config is None and reason == NOT_CONFIGURABLE:
                # It has lost nothing: nobody can have given it another one.
                return
            raise AgentError(f"refused its configuration: {reason}")

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


def give(configuring: Configuring, config: Any) -> None:
    """The agent is to take another configuration before its next call."""
    configuring._given = config
    configuring._client.adopt_config(config)
    configuring.lose()


@contextmanager
def _as_agent_errors(configuring: Configuring) -> Iterator[None]:
    """Clients of users may raise anything: it is told as an :class:`AgentError`, and logged with its traceback."""
    try:
        yield
    except AgentError:
        raise
    except Exception as exc:
        message = configuring._failure_of(exc).message
        if configuring.logged:
            logger.warning("%s", message, exc_info=configuring._recorder.traceback_of(exc))
        raise AgentError(message) from exc
