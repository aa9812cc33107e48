"""Which calls may begin on a connection: how many at a time, and what the agent has asked to be held back. No I/O."""

import math
from collections.abc import Container

from ...protocol.stream import AgentCapabilities, FlowAction, FlowControl


class Capacity:
    """How many calls an instance of the agent takes at a time. All connections to the instance share it."""

    __slots__ = ("limit", "taken")

    def __init__(self) -> None:
        self.limit = math.inf
        self.taken = 0


class Flow:
    """The limits of one connection.

    :param max_calls: how many calls may be under way, those included that nobody waits for any more and that the agent
        has not answered yet.

    :ivar reserved: places that are taken for calls that were not sent yet.
    :ivar paused: whether the agent has asked to be sent nothing.
    :ivar window: how many bytes of unanswered events the agent can take; None where it has not said.
    :ivar limited: whether anything but the number of calls can keep a call from beginning.
    """

    __slots__ = ("_paused_ids", "capacity", "limited", "max_calls", "paused", "reserved", "window")

    def __init__(self, capacity: Capacity, max_calls: int) -> None:
        self.capacity = capacity
        self.max_calls = max_calls
        self.reserved = 0
        self.paused = False
        self.window: int | None = None
        self.limited = False
        self._paused_ids: set[str] = set()

    def agree(self, capabilities: AgentCapabilities) -> None:
        """Keep to the numbers of calls that the agent names in its handshake."""
        if capabilities.features.concurrent_requests > 0:
            self.max_calls = min(self.max_calls, capabilities.features.concurrent_requests)
        most = capabilities.limits.max_concurrency
        self.capacity.limit = most if most > 0 else math.inf

    def reserve(self) -> None:
        """Take a place."""
        self.reserved += 1
        self.capacity.taken += 1

    def give_back(self) -> None:
        """Give a place back that was not used."""
        self.reserved -= 1
        self.capacity.taken -= 1

    def admits(self, correlation_id: str, unanswered_bytes: int) -> bool:
        """Whether the agent's requests allow a call about ``correlation_id`` to begin now."""
        return not (
            self.paused
            # How many bytes a call has is known once it is sent.
            or (self.window is not None and (self.reserved > 0 or unanswered_bytes >= self.window))
            or correlation_id in self._paused_ids
        )

    def is_paused(self, correlation_id: str) -> bool:
        """Whether the agent has asked to be sent nothing, or nothing about this request."""
        return self.paused or self.window == 0 or correlation_id in self._paused_ids

    def apply(self, control: FlowControl, requests: Container[str]) -> None:
        """Follow what the agent asks; actions that this version does not know are ignored.

        :param requests: those whose events are sent on this connection. A pause of any other would never be forgotten,
            and is ignored too.
        """
        if control.action == FlowAction.UPDATE_CAPACITY:
            self.window = None if control.buffer_available is None else max(0, control.buffer_available)
        elif control.action in (FlowAction.PAUSE, FlowAction.RESUME):
            pause = control.action == FlowAction.PAUSE
            if not control.correlation_id:
                self.paused = pause
            elif not pause:
                self._paused_ids.discard(control.correlation_id)
            elif control.correlation_id in requests:
                self._paused_ids.add(control.correlation_id)
        self.limited = self.paused or self.window is not None or bool(self._paused_ids)

    def forget(self, correlation_id: str) -> None:
        """The request is over, or its events go to another connection."""
        self._paused_ids.discard(correlation_id)
