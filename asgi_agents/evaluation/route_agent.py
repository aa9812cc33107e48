"""An agent on a route."""

from collections.abc import Awaitable

from msgspec import Struct
from msgspec.structs import replace

from ..config import DEFAULT_MAX_BODY_BYTES
from ..decision import Verdict
from ..failures import FailureKind, too_large, unreadable
from ..guard import Guard
from ..policy import FailureMode, FailureModeName
from ..protocol import Event, EventType
from ..protocol.stream import correlation_id_of

# To look a member of an enumeration up by its name takes long (CPython 3.11).
_REQUEST_BODY_CHUNK = EventType.REQUEST_BODY_CHUNK

#: An agent's id, or a pair of id and failure mode.
AgentReference = str | tuple[str, FailureMode | FailureModeName]


class RouteAgent(Struct, frozen=True):
    """An agent on a route (None: of no route in particular), with the failure mode that holds there."""

    guard: Guard
    failure_mode: FailureMode
    route: str | None = None

    def evaluate(self, event: Event, chunk: bool = False) -> Awaitable[Verdict]:
        """Show ``event`` to the agent."""
        return self.guard.call(event, self.failure_mode, chunk, self.route)

    @property
    def stops_when_failing(self) -> bool:
        """Whether a failure of the agent stops the connection."""
        return self.guard.config.enforce and self.failure_mode is FailureMode.CLOSED

    def body_limit(self, event_type: EventType) -> int | None:
        """The largest such body that the agent is to inspect, in bytes, if its configuration says."""
        config = self.guard.config
        return config.max_request_body_bytes if event_type is _REQUEST_BODY_CHUNK else config.max_response_body_bytes

    def held_limit(self, event_type: EventType) -> int:
        """How many bytes of such a body may be held for the agent.

        Its configured limit or the default, and no more than it says itself that it takes at a time.
        """
        limit = self.body_limit(event_type)
        limit = DEFAULT_MAX_BODY_BYTES if limit is None else limit
        most = self.guard.client.max_body_size
        return limit if most is None else min(limit, most)

    def check_held(self, event_type: EventType, correlation_id: str, size: int) -> Verdict | None:
        """The verdict of the agent where ``size`` bytes of a body are more than may be held for it; else None."""
        limit = self.held_limit(event_type)
        return None if size <= limit else self.body_too_large(event_type, correlation_id, limit)

    def lost(self, event: Event) -> Verdict:
        """The verdict on a call that ended without one, because its task was cancelled from inside."""
        fault = "its task was cancelled, though nobody has cancelled it"
        return self._skip(event.event_type, correlation_id_of(event), FailureKind.ERROR, fault, traced=True)

    def body_too_large(self, event_type: EventType, correlation_id: str, limit: int) -> Verdict:
        """The verdict of an agent that is not shown a body because it is over ``limit`` bytes."""
        return self._skip(event_type, correlation_id, too_large(event_type), f"body over its limit of {limit} bytes")

    def body_unreadable(self, event_type: EventType, correlation_id: str, fault: str) -> Verdict:
        """The verdict of an agent that can't be shown what is in a body."""
        return self._skip(event_type, correlation_id, unreadable(event_type), f"body not readable: {fault}")

    def not_applicable(self, verdict: Verdict, correlation_id: str, fault: str) -> Verdict:
        """What becomes of ``verdict`` when it can't be applied any more. It was counted as an answer before."""
        failed = self._skip(verdict.event_type, correlation_id, FailureKind.NOT_APPLICABLE, fault)
        return replace(failed, duration=verdict.duration)

    def _skip(
        self, event_type: EventType, correlation_id: str, kind: FailureKind, fault: str, *, traced: bool = False
    ) -> Verdict:
        return self.guard.skip(
            event_type,
            kind,
            self.failure_mode,
            fault,
            correlation_id=correlation_id,
            route=self.route,
            traced=traced,
        )
