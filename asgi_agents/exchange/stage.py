"""One step of a body's way past its agents, over all the chunks of the body. No I/O: it says what to ask."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from ..decision import AgentDecision, Verdict, merge, unanimous
from ..evaluation.chain import ChainStep
from ..evaluation.route_agent import RouteAgent
from ..memory.pieces import Pieces
from ..policy import BodyMode, FailureMode
from ..protocol import BodyChunkEvent, EventType, RequestBodyChunkEvent, ResponseBodyChunkEvent
from .late_operations import applicable
from .state import ExchangeState
from .units import MAX_UNIT_BYTES, Cutter

#: What a stage makes of bytes: an event, which its agents have to be asked about first; or the bytes that may go on; or
#: the decision that ends the body.
Outcome = BodyChunkEvent | bytes | AgentDecision

# To look a member of an enumeration up by its name takes long (CPython 3.11).
_REQUEST_BODY_CHUNK: Final = EventType.REQUEST_BODY_CHUNK


class BodyStage(ChainStep):
    """Consecutive agents of the chain that receive the same bytes at the same time.

    :meth:`feed` it what arrives. Where it returns an event, ask :attr:`agents` about that and give their verdicts to
    :meth:`resume`, until something else is returned. It keeps what the agents have not been shown yet, and what they
    were shown while one of them was undecided.

    :param mode: buffer, stream, or first one and then the other.
    :param length: the size of the body in bytes, if one is declared.
    :param cutter: for a body that streams in units: makes what cuts it.
    """

    def __init__(
        self,
        state: ExchangeState,
        event_type: EventType,
        mode: BodyMode,
        agents: Sequence[RouteAgent],
        length: int | None,
        cutter: Callable[[], Cutter] | None,
    ) -> None:
        super().__init__(event_type, agents)
        #: How many bytes have come.
        self.seen = 0
        #: Whether an agent has changed any of them.
        self.changed = False
        #: Whether what comes out has lost its content coding. Only a stage that decodes removes one.
        self.decoded = False
        #: The denials with ``needs_more``, by agent: they count unless the agent says otherwise.
        self.provisional: dict[str, Verdict] = {}
        #: Whether calls are under the agents' ``chunk_timeout``.
        self.chunked = mode.name != "buffer"
        self._state = state
        self._mode = mode
        self._everyone = tuple(agents)
        # Agents may be left out later, and none is added.
        self._may_write = any(map(_writes, agents))
        self._length = length
        self._cutter = None if cutter is None else cutter()
        self._buffering = mode != BodyMode.STREAM
        # Bytes not yet shown to the agents, and bytes shown whose verdict is still provisional.
        self._buffer = Pieces()
        self._withheld = Pieces()
        self._chunk_index = 0
        # What the agents are being asked about, whether it is the last of the body, and whether it is all of it.
        self._asked = (b"", False, False)
        self._request = event_type is _REQUEST_BODY_CHUNK
        # Up to this size no limit has to be checked. -1: always, for agents may change what they take at a time.
        self._free = -1.0 if not self.chunked or self.spools else min(map(self._limit, agents))

    @property
    def begun(self) -> bool:
        """Whether anything of the body has come."""
        return self.seen > 0

    @property
    def writes(self) -> bool:
        """Whether what comes out can differ from what went in."""
        return self._may_write and any(map(_writes, self.agents))

    @property
    def holding(self) -> bool:
        """Whether bytes that go in are kept for now."""
        return bool(self.agents) and (self._buffering or bool(self.provisional))

    @property
    def spools(self) -> bool:
        """Whether what comes out is to be kept until there is no more."""
        if not self._request or not self.chunked or not self.writes:
            return False
        return any(agent.guard.config.request_length == "known" for agent in self.agents)

    @property
    def denial(self) -> AgentDecision | None:
        """The decision of the provisional denials, if no agent takes its own back. None: there are none."""
        if not self.provisional:
            return None
        order = [agent.guard.config.id for agent in self.agents]
        return merge(sorted(self.provisional.values(), key=lambda verdict: order.index(verdict.agent_id)))

    @property
    def judged(self) -> bool:
        """Whether its agents have been shown something."""
        return self._chunk_index > 0 or not self.agents

    @property
    def may_suspend(self) -> bool:
        """Whether one of its agents can suspend now."""
        return any(agent.guard.may_suspend(self.event_type) for agent in self.agents)

    def expect(self, provisional: Mapping[str, Verdict]) -> None:
        """Take over the provisional denials of the head by this stage's agents."""
        for agent in self.agents:
            verdict = provisional.get(agent.guard.config.id)
            if verdict is not None:
                self.provisional[agent.guard.config.id] = verdict

    def admit(self, *, encoded: bool) -> AgentDecision | None:
        """Going by its head, refuse a body over an agent's limit, or one that it can't read; or leave the agent out."""
        if encoded and self.writes:
            refusal = self._refuse_unreadable("it is encoded, and the agent has no decode=True")
            if refusal is not None:
                return refusal
        if self._length is None or self._length <= self._free:
            return None
        for agent in self.agents:
            limit = self._limit(agent)
            if self._length > limit and agent.stops_when_failing:
                verdict = self._too_large(agent, int(limit))
                self._state.record((verdict,))
                return merge((verdict,))
        return None

    def limit_held(self, size: int) -> AgentDecision | None:
        """Refuse the body if ``size`` bytes held are over an agent's limit; or leave the agent out."""
        return self._refuse(lambda agent: self._check_held(agent, size))

    def feed(self, data: bytes, last: bool, encoded: bool = False) -> Outcome:
        """Judge or keep ``data``; ``encoded``: it has a content coding."""
        if encoded and data and self.seen == 0:
            # What is encoded has no units to be cut at.
            self._cutter = None
            refusal = self._begin_encoded()
            if refusal is not None:
                return refusal
        if self._cutter is not None:
            data = self._cutter.feed(data, last)
            if self._cutter.held > MAX_UNIT_BYTES:
                refusal = self._refuse(lambda agent: self._too_large(agent, MAX_UNIT_BYTES))
                if refusal is not None:
                    return refusal
            if not self.agents:
                data += self._cutter.feed(b"", True)
        self.seen += len(data)
        if self.seen > self._free:
            refusal = self._refuse(self._check_seen)
            if refusal is not None:
                return refusal
        if not self.agents:
            return self._release(data)
        whole = False
        if self._buffering:
            self._buffer.append(data)
            if not last and (not self.chunked or self._buffer.size < self._mode.threshold):
                return b""
            data = self._buffer.take()
            whole = last
            self._buffering = False
        if self.seen == 0 and last:
            # An empty body makes no event, but a provisional denial of the head has become final.
            denial = self.denial
            if denial is None or not self._await_end():
                return self._release(data) if denial is None else denial
        if not data and not last:
            return b""
        event = self._event(data, last)
        self._chunk_index += 1
        self._asked = data, last, whole
        return event

    def resume(self, verdicts: Sequence[Verdict]) -> Outcome:
        """Go on with the ``verdicts`` on the event that was returned last."""
        data, last, whole = self._asked
        self._asked = (b"", False, False)
        plain = not self.provisional and unanimous(verdicts)
        if not plain:
            verdicts = applicable(self._state, self.agents, verdicts)
        if whole or not plain or self._state.counting:
            self._state.record(verdicts, every=whole)
        if plain:
            return self._release(data)
        decision, changed = self.settle(verdicts, data, final=last)
        if not decision.is_allow:
            return decision
        self._state.note_ops(decision)
        for verdict in verdicts:
            if verdict.provisional and verdict.denies and not last:
                self.provisional[verdict.agent_id] = verdict
            else:
                self.provisional.pop(verdict.agent_id, None)
        self.changed = self.changed or changed != data
        return self._withhold(changed) if self.provisional else self._release(changed)

    def _begin_encoded(self) -> AgentDecision | None:
        if self.writes:
            return self.admit(encoded=True)
        for agent in self.agents:
            self._state.note_encoded(agent, self.event_type)
        return None

    def _await_end(self) -> bool:
        """Whether what was denied for now is so only because agents have not answered the head. They are shown the end
        of the empty body; the others are not.
        """
        correlation_id = self._state.correlation_id
        agents = [agent for agent in self.agents if agent.guard.awaits_end(self.event_type, correlation_id)]
        if not self.provisional.keys() <= {agent.guard.config.id for agent in agents}:
            return False
        self.agents = agents
        return True

    def _event(self, data: bytes, last: bool) -> BodyChunkEvent:
        # Known once all of it was seen. Before that, what was declared, unless that is wrong.
        size = self.seen if last else self._length
        if size is not None and size < self.seen:
            size = None
        if self._request:
            return RequestBodyChunkEvent(
                correlation_id=self._state.correlation_id,
                data=data,
                is_last=last,
                total_size=size,
                chunk_index=self._chunk_index,
                bytes_received=self.seen,
            )
        return ResponseBodyChunkEvent(
            correlation_id=self._state.correlation_id,
            data=data,
            is_last=last,
            total_size=size,
            chunk_index=self._chunk_index,
            bytes_sent=self.seen,
        )

    def _refuse(self, judge: Callable[[RouteAgent], Verdict | None]) -> AgentDecision | None:
        """Leave out the agents for which ``judge`` has a verdict: they can't be shown the body.

        Returns the decision of the first that fails closed.
        """
        for verdict in self.leave_out(judge):
            self._state.record((verdict,))
            self.provisional.pop(verdict.agent_id, None)
            if verdict.fails_closed:
                return merge((verdict,))
        return None

    def _refuse_unreadable(self, fault: str, *, whatever_the_mode: bool = False) -> AgentDecision | None:
        """The agents can't be shown what is in the body: refuse it, or leave them out.

        ``whatever_the_mode``: the first fails closed, also one that was left out before.
        """
        if whatever_the_mode:
            agents = self.agents or self._everyone
            self.agents = [replace(agent, failure_mode=FailureMode.CLOSED) for agent in agents]
        return self._refuse(lambda agent: agent.body_unreadable(self.event_type, self._state.correlation_id, fault))

    def _check_seen(self, agent: RouteAgent) -> Verdict | None:
        limit = self._limit(agent)
        return None if self.seen <= limit else self._too_large(agent, int(limit))

    def _check_held(self, agent: RouteAgent, size: int) -> Verdict | None:
        return agent.check_held(self.event_type, self._state.correlation_id, size)

    def _too_large(self, agent: RouteAgent, limit: int) -> Verdict:
        return agent.body_too_large(self.event_type, self._state.correlation_id, limit)

    def _limit(self, agent: RouteAgent) -> float:
        if not self.chunked or self.spools:
            return agent.held_limit(self.event_type)
        # Where nothing has to be held there is nothing to bound, unless the agent says so.
        limit = agent.body_limit(self.event_type)
        return float("inf") if limit is None else limit

    def _withhold(self, data: bytes) -> bytes | AgentDecision:
        """Keep ``data`` back while an agent is undecided."""
        self._withheld.append(data)
        size = self._withheld.size
        # An agent that is still undecided at its limit is treated as if the body were over the limit.
        refusal = self._refuse(
            lambda agent: self._check_held(agent, size) if agent.guard.config.id in self.provisional else None
        )
        if refusal is not None:
            return refusal
        return b"" if self.provisional else self._release(b"")

    def _release(self, data: bytes) -> bytes:
        """``data`` behind whatever was kept back before it."""
        if not self._withheld.size and not self._buffer.size:
            return data
        return b"".join((self._withheld.take(), self._buffer.take(), data))


def _writes(agent: RouteAgent) -> bool:
    config = agent.guard.config
    return config.body_access == "write" and config.enforce
