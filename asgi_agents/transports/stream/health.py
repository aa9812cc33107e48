"""How an agent is at the other end of a connection: what it says, how it answers, whether it is there. No I/O."""

import logging
import time
from collections import deque
from typing import Final
from weakref import WeakKeyDictionary

from ...protocol.stream import HealthState, HealthStatus, Ping, now_ms
from .pending_calls import PendingCall

logger = logging.getLogger("asgi_agents")

# An agent that is degraded may ask for more time, but not for any amount of it.
_MAX_TIMEOUT_MULTIPLIER: Final = 10.0
# How much one call counts in the score.
_SCORE_WEIGHT: Final = 0.1
_GOOD_SCORE: Final = 0.99
# How many lines there may be, in so many seconds, about what an agent says of its health.
_LOG_LINES: Final = 6
_LOG_INTERVAL: Final = 60.0


class Health:
    """Of one connection.

    :param now: as all times here, on :func:`time.monotonic`.

    :ivar state: what the agent has said last.
    :ivar timeout_multiplier: by how much a degraded agent wants its timeouts longer, 1 to 10.
    :ivar retired: whether the connection takes no new requests, whatever the agent says; see :meth:`retire`.
    :ivar score: the share of the latest calls that were answered in time, 0 to 1.
    :ivar watched: whether an answer is news to the owner of the connection.
    :ivar heard_at: when bytes came last.
    """

    __slots__ = (
        "_pinged_at",
        "_pings",
        "_why_retired",
        "heard_at",
        "retired",
        "score",
        "state",
        "timeout_multiplier",
        "watched",
    )

    def __init__(self, now: float) -> None:
        self.state = HealthState.HEALTHY
        self.timeout_multiplier = 1.0
        self.retired = False
        self._why_retired = ""
        self.score = 1.0
        self.watched = True
        self.heard_at = now
        self._pings = 0
        self._pinged_at: float | None = None

    @property
    def leaving(self) -> bool:
        """Whether the connection takes no new requests, and finishes those that it has."""
        return self.retired or self.state is HealthState.DRAINING

    @property
    def why_leaving(self) -> str:
        """The reason, for messages."""
        return "it is draining" if self.state is HealthState.DRAINING else self._why_retired or "it does not answer"

    def retire(self, why: str) -> None:
        """Let the connection take no new requests."""
        self.retired = True
        self._why_retired = self._why_retired or why

    def apply(self, status: HealthStatus) -> None:
        """Take over what the agent says; states that this version does not know are ignored."""
        try:
            self.state = HealthState(status.state)
        except ValueError:
            return
        multiplier = status.timeout_multiplier if self.state is HealthState.DEGRADED else 1.0
        self.timeout_multiplier = min(max(1.0, multiplier), _MAX_TIMEOUT_MULTIPLIER)

    def rate(self, *, answered: bool) -> None:
        """Count a call in the score: it was answered, or it failed by the agent's fault."""
        self.score += _SCORE_WEIGHT * ((1.0 if answered else 0.0) - self.score)
        if self.score > _GOOD_SCORE:
            self.score = 1.0

    def is_gone(self, oldest: PendingCall | None, now: float, stall_timeout: float) -> bool:
        """Whether the agent owes something for ``stall_timeout`` seconds, and has said nothing at all since.

        It owes the answer to a ping, and to calls that nobody waits for any more: the others have a deadline. An agent
        that says other things, but has not answered such a call for that long, never will. The connection is then
        :attr:`retired`, before those calls take all its room.

        :param oldest: the call that has been under way for longest.
        """
        if self._pinged_at is not None and self.heard_at > self._pinged_at:
            self._pinged_at = None
        owed_since = now if oldest is None or not oldest.abandoned else oldest.sent_at
        silent_since = max(self.heard_at, min(owed_since, now if self._pinged_at is None else self._pinged_at))
        if now - silent_since >= stall_timeout:
            return True
        if now - owed_since >= stall_timeout:
            self.retire("it does not answer")
        return False

    def next_ping(self, now: float) -> Ping | None:
        """What to ask the agent now; None while nothing has come since the latest ping."""
        if self._pinged_at is not None:
            return None
        self._pings += 1
        self._pinged_at = now
        return Ping(sequence=self._pings, timestamp_ms=now_ms())


class HealthLog:
    """Logs what an agent says of its health.

    It says so on each of its connections, and may change its mind at any time. So each change is logged once for an
    endpoint, and there are at most six lines a minute.
    """

    def __init__(self, agent_id: str) -> None:
        self._agent_id = agent_id
        self._logged: WeakKeyDictionary[object, HealthState] = WeakKeyDictionary()
        self._times: deque[float] = deque()

    def note(self, endpoint: object, address: str, state: HealthState) -> None:
        """The agent has said so on one of its connections to ``endpoint``, which is at ``address`` now."""
        if self._logged.get(endpoint, HealthState.HEALTHY) is state:
            return
        now = time.monotonic()
        while self._times and self._times[0] < now - _LOG_INTERVAL:
            self._times.popleft()
        if len(self._times) < _LOG_LINES:
            self._times.append(now)
            self._logged[endpoint] = state
            logger.log(
                logging.INFO if state is HealthState.HEALTHY else logging.WARNING,
                "agent %r at %s says that it is %s",
                self._agent_id,
                address,
                state.name.lower(),
            )
