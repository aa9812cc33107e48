"""How agents are asked about an event: all of them in parallel, or the head of a request in stages."""

from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence

import anyio
from msgspec.structs import replace

from ..config import AgentConfig
from ..decision import Verdict, is_denied
from ..protocol import ALLOW, Event, RequestHeadersEvent
from ..protocol.stream import CancelReason
from ..transports.base import cancel_reason
from .resolved_route import ResolvedRoute
from .route_agent import RouteAgent


async def evaluate(
    agents: Sequence[RouteAgent],
    event: Event,
    *,
    chunk: bool = False,
    final: bool = True,
    everyone: bool = False,
) -> Sequence[Verdict]:
    """Show ``event`` to ``agents`` in parallel; returns the verdicts of those that answered, in route order.

    Agents that can't change the decision any more are cancelled, or never asked. Agents that can't suspend are asked
    one after the other, which costs no tasks.

    :param chunk: the calls are under the agents' ``chunk_timeout``.
    :param final: nothing more is coming, so that provisional denials count.
    :param everyone: all agents are to receive the event, whatever the others answer.
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
            # Agents that come later can't overrule it; those before it still can.
            break
    if len(waiting) == 1:
        verdicts[waiting[0]] = await agents[waiting[0]].evaluate(event, chunk)
    elif waiting:
        events = [event] * len(agents)
        await _ask_in_parallel(agents, events, waiting, verdicts, chunk=chunk, final=final, everyone=everyone)
    return [verdict for verdict in verdicts if verdict is not None]


async def evaluate_head(
    resolved_route: ResolvedRoute, event: RequestHeadersEvent, *, body_agent_ids: Container[str] = frozenset()
) -> Sequence[Verdict]:
    """Show a request's head to the agents of ``resolved_route``, each once those that it comes after have answered.

    An agent receives the head with the changes of those that it comes after. Agents that come after none are asked in
    parallel. Once a verdict stops the request, no agent is asked any more that comes after another. Returns the
    verdicts in the order in which their changes are made: an agent that comes after others may overrule what it was
    shown.

    :param body_agent_ids: the ids of the agents that receive the body as well, if one follows: their denials with
        ``needs_more`` are provisional.
    """
    order = resolved_route.head_order
    if order is None:
        return await evaluate(resolved_route.head_agents, event, final=not body_agent_ids)
    agents = [resolved_route.head_agents[place] for place in order.places]
    verdicts: list[Verdict | None] = [None] * len(agents)
    events: list[RequestHeadersEvent] = [event] * len(agents)
    # Positions of those that were not asked yet, because they come after others.
    left = {position for position, after in enumerate(order.after) if after}

    def next_ones(stopped: bool) -> Sequence[int]:
        """The agents that wait for no other any more; none once the request is stopped."""
        if stopped:
            left.clear()
        ready = [position for position in sorted(left) if all(verdicts[before] for before in order.after[position])]
        for position in ready:
            left.remove(position)
            before = order.after[position]
            events[position] = _changed_by(
                [verdicts[place] for place in before], event, [agents[place].guard.config for place in before]
            )
        return ready

    waiting: list[int] = []
    asking = deque(position for position, after in enumerate(order.after) if not after)
    while asking:
        position = asking.popleft()
        if agents[position].guard.may_suspend(event.event_type):
            waiting.append(position)
            continue
        verdict = verdicts[position] = await agents[position].evaluate(events[position])
        stopped = _stops(verdict, body_agent_ids)
        if stopped and verdict.denies:
            # Agents that come later can't overrule it; those before it still can.
            left.clear()
            break
        asking.extend(next_ones(stopped))
    while waiting:
        await _ask_in_parallel(
            agents,
            events,
            waiting,
            verdicts,
            chunk=False,
            final=not body_agent_ids,
            everyone=False,
            then=lambda verdict: next_ones(_stops(verdict, body_agent_ids)),
        )
        # A call that ended without a verdict has started none of those that come after it.
        waiting = list(next_ones(any(verdict is not None and _stops(verdict, body_agent_ids) for verdict in verdicts)))
    return [verdict for verdict in verdicts if verdict is not None]


def _changed_by(
    verdicts: Sequence[Verdict | None], event: RequestHeadersEvent, configs: Iterable[AgentConfig]
) -> RequestHeadersEvent:
    """The head as the app would see it after these ``verdicts``, which are of the agents of ``configs``."""
    replaced = frozenset[str]().union(*(config.replaces for config in configs if config.enforce))
    if replaced:
        event = replace(event, headers=event.headers.without(replaced))
    ops = [
        op
        for verdict in verdicts
        if verdict is not None and verdict.response is not None and verdict.enforced
        for op in verdict.response.request_headers
    ]
    return replace(event, headers=event.headers.changed(ops)) if ops else event


def _stops(verdict: Verdict, body_agent_ids: Container[str]) -> bool:
    """Whether the request is stopped by this verdict, whatever agents answer later."""
    if verdict.denies:
        return not (verdict.provisional and verdict.agent_id in body_agent_ids)
    return verdict.fails_closed


async def _ask_in_parallel(
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
    """Ask the agents that are ``waiting``, each in a task of its own, until the event is denied.

    :param events: what each of the ``agents`` receives.
    :param waiting: the positions in ``agents`` of those to ask.
    :param verdicts: by position; this function fills in those of the agents that it asks.
    :param then: given a new verdict, the positions of the agents that are to be asked next.
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

        # The tasks inherit it with the rest of the context.
        before = cancel_reason.get()
        cancel_reason.set(why)
        try:
            for index in waiting[1:]:
                tasks.start_soon(ask, index)
            await ask(waiting[0])
        finally:
            cancel_reason.set(before)
    if not denied():
        # A call ends without verdict and without error when its task is cancelled from inside; that cancels the others
        # as well. No answer must never pass for an allow.
        for index in asked:
            verdicts[index] = verdicts[index] or agents[index].lost(events[index])
