"""The agents of a route, and how they are asked: side by side, in stages, or one after the other."""

from collections import deque
from collections.abc import Awaitable, Callable, Container, Sequence

import anyio
from msgspec import Struct
from msgspec.structs import replace

from ..config import DEFAULT_MAX_BODY_BYTES
from ..decision import Verdict, is_denied
from ..failures import FailureKind, too_large, unreadable
from ..guard import Guard
from ..policy import FailureMode, FailureModeName
from ..protocol import ALLOW, BodyChunkEvent, Event, EventType, RequestHeadersEvent
from ..protocol.stream import CancelReason, correlation_id_of
from ..transports.base import cancel_reason
from .stages import order_of

# All that can follow the head of an http request.
_AFTER_THE_HEAD = frozenset(
    {
        EventType.REQUEST_BODY_CHUNK,
        EventType.RESPONSE_HEADERS,
        EventType.RESPONSE_BODY_CHUNK,
        EventType.REQUEST_COMPLETE,
    }
)

# Those in whose answers an agent can set request headers.
_REQUESTS = frozenset({EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK})

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

    def lost(self, event: Event) -> Verdict:
        """The verdict on a call whose task was cancelled from inside, so that it came to nothing."""
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


class RouteListing(Struct, frozen=True):
    """What is known of a route without resolving it.

    ``path`` is None for what no route matches, ``methods`` None for all. ``agents`` is None for all agents there are.
    """

    path: str | None
    methods: tuple[str, ...] | None
    agents: tuple[AgentReference, ...] | None


class ResolvedRoute:
    """The agents of a route, in route order, resolved once for many connections.

    ``connections`` counts those that hold it: an agent that is replaced or removed is only closed once nobody that may
    still call it is left.
    """

    __slots__ = (
        "_by_event",
        "agents",
        "asks_for_plain_bodies",
        "asks_for_whole_bodies",
        "concerns_http",
        "concerns_websockets",
        "connections",
        "head_agents",
        "head_order",
        "headers_in_process_only",
        "hears",
        "hears_heads_only",
        "inspects_responses",
        "lasting",
        "plain_heads_only",
        "reshapes_requests",
        "retired",
        "route",
        "sets",
        "unpacks_bodies",
    )

    def __init__(self, agents: Sequence[RouteAgent], route: str | None = None) -> None:
        self.agents = tuple(agents)
        #: The pattern of the route, or None.
        self.route = route
        self.connections = 0
        #: Whether something has changed, so that new connections get another.
        self.retired = False
        #: Those who want to know when a connection is over.
        self.lasting = tuple(agent.guard for agent in self.agents if agent.guard.keeps_requests)
        self._by_event = {
            event_type: tuple(agent for agent in self.agents if event_type in agent.guard.hears)
            for event_type in EventType
        }

        #: Those that hear the heads of requests.
        self.head_agents = self._by_event[EventType.REQUEST_HEADERS]
        #: Whether no head leaves the process.
        self.headers_in_process_only = all(agent.guard.local for agent in self.head_agents)
        #: The events that any agent hears.
        self.hears = frozenset(event_type for event_type, hearing in self._by_event.items() if hearing)
        #: Whether anything of a request, or of a websocket session, concerns any agent.
        self.concerns_http = not self.hears.isdisjoint({EventType.REQUEST_HEADERS, *_AFTER_THE_HEAD})
        self.concerns_websockets = self.concerns_http or EventType.WEBSOCKET_FRAME in self.hears
        #: Whether any agent has a say in what the app answers.
        self.inspects_responses = not self.hears.isdisjoint({EventType.RESPONSE_HEADERS, EventType.RESPONSE_BODY_CHUNK})
        # Those that have a say in the bodies of responses, so that the app must send none that they can't judge.
        judges = [agent.guard.config for agent in self._by_event[EventType.RESPONSE_BODY_CHUNK]]
        judges = [config for config in judges if config.enforce]
        #: Whether the app must not be asked for parts of bodies, for encoded ones, or for codings unknown here.
        self.asks_for_whole_bodies = any(not c.ranges and c.response_content_types is None for c in judges)
        self.asks_for_plain_bodies = any(c.body_access == "write" and not c.decode for c in judges)
        self.unpacks_bodies = any(c.decode for c in judges)
        #: Any of these.
        self.reshapes_requests = self.asks_for_whole_bodies or self.asks_for_plain_bodies or self.unpacks_bodies
        #: Whether the head of a request is all of it that concerns any agent.
        self.hears_heads_only = self.hears.isdisjoint(_AFTER_THE_HEAD)
        #: Which of those that hear heads are asked after which; None: all of them at once.
        self.head_order = order_of(
            {agent.guard.config.id: tuple(agent.guard.config.after) for agent in self.agents},
            [agent.guard.config.id for agent in self.head_agents],
        )
        #: Whether heads are all that is heard, and everybody hears them at once.
        self.plain_heads_only = self.hears_heads_only and self.head_order is None
        #: The headers that are the agents' alone to set, so that they are taken out of what the client sends.
        self.sets: frozenset[str] = frozenset().union(
            *(
                agent.guard.config.sets
                for agent in self.agents
                if agent.guard.config.enforce and not agent.guard.hears.isdisjoint(_REQUESTS)
            )
        )

    def forget(self, correlation_id: str) -> None:
        """The connection of that id is over."""
        for guard in self.lasting:
            guard.forget_request(correlation_id)

    def agents_for(self, event_type: EventType) -> tuple[RouteAgent, ...]:
        """Those that hear such events."""
        return self._by_event[event_type]


