"""Connections to all that the host of a URL leads to, on one event loop."""

import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, Generic, Protocol, TypeVar

from ..concurrency.background import BackgroundTask
from ..errors import AgentConnectionError, AgentError, EventTooLargeError, NotApplicableError
from ..observability.endpoints import EndpointState, EndpointStatistics
from .base import NotConnectedError
from .discovery import Ejection, Member, Watch, can_be_spared, less_loaded

# Seconds by which an event loop may cancel a call before its deadline has passed on the clock.
_EARLY: Final = 0.01

Question = TypeVar("Question")
Reply = TypeVar("Reply")
_AskedFor = TypeVar("_AskedFor", contravariant=True)
_Got = TypeVar("_Got", covariant=True)


class Pool(Protocol[_AskedFor, _Got]):
    """Connections to one member."""

    @property
    def idle(self) -> int:
        """Connections that no call uses."""
        ...

    async def send(self, request: _AskedFor, deadline: float) -> _Got:
        """Send ``request`` and return the answer.

        :raises NotConnectedError: nothing was sent.
        """
        ...

    async def aclose(self) -> None:
        """Close the idle connections now, and each of the others when its call ends."""
        ...


class _Lane(Generic[Question, Reply]):
    """What is known of one member."""

    def __init__(self, member: Member, pool: Pool[Question, Reply]) -> None:
        self.member = member
        self.pool = pool
        self.ejection = Ejection()
        self.in_flight = 0
        #: Why the latest attempt to connect has failed; empty where it has not.
        self.fault = ""

    def answered(self) -> None:
        self.ejection.answered()
        self.fault = ""


def _in_flight(lane: _Lane[Question, Reply]) -> int:
    return lane.in_flight


class NamedPool(Generic[Question, Reply]):
    """Spreads calls over the members of a name, for as long as it leads to them.

    While there is one member, :attr:`send` is that of its pool. A call whose connection can't be made goes to another
    member: nothing of it was sent. It is repeated for no other reason.

    :param make: the connections to a member.
    :param scheme: for the addresses of :meth:`statistics`.
    """

    def __init__(
        self, host: str, port: int, make: Callable[[Member], Pool[Question, Reply]], *, scheme: str, interval: float
    ) -> None:
        self._make = make
        self._scheme = scheme
        self._lanes: dict[Member, _Lane[Question, Reply]] = {}
        # The one that has answered last, until it is known that its answer could be read.
        self._latest: _Lane[Question, Reply] | None = None
        self._ending: list[BackgroundTask] = []
        self._watch = Watch(
            host, port, where=f"{scheme}://{host}:{port}", changed=self._members_changed, interval=interval
        )
        #: Send a request, until a deadline on :func:`time.monotonic`, and return the answer.
        self.send: Callable[[Question, float], Awaitable[Reply]] = self._send_when_ready

    async def members(self) -> Sequence[Member]:
        """Where the name leads; raises :class:`AgentConnectionError` where that can't be found out."""
        await self._watch.ready()
        return self._watch.members

    def statistics(self) -> Sequence[EndpointStatistics]:
        """Of each member, where there are several."""
        return [self._statistics_of(lane) for lane in self._lanes.values()] if len(self._lanes) > 1 else ()

    def failed(self) -> None:
        """A call has failed: see whether the name leads elsewhere now."""
        self._watch.failed()

    def unreadable(self) -> None:
        """The answer that :attr:`send` has just returned, to the running task, was none."""
        lane, self._latest = self._latest, None
        if lane is not None:
            self._rate(lane)

    async def aclose(self) -> None:
        """Follow the name no more, and close the connections as :meth:`Pool.aclose` does."""
        self._watch.cancel()
        for lane in self._lanes.values():
            await lane.pool.aclose()
        for task in self._ending:
            await task.wait()
        await self._watch.wait()

    def _members_changed(self) -> None:
        before = self._lanes
        members = self._watch.members
        self._lanes = {member: before.get(member) or _Lane(member, self._make(member)) for member in members}
        self._ending = [task for task in self._ending if not task.ended]
        self._ending += (BackgroundTask(lane.pool.aclose) for each, lane in before.items() if each not in self._lanes)
        if len(members) == 1:
            self.send = self._lanes[members[0]].pool.send
        elif members:
            self.send = self._send_to_one

    async def _send_when_ready(self, request: Question, deadline: float) -> Reply:
        await self._watch.ready()
        return await self.send(request, deadline)

    async def _send_to_one(self, request: Question, deadline: float) -> Reply:
        tried: list[_Lane[Question, Reply]] = []
        while True:
            latest, self._latest = self._latest, None
            if latest is not None:
                latest.answered()
            lane = self._pick(tried)
            lane.in_flight += 1
            try:
                answer = await lane.pool.send(request, deadline)
            except NotConnectedError as exc:
                lane.fault = str(exc)
                self._rate(lane)
                self._watch.failed(lane.member)
                tried.append(lane)
                if all(each in tried for each in self._lanes.values()):
                    raise
            except (EventTooLargeError, NotApplicableError):
                # What a client can bring about says nothing of the member, as it says nothing to the circuit breaker.
                lane.answered()
                raise
            except Exception as exc:
                self._rate(lane)
                if not isinstance(exc, AgentError) or isinstance(exc, AgentConnectionError):
                    self._watch.failed()
                raise
            except BaseException:
                if time.monotonic() >= deadline - _EARLY:
                    self._rate(lane)
                raise
            else:
                self._watch.reached(lane.member)
                self._latest = lane
                return answer
            finally:
                lane.in_flight -= 1

    def _pick(self, tried: Collection[_Lane[Question, Reply]]) -> _Lane[Question, Reply]:
        lanes = [lane for lane in self._lanes.values() if lane not in tried]
        now = time.monotonic()
        # Better one that fails often than none.
        return less_loaded([lane for lane in lanes if not lane.ejection.left_out(now)] or lanes, _in_flight)

    def _rate(self, lane: _Lane[Question, Reply]) -> None:
        """A call to it has failed by its fault."""
        now = time.monotonic()
        others = sum(each.ejection.until <= now for each in self._lanes.values() if each is not lane)
        lane.ejection.failed(now, spared=can_be_spared(others, len(self._lanes)))

    def _statistics_of(self, lane: _Lane[Question, Reply]) -> EndpointStatistics:
        state: EndpointState = "up"
        if lane.fault:
            state = "down"
        elif lane.ejection.until > time.monotonic():
            state = "ejected"
        return EndpointStatistics(
            address=f"{self._scheme}://{lane.member}",
            state=state,
            connections=lane.pool.idle + lane.in_flight,
            in_flight=lane.in_flight,
            fault=lane.fault,
        )
