"""Showing a body to a chain of agents: buffered, streamed, or first one and then the other. No ASGI in here."""

from collections.abc import Mapping
from itertools import groupby

from ..config import BodyMode
from ..decision import AgentDecision, Verdict, merge, unanimous
from ..lineup import RouteAgent, body_limit, chain, held_limit
from ..protocol import BodyChunkEvent, EventType, RequestBodyChunkEvent, ResponseBodyChunkEvent
from .context import AgentContext


class BodyInspection:
    """One body on its way through the agents of its route.

    Feed it what arrives; it returns what may be passed on: bytes that every agent has judged, in order, changed where a
    writing agent changed them; or the decision that ends it. Nothing may be fed after that.

    :param length: the body's declared size in bytes, if any.
    :param provisional: what agents that hear this body said of its head with ``needs_more``. It counts unless they say
        otherwise.
    :param streamed: show the body to everyone piece by piece, whatever their mode.
    """

    def __init__(
        self,
        context: AgentContext,
        event_type: EventType,
        *,
        length: int | None = None,
        provisional: Mapping[str, Verdict] | None = None,
        streamed: bool = False,
    ) -> None:
        self.changed = False
        agents = context.lineup.hearing(event_type)
        self._request = event_type is EventType.REQUEST_BODY_CHUNK
        self._stages: list[_Stage] = []
        for step in chain(agents):
            for mode, members in groupby(step, lambda agent: BodyMode.STREAM if streamed else self._mode(agent)):
                stage = _Stage(context, event_type, mode, list(members), length)
                stage.expect(provisional or {})
                self._stages.append(stage)
                if stage.writes:
                    # What comes out of a writer has a size of its own.
                    length = None
        self.may_change = any(stage.writes for stage in self._stages)
        self.may_wait = any(agent.guard.may_wait for agent in agents)

    @property
    def holding(self) -> bool:
        """Whether some agent has to see more before anything is passed on."""
        return any(stage.holding for stage in self._stages)

    @property
    def may_suspend(self) -> bool:
        """Whether :meth:`feed` can suspend now; it never can where not :attr:`may_wait`."""
        return self.may_wait and any(stage.may_suspend for stage in self._stages)

    @property
    def judges_nothing(self) -> bool:
        """Whether an empty last message needs no agent: nothing was shown to any, and none has a say left."""
        return not any(stage.seen or stage.provisional for stage in self._stages)

    def admit(self) -> AgentDecision | None:
        """Judge the body by its declared size alone: the decision that refuses it, or None. Call it before feeding."""
        for stage in self._stages:
            decision = stage.admit()
            if decision is not None:
                return decision
        return None

    async def feed(self, data: bytes, last: bool) -> bytes | AgentDecision:
        """Judge ``data``; ``last`` says that nothing follows."""
        for stage in self._stages:
            result = await stage.feed(data, last)
            if isinstance(result, AgentDecision):
                return result
            data = result
            self.changed = self.changed or stage.changed
        return data

    def _mode(self, agent: RouteAgent) -> BodyMode:
        config = agent.guard.config
        return config.request_body_mode if self._request else config.response_body_mode