async def evaluate(
    agents: Sequence[RouteAgent],
    event: Event,
    *,
    chunk: bool = False,
    final: bool = True,
    everyone: bool = False,
) -> Sequence[Verdict]:
    """Show ``event`` to ``agents`` in parallel; the verdicts of those that answered, in route order.

    Those that can't change the decision any more are cancelled, or never asked, unless ``everyone`` is to hear it.
    Agents that can't suspend are asked one after the other, which costs no tasks.
    """
    if len(agents) == 1:
        agent = agents[0]
        return (await agent.guard.call(event, agent.failure_mode, chunk, agent.route),)
    event_type = event.event_type
    verdicts: list[Verdict | None] = [None] * len(agents)
    waiting: list[int] = []
    for index, agent in enumerate(agents):
        if agent.guard.may_suspend(event_type):
            waiting.append(index)
            continue
        verdict = verdicts[index] = await agent.guard.call(event, agent.failure_mode, chunk, agent.route)
        if verdict.response is not ALLOW and verdict.denies and (final or not verdict.provisional) and not everyone:
            # Whoever comes later can't overrule it; those before it still can.
            break
    if len(waiting) == 1:
        verdicts[waiting[0]] = await agents[waiting[0]].evaluate(event, chunk)
    elif waiting:
        events = [event] * len(agents)
        await _ask_at_once(agents, events, waiting, verdicts, chunk=chunk, final=final, everyone=everyone)
    return [verdict for verdict in verdicts if verdict is not None]


async def evaluate_head(
    resolved_route: ResolvedRoute, event: RequestHeadersEvent, *, hear_more: Container[str] = frozenset()
) -> Sequence[Verdict]:
    """Show a request's head to the agents of ``resolved_route``, each once those that it comes after have answered.

    It is shown the head with their changes. Agents that come after nobody are asked at once. Once a verdict stops the
    request, no agent is asked any more that comes after another. The verdicts are in the order in which their changes
    are made: one that comes after others may overrule what it was shown.

    :param hear_more: the ids of agents whose denials with ``needs_more`` are provisional, because a body follows.
    """
    order = resolved_route.head_order
    if order is None:
        return await evaluate(resolved_route.head_agents, event, final=not hear_more)
    agents = [resolved_route.head_agents[place] for place in order.places]
    verdicts: list[Verdict | None] = [None] * len(agents)
    events: list[RequestHeadersEvent] = [event] * len(agents)
    # Positions of those that were not asked yet, because they come after others.
    left = {position for position, after in enumerate(order.after) if after}

    def next_ones(stopped: bool) -> Sequence[int]:
        """Those of whom all have answered that they come after; nobody once the request is stopped."""
        if stopped:
            left.clear()
        ready = [position for position in sorted(left) if all(verdicts[before] for before in order.after[position])]
        for position in ready:
            left.remove(position)
            events[position] = _changed_by([verdicts[before] for before in order.after[position]], event)
        return ready

    waiting: list[int] = []
    asking = deque(position for position, after in enumerate(order.after) if not after)
    while asking:
        position = asking.popleft()
        if agents[position].guard.may_suspend(event.event_type):
            waiting.append(position)
            continue
        verdict = verdicts[position] = await agents[position].evaluate(events[position])
        stopped = _stops(verdict, hear_more)
        if stopped and verdict.denies:
            # Whoever comes later can't overrule it; those before it still can.
            left.clear()
            break
        asking.extend(next_ones(stopped))
    while waiting:
        await _ask_at_once(
            agents,
            events,
            waiting,
            verdicts,
            chunk=False,
            final=not hear_more,
            everyone=False,
            then=lambda verdict: next_ones(_stops(verdict, hear_more)),
        )
        # Those that come after a call that came to nothing have not been asked: nobody was told that it is over.
        waiting = list(next_ones(any(verdict is not None and _stops(verdict, hear_more) for verdict in verdicts)))
    return [verdict for verdict in verdicts if verdict is not None]


