"""Showing a body to a chain of agents: buffered, streamed, or first one and then the other.

Each step of the chain decides what to ask, and what comes of the answers; asking is done here. No ASGI in here.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Final

from ..decision import AgentDecision, Verdict
from ..evaluation.resolved_route import chain_steps
from ..evaluation.route_agent import RouteAgent
from ..policy import BodyMode
from ..protocol import EventType, RequestBodyChunkEvent, ResponseBodyChunkEvent
from .decoding_stage import DecodingStage
from .stage import BodyStage
from .state import ExchangeState
from .units import Cutter

# That something is one of these is seen at once. That it is no decision takes longer: a decision is a struct.
_EVENTS: Final = (RequestBodyChunkEvent, ResponseBodyChunkEvent)

# To look a member of an enumeration up by its name takes long (CPython 3.11).
_REQUEST_BODY_CHUNK: Final = EventType.REQUEST_BODY_CHUNK


class BodyInspection:
    """One body on its way through the agents of its route.

    Feed it what arrives. It returns the bytes that may be passed on: those that all agents have judged, in order, with
    the changes that agents have made. Or it returns the decision that ends the body; nothing may be fed after that.

    :param agents: those that receive this body, in route order.
    :param codings: how the body is encoded, as :func:`~.headers.codings_of` gives it.
    :param length: the body's declared size in bytes, if any. A hint: what arrives counts.
    :param provisional: denials of the body's head with ``needs_more``, by agent. They count unless the agent says
        otherwise when it is shown the body.
    :param cutter: for a body that streams in units: makes what cuts it. The body is shown to all agents piece by piece,
        whatever their mode, and each piece consists of whole units.
    """

    def __init__(
        self,
        state: ExchangeState,
        event_type: EventType,
        *,
        agents: Sequence[RouteAgent],
        codings: Sequence[str] = (),
        length: int | None = None,
        provisional: Mapping[str, Verdict] | None = None,
        cutter: Callable[[], Cutter] | None = None,
    ) -> None:
        self.changed = False
        self._state = state
        self._request = event_type is _REQUEST_BODY_CHUNK
        # Whether what arrives is encoded, if anything does: also where the head declares an empty body.
        self._encoded = bool(codings)
        self._declared_empty = length == 0
        self._stages: list[BodyStage] = []

        def kind(agent: RouteAgent) -> tuple[BodyMode, bool]:
            mode = self._mode(agent) if cutter is None else BodyMode.STREAM
            return mode, self._encoded and agent.guard.config.decode

        for step in chain_steps(agents):
            for (mode, decodes), members in groupby(step, kind):
                if decodes:
                    stage: BodyStage = DecodingStage(state, event_type, mode, [*members], cutter, codings)
                else:
                    stage = BodyStage(state, event_type, mode, [*members], length, cutter)
                stage.expect(provisional or {})
                self._stages.append(stage)
                if stage.writes:
                    # What comes out of a writer has a size of its own.
                    length = None
        self.may_wait = any(agent.guard.may_wait for agent in agents)

    def alters(self, *, ended: bool) -> bool:
        """Whether what comes out differs from what went in. Until the body has ``ended``: whether it can."""
        if ended:
            return self.changed or self.decoded
        return self.changed or self.decoded or any(stage.writes for stage in self._stages)

    @property
    def spools(self) -> bool:
        """Whether what was judged has to be kept until the body has ended, so that the app can be told its length."""
        return any(stage.spools for stage in self._stages)

    def limit_spooled(self, size: int) -> AgentDecision | None:
        """Check the limits for ``size`` bytes kept: the decision that refuses the body, or None.

        Agents that fail open are left out.
        """
        for stage in self._stages:
            refusal = stage.limit_held(size) if stage.spools else None
            if refusal is not None:
                return refusal
        return None

    @property
    def holding(self) -> bool:
        """Whether some agent has to see more before anything is passed on."""
        return any(stage.holding for stage in self._stages)

    @property
    def judged(self) -> bool:
        """Whether every agent has been shown something of it."""
        return all(stage.judged for stage in self._stages)

    @property
    def may_suspend(self) -> bool:
        """Whether :meth:`feed` can suspend now; it never can where not :attr:`may_wait`."""
        return self.may_wait and any(stage.may_suspend for stage in self._stages)

    @property
    def denial(self) -> AgentDecision | None:
        """The decision on the body if nothing more comes of it: provisional denials are final then. None: there are
        none.
        """
        return next((denial for stage in self._stages if (denial := stage.denial) is not None), None)

    @property
    def judges_nothing(self) -> bool:
        """Whether an empty last message needs no agent: none was shown anything, and no denial is provisional."""
        return not any(stage.begun or stage.provisional for stage in self._stages)

    @property
    def decoded(self) -> bool:
        """Whether what comes out has lost its content coding. Settled once nothing is :attr:`holding` any more."""
        return self._encoded and any(stage.decoded for stage in self._stages)

    def admit(self) -> AgentDecision | None:
        """Judge the body by its head alone, its size and its coding: the decision that refuses it, or None.

        Call it before feeding. Only an agent that fails closed can refuse a body because of its declared size. No agent
        is left out because of it: what is declared may be wrong.
        """
        encoded = self._encoded and not self._declared_empty
        for stage in self._stages:
            decision = stage.admit(encoded=encoded)
            if decision is not None:
                return decision
            # Behind a writer that sees the content it is not certain any more: the stage finds out when it is fed.
            encoded = encoded and not (isinstance(stage, DecodingStage) and stage.writes)
        return None

    async def feed(self, data: bytes, last: bool) -> bytes | AgentDecision:
        """Judge ``data``; ``last`` says that nothing follows."""
        encoded = self._encoded
        for stage in self._stages:
            outcome = stage.feed(data, last, encoded)
            while not isinstance(outcome, bytes):
                if not isinstance(outcome, _EVENTS):
                    return outcome
                verdicts = await self._state.evaluate(stage.agents, outcome, chunk=stage.chunked, final=outcome.is_last)
                outcome = stage.resume(verdicts)
            data = outcome
            encoded = encoded and not stage.decoded
            self.changed = self.changed or stage.changed
        return data

    def _mode(self, agent: RouteAgent) -> BodyMode:
        config = agent.guard.config
        return config.request_bodies if self._request else config.response_bodies
