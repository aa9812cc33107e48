"""Showing a body to a chain of agents: buffered, streamed, or first one and then the other. No ASGI in here."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from msgspec.structs import replace

from ..decision import AgentDecision, Verdict, merge, unanimous
from ..evaluation.resolved_route import RouteAgent, body_limit, chain, held_limit
from ..memory.pieces import Pieces
from ..policy import BodyMode, FailureMode
from ..protocol import BodyChunkEvent, EventType, RequestBodyChunkEvent, ResponseBodyChunkEvent
from .decoding import Decoder, UnreadableBody
from .framing import MAX_UNIT_BYTES, Cutter
from .state import ExchangeState

# How many decoded bytes may become of one message, where all of them have to be passed on at once.
_MAX_DECODED_AT_ONCE = 16 * 1024 * 1024


class BodyInspection:
    """One body on its way through the agents of its route.

    Feed it what arrives; it returns what may be passed on: bytes that every agent has judged, in order, changed where a
    writing agent changed them; or the decision that ends it. Nothing may be fed after that.

    :param agents: those that are shown this body, in route order.
    :param codings: how the body is encoded, as :func:`~.decoding.codings_of` gives it.
    :param length: the body's declared size in bytes, if any. A hint: what arrives counts.
    :param provisional: what agents that hear this body said of its head with ``needs_more``. It counts unless they say
        otherwise.
    :param cutter: for a body that streams in units: makes what cuts it. It is shown to everyone piece by piece,
        whatever their mode, and each piece is some whole units.
    """

    def __init__(
        self,
        context: ExchangeState,
        event_type: EventType,
        *,
        agents: Sequence[RouteAgent],
        codings: Sequence[str] = (),
        length: int | None = None,
        provisional: Mapping[str, Verdict] | None = None,
        cutter: Callable[[], Cutter] | None = None,
    ) -> None:
        self.changed = False
        self._request = event_type is EventType.REQUEST_BODY_CHUNK
        # Whether what arrives is encoded, if anything does: also where the head declares an empty body.
        self._encoded = bool(codings)
        self._declared_empty = length == 0
        self._stages: list[_Stage | _DecodingStage] = []

        def kind(agent: RouteAgent) -> tuple[BodyMode, bool]:
            mode = self._mode(agent) if cutter is None else BodyMode.STREAM
            return mode, self._encoded and agent.guard.config.decode

        for step in chain(agents):
            for (mode, decodes), members in groupby(step, kind):
                plain = _Stage(context, event_type, mode, list(members), None if decodes else length, cutter)
                stage = _DecodingStage(plain, codings) if decodes else plain
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
        """Whether an empty last message needs no agent: nothing was shown to any, and none has a say left."""
        return not any(stage.seen or stage.provisional for stage in self._stages)

    @property
    def decoded(self) -> bool:
        """Whether what comes out has lost its content coding. Settled once nothing is :attr:`holding` any more."""
        return self._encoded and any(stage.decoded for stage in self._stages)

    def admit(self) -> AgentDecision | None:
        """Judge the body by its head alone, its size and its coding: the decision that refuses it, or None.

        Call it before feeding. Only an agent that fails closed can refuse a body because of its size. No agent is left
        out because of what somebody declares.
        """
        encoded = self._encoded and not self._declared_empty
        for stage in self._stages:
            decision = stage.admit(encoded=encoded)
            if decision is not None:
                return decision
            # Behind a writer that sees the content it is not certain any more: the stage finds out when it is fed.
            encoded = encoded and not (isinstance(stage, _DecodingStage) and stage.writes)
        return None

    async def feed(self, data: bytes, last: bool) -> bytes | AgentDecision:
        """Judge ``data``; ``last`` says that nothing follows."""
        encoded = self._encoded
        for stage in self._stages:
            result = await stage.feed(data, last, encoded)
            if isinstance(result, AgentDecision):
                return result
            data = result
            encoded = encoded and not stage.decoded
            self.changed = self.changed or stage.changed
        return data

    def _mode(self, agent: RouteAgent) -> BodyMode:
        config = agent.guard.config
        return config.request_bodies if self._request else config.response_bodies


class _Stage:
    """Neighbours in the chain that are shown the same bytes at the same time."""

    def __init__(
        self,
        context: ExchangeState,
        event_type: EventType,
        mode: BodyMode,
        agents: list[RouteAgent],
        length: int | None,
        cutter: Callable[[], Cutter] | None,
    ) -> None:
        self.seen = 0
        self.changed = False
        #: Always False: only a :class:`_DecodingStage` removes a coding.
        self.decoded = False
        self.provisional: dict[str, Verdict] = {}
        self._context = context
        self._event_type = event_type
        self._mode = mode
        self._agents = agents
        self._everyone = tuple(agents)
        self._length = length
        self._cutter = None if cutter is None else cutter()
        self._buffering = mode != BodyMode.STREAM
        # Bytes not yet shown to the agents, and bytes shown whose verdict is still provisional.
        self._buffer = Pieces()
        self._withheld = Pieces()
        self._chunk_index = 0
        self._request = event_type is EventType.REQUEST_BODY_CHUNK
        self._buffers = mode.name == "buffer"
        # Up to here no agent's limit needs a look. What an agent takes at a time, it may say anew at any time.
        self._free = -1.0 if self._buffers or self.spools else min(map(self._limit, agents))

    @property
    def writes(self) -> bool:
        """Whether what comes out can differ from what went in."""
        return any(agent.guard.config.body_access == "write" and agent.guard.config.enforce for agent in self._agents)

    @property
    def holding(self) -> bool:
        """Whether bytes that go in are kept for now."""
        return bool(self._agents) and (self._buffering or bool(self.provisional))

    @property
    def spools(self) -> bool:
        """Whether what comes out is kept until there is no more."""
        if not self._request or self._buffers or not self.writes:
            return False
        return any(agent.guard.config.request_length == "known" for agent in self._agents)

    @property
    def partial(self) -> int:
        """How many bytes of a unit that has not ended yet are kept."""
        return 0 if self._cutter is None else self._cutter.held

    @property
    def denial(self) -> AgentDecision | None:
        """What the provisional denials come to if nobody takes them back."""
        if not self.provisional:
            return None
        order = [agent.guard.config.id for agent in self._agents]
        return merge(sorted(self.provisional.values(), key=lambda verdict: order.index(verdict.agent_id)))

    @property
    def judged(self) -> bool:
        return self._chunk_index > 0 or not self._agents

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

    @property
    def deserted(self) -> bool:
        """Whether no agent is left that hears the body."""
        return not self._agents

    @property
    def streams(self) -> bool:
        """Whether nothing is ever buffered."""
        return self._mode == BodyMode.STREAM

    def admit(self, *, encoded: bool) -> AgentDecision | None:
        """Going by its head, refuse a body over an agent's limit, or one that it can't read; or leave the agent out."""
        if encoded and self.writes:
            refusal = self.unreadable("it is encoded, and the agent has no decode=True")
            if refusal is not None:
                return refusal
        if self._length is None or self._length <= self._free:
            return None
        for agent in self._agents:
            limit = self._limit(agent)
            if self._length > limit and agent.stops_when_failing:
                verdict = self._too_large(agent, int(limit))
                self._context.record((verdict,))
                return merge((verdict,))
        return None

    def unreadable(self, fault: str, *, whatever_the_mode: bool = False) -> AgentDecision | None:
        """The agents can't be shown what is in the body.

        Returns the decision of the first that fails closed; those that fail open are left out. ``whatever_the_mode``:
        the first fails closed, also one that was left out before.
        """
        if whatever_the_mode:
            agents = self._agents or self._everyone
            self._agents = [replace(agent, failure_mode=FailureMode.CLOSED) for agent in agents]
        return self._fail(lambda agent: agent.body_unreadable(self._event_type, self._context.correlation_id, fault))

    async def feed(self, data: bytes, last: bool, encoded: bool = False) -> bytes | AgentDecision:
        """Judge or keep ``data``; returns what may go on. ``encoded``: it has a content coding."""
        if encoded and data and self.seen == 0:
            # What is encoded has no units to be cut at.
            self._cutter = None
            refusal = self._begin_encoded()
            if refusal is not None:
                return refusal
        if self._cutter is not None:
            data = self._cutter.feed(data, last)
            if self._cutter.held > MAX_UNIT_BYTES:
                refusal = self._fail(lambda agent: self._too_large(agent, MAX_UNIT_BYTES))
                if refusal is not None:
                    return refusal
            if not self._agents:
                data += self._cutter.feed(b"", True)
        self.seen += len(data)
        if self.seen > self._free:
            refusal = self._enforce_limits(self.seen)
            if refusal is not None:
                return refusal
        if not self._agents:
            return self._release(data)
        if self._buffering:
            self._buffer.append(data)
            if not last and (self._buffers or self._buffer.size < self._mode.threshold):
                return b""
            data = self._buffer.take()
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

    def _begin_encoded(self) -> AgentDecision | None:
        if self.writes:
            return self.admit(encoded=True)
        for agent in self._agents:
            self._context.note_encoded(agent, self._event_type)
        return None

    async def _judge(self, data: bytes, last: bool, whole: bool) -> bytes | AgentDecision:
        event = self._event(data, last)
        self._chunk_index += 1
        verdicts = await self._context.evaluate(self._agents, event, chunk=not self._buffers, final=last)
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

    def _event(self, data: bytes, last: bool) -> BodyChunkEvent:
        if self._request:
            return RequestBodyChunkEvent(
                correlation_id=self._context.correlation_id,
                data=data,
                is_last=last,
                total_size=self._total_size(last),
                chunk_index=self._chunk_index,
                bytes_received=self.seen,
            )
        return ResponseBodyChunkEvent(
            correlation_id=self._context.correlation_id,
            data=data,
            is_last=last,
            total_size=self._total_size(last),
            chunk_index=self._chunk_index,
            bytes_sent=self.seen,
        )

    def _enforce_limits(self, size: int) -> AgentDecision | None:
        """Deal with the agents whose limit ``size`` is over."""

        def judge(agent: RouteAgent) -> Verdict | None:
            limit = self._limit(agent)
            return None if size <= limit else self._too_large(agent, int(limit))

        return self._fail(judge)

    def _fail(self, judge: Callable[[RouteAgent], Verdict | None]) -> AgentDecision | None:
        """Ask ``judge`` for the verdict of each agent that can't be shown the body; None for one that can.

        Returns the decision of the first that fails closed; those that fail open are left out.
        """
        for agent in tuple(self._agents):
            verdict = judge(agent)
            if verdict is None:
                continue
            self._context.record((verdict,))
            if verdict.fails_closed:
                return merge((verdict,))
            self._agents.remove(agent)
            self.provisional.pop(agent.guard.config.id, None)
        return None

    def _too_large(self, agent: RouteAgent, limit: int) -> Verdict:
        return agent.body_too_large(self._event_type, self._context.correlation_id, limit)

    def _total_size(self, last: bool) -> int | None:
        """How large the body is: known once all of it was seen. Before that, what was declared, unless it is wrong."""
        if last:
            return self.seen
        return self._length if self._length is not None and self.seen <= self._length else None

    def _limit(self, agent: RouteAgent) -> float:
        if self._buffers or self.spools:
            return held_limit(agent, self._event_type)
        # Where nothing has to be held there is nothing to bound, unless the agent says so.
        limit = body_limit(agent, self._event_type)
        return float("inf") if limit is None else limit

    def _resolve(self, data: bytes) -> bytes | AgentDecision:
        """Nothing more comes: a provisional denial that nobody took back is final."""
        denial = self.denial
        return self._release(data) if denial is None else denial

    def _withhold(self, data: bytes) -> bytes | AgentDecision:
        self._withheld.append(data)
        # Whoever can't make up its mind within what it may be given is treated as given too much.
        refusal = self.limit_held(self._withheld.size, undecided_only=True)
        if refusal is not None:
            return refusal
        return b"" if self.provisional else self._release(b"")

    def limit_held(self, size: int, *, undecided_only: bool = False) -> AgentDecision | None:
        """Fail the agents whose limit is below ``size`` bytes held for them."""

        def judge(agent: RouteAgent) -> Verdict | None:
            limit = held_limit(agent, self._event_type)
            if size <= limit or (undecided_only and agent.guard.config.id not in self.provisional):
                return None
            return self._too_large(agent, limit)

        return self._fail(judge)

    def _release(self, data: bytes) -> bytes:
        """``data`` behind whatever was kept back before it."""
        if not self._withheld and not self._buffer:
            return data
        return b"".join((self._withheld.take(), self._buffer.take(), data))


class _DecodingStage:
    """Neighbours in the chain that are shown the content of an encoded body.

    What only readers were shown goes on as it was, encoded. So does a body that a writer was shown as a whole and did
    not change. What else comes from a writer is the content itself, from its first byte to its last.
    """

    def __init__(self, stage: _Stage, codings: Sequence[str]) -> None:
        self.decoded = stage.writes and stage.streams
        self._stage = stage
        self._codings = codings
        self._decoder: Decoder | None = None
        # Encoded bytes that were decoded, but not passed on yet.
        self._originals = Pieces()
        # Nobody has to see what follows: it goes on as it is.
        self._passing = False
        self._begun = False

    @property
    def seen(self) -> int:
        """How many bytes of content there were so far; at least 1 where anything has come."""
        return self._stage.seen or int(self._begun)

    @property
    def changed(self) -> bool:
        return self._stage.changed

    @property
    def judged(self) -> bool:
        return self._stage.judged

    @property
    def denial(self) -> AgentDecision | None:
        return self._stage.denial

    @property
    def spools(self) -> bool:
        return self._stage.spools

    def limit_held(self, size: int) -> AgentDecision | None:
        return self._stage.limit_held(size)

    @property
    def provisional(self) -> Mapping[str, Verdict]:
        return self._stage.provisional

    @property
    def writes(self) -> bool:
        return self._stage.writes

    @property
    def holding(self) -> bool:
        return self._stage.holding

    @property
    def may_suspend(self) -> bool:
        return self._stage.may_suspend

    def expect(self, provisional: Mapping[str, Verdict]) -> None:
        self._stage.expect(provisional)

    def admit(self, *, encoded: bool) -> AgentDecision | None:
        """Refuse a coding that nobody here knows, or leave the agents out. The declared size is not the content's."""
        return self._prepare() if encoded else None

    def _prepare(self) -> AgentDecision | None:
        try:
            self._decoder = self._decoder or Decoder(self._codings)
        except UnreadableBody as exc:
            decision = self._stage.unreadable(str(exc))
            self._passing, self.decoded = decision is None, False
            return decision
        return None

    async def feed(self, data: bytes, last: bool, encoded: bool) -> bytes | AgentDecision:
        """Decode ``data`` and judge the content; returns what may go on."""
        if not encoded:
            # A writer before this one has sent the content on.
            self.decoded = False
            return await self._stage.feed(data, last)
        if not data and not self._begun:
            # An empty body is not encoded, whatever its head says.
            return await self._stage.feed(data, last)
        refusal = self._prepare()
        if refusal is not None or self._passing:
            return data if refusal is None else refusal
        self._begun = self._begun or bool(data)
        if not self.decoded:
            self._originals.append(data)
        try:
            content = await self._judge(data, last)
        except UnreadableBody as exc:
            # Who was sent a part of the content can't be sent the rest of what it was encoded as.
            decision = self._stage.unreadable(str(exc), whatever_the_mode=self.decoded)
            return self._pass_on() if decision is None else decision
        if isinstance(content, AgentDecision):
            return content
        if self.decoded:
            return content
        holding = self._stage.holding or self._stage.partial > 0
        if holding:
            # What is encoded can be much longer than its content.
            refusal = self._stage.limit_held(self._originals.size)
            if refusal is not None:
                return refusal
        if self._stage.deserted:
            return self._pass_on()
        if holding:
            return b""
        if not self._stage.writes or (last and not self._stage.changed):
            return self._originals.take()
        self.decoded = True
        self._originals.clear()
        return content

    async def _judge(self, data: bytes, last: bool) -> bytes | AgentDecision:
        """What the agents let pass of the content that ``data`` adds. Raises :class:`UnreadableBody`."""
        assert self._decoder is not None
        judged: list[bytes] = []
        size = 0
        # One piece behind, for only the last may be called so.
        latest = b""
        for piece in self._decoder.feed(data, last):
            if latest:
                result = await self._stage.feed(latest, False)
                if isinstance(result, AgentDecision):
                    return result
                if self._stage.writes or self.decoded:
                    judged.append(result)
                    size += len(result)
                    if size > _MAX_DECODED_AT_ONCE:
                        raise UnreadableBody(f"one message makes more than {_MAX_DECODED_AT_ONCE} bytes of content")
                if self._stage.deserted and not self.decoded:
                    return b""
            latest = piece
        result = await self._stage.feed(latest, last)
        if isinstance(result, AgentDecision):
            return result
        return b"".join((*judged, result)) if judged else result

    def _pass_on(self) -> bytes:
        self._passing = True
        return self._originals.take()