class _Stage:
    """Neighbours in the chain that are shown the same bytes at the same time."""

    def __init__(
        self,
        context: AgentContext,
        event_type: EventType,
        mode: BodyMode,
        agents: list[RouteAgent],
        length: int | None,
    ) -> None:
        self.seen = 0
        self.changed = False
        self.provisional: dict[str, Verdict] = {}
        self._context = context
        self._event_type = event_type
        self._mode = mode
        self._agents = agents
        self._length = length
        self._buffering = mode != BodyMode.STREAM
        # Bytes not yet shown to the agents, and bytes shown whose verdict is still provisional.
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._withheld: list[bytes] = []
        self._withheld_size = 0
        self._chunk_index = 0
        self._request = event_type is EventType.REQUEST_BODY_CHUNK
        self._buffers = mode.name == "buffer"
        # Up to here no agent's limit needs a look. What an agent takes at a time, it may say anew at any time.
        self._free = -1.0 if self._buffers else min(map(self._limit, agents))

    @property
    def writes(self) -> bool:
        """Whether what comes out can differ from what went in."""
        return any(agent.guard.config.body_access == "write" and agent.guard.config.enforce for agent in self._agents)

    @property
    def holding(self) -> bool:
        """Whether bytes that go in are kept for now."""
        return bool(self._agents) and (self._buffering or bool(self.provisional))

    @property
    def may_suspend(self) -> bool:
        """Whether one of the agents can suspend now."""
        return any(agent.guard.may_suspend(self._event_type) for agent in self._agents)

    def expect(self, provisional: Mapping[str, Verdict]) -> None:
        """Take over provisional denials of the head by this stage's agents."""
        for agent in self._agents:
            verdict = provisional.get(agent.guard.config.id)
            if verdict is not None:
                self.provisional[agent.guard.config.id] = verdict

    def admit(self) -> AgentDecision | None:
        """Refuse a body whose declared size is over an agent's limit, or leave that agent out."""
        return None if self._length is None else self._enforce_limits(self._length)

    async def feed(self, data: bytes, last: bool) -> bytes | AgentDecision:
        """Judge or keep ``data``; returns what may go on."""
        self.seen += len(data)
        if self.seen > self._free:
            refusal = self._enforce_limits(self.seen)
            if refusal is not None:
                return refusal
        if not self._agents:
            return self._release(data)
        if self._buffering:
            self._buffer.append(data)
            self._buffered += len(data)
            if not last and (self._buffers or self._buffered < self._mode.threshold):
                return b""
            data = b"".join(self._buffer)
            self._buffer.clear()
            whole = last
            self._buffering = False
        else:
            whole = False
        if self.seen == 0 and last:
            # An empty body makes no event, but a provisional denial of the head has become final.
            return self._resolve(data)
        if not data and not last:
            return b""
        return await self._judge(data, last, whole)

    async def _judge(self, data: bytes, last: bool, whole: bool) -> bytes | AgentDecision:
        event = self._event(data, last, whole)
        self._chunk_index += 1
        verdicts = await self._context.consult(self._agents, event, chunk=not self._buffers, final=last)
        plain = not self.provisional and unanimous(verdicts)
        if not plain:
            verdicts = self._context.applicable(self._agents, verdicts)
        if whole or not plain or self._context.counting:
            self._context.record(verdicts, every=whole)
        if plain:
            return self._release(data)
        decision = merge(verdicts, final=last)
        if not decision.is_allow:
            return decision
        self._context.note_ops(decision)
        for verdict in verdicts:
            if verdict.provisional and verdict.denies and not last:
                self.provisional[verdict.agent_id] = verdict
            else:
                self.provisional.pop(verdict.agent_id, None)
        mutation = decision.mutation(self._event_type)
        if mutation is not None and mutation.data is not None:
            self.changed = self.changed or mutation.data != data
            data = mutation.data
        return self._withhold(data) if self.provisional else self._release(data)

    def _event(self, data: bytes, last: bool, whole: bool) -> BodyChunkEvent:
        if self._request:
            return RequestBodyChunkEvent(
                correlation_id=self._context.correlation_id,
                data=data,
                is_last=last,
                total_size=len(data) if whole else self._length,
                chunk_index=self._chunk_index,
                bytes_received=self.seen,
            )
        return ResponseBodyChunkEvent(
            correlation_id=self._context.correlation_id,
            data=data,
            is_last=last,
            total_size=len(data) if whole else self._length,
            chunk_index=self._chunk_index,
            bytes_sent=self.seen,
        )

    def _enforce_limits(self, size: int) -> AgentDecision | None:
        """Deal with the agents whose limit ``size`` is over.

        Returns the decision of the first that fails closed; those that fail open are left out.
        """
        staying: list[RouteAgent] = []
        for agent in self._agents:
            limit = self._limit(agent)
            if size <= limit:
                staying.append(agent)
                continue
            verdict = agent.body_too_large(self._event_type, self._context.correlation_id, int(limit))
            self._context.record((verdict,))
            if verdict.fails_closed:
                return merge((verdict,))
            self.provisional.pop(agent.guard.config.id, None)
        self._agents = staying
        return None

    def _limit(self, agent: RouteAgent) -> float:
        if self._buffers:
            return held_limit(agent, self._event_type)
        # Where nothing has to be held there is nothing to bound, unless the agent says so.
        limit = body_limit(agent, self._event_type)
        return float("inf") if limit is None else limit

    def _resolve(self, data: bytes) -> bytes | AgentDecision:
        """Nothing more comes: a provisional denial that nobody took back is final."""
        if self.provisional:
            order = [agent.guard.config.id for agent in self._agents]
            return merge(sorted(self.provisional.values(), key=lambda verdict: order.index(verdict.agent_id)))
        return self._release(data)

    def _withhold(self, data: bytes) -> bytes | AgentDecision:
        self._withheld.append(data)
        self._withheld_size += len(data)
        # Whoever can't make up its mind within what it may be given is treated as given too much.
        for agent in [agent for agent in self._agents if agent.guard.config.id in self.provisional]:
            limit = held_limit(agent, self._event_type)
            if self._withheld_size <= limit:
                continue
            verdict = agent.body_too_large(self._event_type, self._context.correlation_id, limit)
            self._context.record((verdict,))
            if verdict.fails_closed:
                return merge((verdict,))
            self._agents.remove(agent)
            del self.provisional[agent.guard.config.id]
        return b"" if self.provisional else self._release(b"")

    def _release(self, data: bytes) -> bytes:
        """``data`` behind whatever was kept back before it."""
        if not self._withheld and not self._buffer:
            return data
        kept = b"".join((*self._withheld, *self._buffer, data))
        self._withheld.clear()
        self._withheld_size = 0
        self._buffer.clear()
        self._buffered = 0
        return kept