def _changed_by(verdicts: Sequence[Verdict | None], event: RequestHeadersEvent) -> RequestHeadersEvent:
    """The head as the app would see it after these ``verdicts``."""
    ops = [
        op
        for verdict in verdicts
        if verdict is not None and verdict.response is not None and verdict.enforced
        for op in verdict.response.request_headers
    ]
    return replace(event, headers=event.headers.changed(ops)) if ops else event


def _stops(verdict: Verdict, hear_more: Container[str]) -> bool:
    """Whether nothing that is said later can let the request pass."""
    if verdict.denies:
        return not (verdict.provisional and verdict.agent_id in hear_more)
    return verdict.fails_closed


async def _ask_at_once(
    agents: Sequence[RouteAgent],
    events: Sequence[Event],
    waiting: Sequence[int],
    verdicts: list[Verdict | None],
    *,
    chunk: bool,
    final: bool,
    everyone: bool,
    then: Callable[[Verdict], Sequence[int]] = lambda verdict: (),
) -> None:
    """Fill in the ``verdicts`` of the agents that are ``waiting``, each in a task of its own, until it is denied.

    ``events`` has what each of the ``agents`` is shown. ``then`` says who else is to be asked, given another verdict.
    """
    asked = list(waiting)

    def denied() -> bool:
        # No denial has to wait for a shadow agent before it.
        return not everyone and is_denied(
            (
                verdict
                for verdict, agent in zip(verdicts, agents, strict=True)
                if verdict is not None or agent.guard.config.enforce
            ),
            final=final,
        )

    async with anyio.create_task_group() as tasks:
        decided = False

        def why() -> CancelReason:
            if decided:
                return CancelReason.BLOCKED_BY_AGENT
            return CancelReason.CLIENT_DISCONNECT if before is None else before()

        async def ask(index: int) -> None:
            nonlocal decided
            verdict = await agents[index].evaluate(events[index], chunk)
            if tasks.cancel_scope.cancel_called:
                return  # it failed over its own cancellation
            verdicts[index] = verdict
            if denied():
                decided = True
                tasks.cancel_scope.cancel()
                return
            for following in then(verdict):
                asked.append(following)
                tasks.start_soon(ask, following)

        # The tasks take it over with the rest of the context.
        before = cancel_reason.get()
        cancel_reason.set(why)
        try:
            for index in waiting[1:]:
                tasks.start_soon(ask, index)
            await ask(waiting[0])
        finally:
            cancel_reason.set(before)
    if not denied():
        # A call can end without verdict and without error, when its task is cancelled from inside, and the others with
        # it. Silence is never consent.
        for index in asked:
            verdicts[index] = verdicts[index] or agents[index].lost(events[index])


def chain(agents: Sequence[RouteAgent]) -> Sequence[Sequence[RouteAgent]]:
    """Cut a chain into steps: neighbours that only read make one, each writer makes one of its own."""
    steps: list[list[RouteAgent]] = []
    for agent in agents:
        reads = agent.guard.config.body_access == "read"
        if reads and steps and steps[-1][-1].guard.config.body_access == "read":
            steps[-1].append(agent)
        else:
            steps.append([agent])
    return steps


def check_body_size(agent: RouteAgent, event: BodyChunkEvent) -> Verdict | None:
    """The verdict on a whole body that is too large for ``agent``, or None where it isn't."""
    limit = held_limit(agent, event.event_type)
    if len(event.data) <= limit:
        return None
    return agent.body_too_large(event.event_type, event.correlation_id, limit)


def body_limit(agent: RouteAgent, event_type: EventType) -> int | None:
    """The largest such body that ``agent`` is to inspect, in bytes, if its configuration says."""
    config = agent.guard.config
    return config.max_request_body_bytes if event_type is _REQUEST_BODY_CHUNK else config.max_response_body_bytes


def held_limit(agent: RouteAgent, event_type: EventType) -> int:
    """How many bytes of such a body are held for ``agent``: its configured limit or the default, and what it takes."""
    limit = body_limit(agent, event_type)
    limit = DEFAULT_MAX_BODY_BYTES if limit is None else limit
    most = agent.guard.client.max_body_size
    return limit if most is None else min(limit, most)
