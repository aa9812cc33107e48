"""The chain of agents that pieces of bodies and websocket messages go along, one step after the other.

Consecutive agents that only read receive a chunk in parallel. An agent that may change the body receives it alone, and
all agents after it receive what it has made of it. No agent is asked about what an earlier step has stopped.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from msgspec.structs import replace

from ..decision import AgentDecision, Verdict, merge
from ..protocol import BodyChunkEvent, EventType, WebSocketDrop, WebSocketFrameEvent
from .evaluate import evaluate
from .resolved_route import ResolvedRoute, chain_steps
from .route_agent import RouteAgent


class ChainStep:
    """One step of a chain over a body: the agents that receive the same bytes at the same time.

    :ivar agents: those of them that are still shown the body, in route order.
    """

    def __init__(self, event_type: EventType, agents: Sequence[RouteAgent]) -> None:
        self.event_type = event_type
        self.agents = list(agents)

    def leave_out(self, judge: Callable[[RouteAgent], Verdict | None]) -> Iterator[Verdict]:
        """Leave out the agents that can't be shown the body, from now on. Yields their verdicts.

        :param judge: the verdict of an agent that can't be shown the body; None for one that can. It is called for an
            agent only once the verdict before was taken.
        """
        for agent in tuple(self.agents):
            verdict = judge(agent)
            if verdict is not None:
                self.agents.remove(agent)
                yield verdict

    def settle(self, verdicts: Sequence[Verdict], data: bytes, *, final: bool) -> tuple[AgentDecision, bytes]:
        """The decision of this step on a chunk, and the chunk as the next step is to be shown it.

        :param final: nothing follows, so that provisional denials count.
        """
        decision = merge(verdicts, final=final)
        mutation = decision.mutation(self.event_type)
        return decision, data if mutation is None or mutation.data is None else mutation.data


async def evaluate_chunk(agents: Sequence[RouteAgent], event: BodyChunkEvent, *, whole: bool) -> AgentDecision:
    """Show a chunk of a body to a chain of ``agents`` by itself, without what came before it.

    The decision has the verdicts of all steps. Its mutation is the last one, which contains those before it.

    :param whole: the chunk is a whole body. It is not shown to agents for which it is too large. Otherwise the calls
        are under the agents' ``chunk_timeout``, and have no limit.
    """
    verdicts: list[Verdict] = []
    for members in chain_steps(agents):
        step = ChainStep(event.event_type, members)
        refusals: Sequence[Verdict] = ()
        if whole:
            refusals = [
                *step.leave_out(
                    partial(
                        RouteAgent.check_held,
                        event_type=event.event_type,
                        correlation_id=event.correlation_id,
                        size=len(event.data),
                    )
                )
            ]
        answers = await evaluate(step.agents, event, chunk=not whole, final=event.is_last)
        order = [agent.guard.config.id for agent in members]
        said = sorted((*refusals, *answers), key=lambda verdict: order.index(verdict.agent_id))
        verdicts += said
        decision, data = step.settle(said, event.data, final=event.is_last)
        if not decision.is_allow:
            break
        if data is not event.data:
            event = replace(event, data=data)
    return merge(verdicts, final=event.is_last)


async def evaluate_frame(resolved_route: ResolvedRoute, event: WebSocketFrameEvent) -> AgentDecision:
    """Show a websocket message to the agents of ``resolved_route``, until one of them stops it.

    The decision has the verdicts of all steps. Its mutation is the last one, which contains those before it.
    """
    verdicts: list[Verdict] = []
    for step in resolved_route.frame_steps:
        answers = await evaluate(step, event)
        verdicts += answers
        decision, event = settle_frame(answers, event)
        if not decision.is_allow:
            return replace(decision, verdicts=tuple(verdicts))
    return merge(verdicts)


def settle_frame(verdicts: Sequence[Verdict], event: WebSocketFrameEvent) -> tuple[AgentDecision, WebSocketFrameEvent]:
    """The decision of one step on a message, and the message as the next step is to be shown it.

    A mutation without any data drops the message.
    """
    decision = merge(verdicts)
    mutation = decision.request_body_mutation if event.client_to_server else decision.response_body_mutation
    if mutation is None or mutation.data is None:
        return decision, event
    if not mutation.data:
        # An agent that may write receives a message alone.
        return replace(decision, websocket_decision=WebSocketDrop(), decided_by=verdicts[0].agent_id), event
    return decision, replace(event, data=mutation.data)
