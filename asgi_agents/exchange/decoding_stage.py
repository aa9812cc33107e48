"""A step of a body's way past its agents whose agents receive the content of an encoded body."""

from collections.abc import Callable, Generator, Sequence

from ..decision import AgentDecision, Verdict
from ..evaluation.route_agent import RouteAgent
from ..memory.pieces import Pieces
from ..policy import BodyMode
from ..protocol import BodyChunkEvent, EventType
from .decoding import Decoder, UnreadableBody
from .stage import BodyStage, Outcome
from .state import ExchangeState
from .units import Cutter

# How many decoded bytes may become of one message, where all of them have to be passed on at once.
_MAX_DECODED_AT_ONCE = 16 * 1024 * 1024

# One message can be many pieces of content, and the agents are asked about each: yields the events, and is sent the
# verdicts on each of them.
_Judging = Generator[BodyChunkEvent, Sequence[Verdict] | None, bytes | AgentDecision]


class DecodingStage(BodyStage):
    """Consecutive agents of the chain that receive the content of an encoded body (``decode=True``).

    What only readers were shown goes on as it was, encoded. So does a body that a writer was shown as a whole and did
    not change. What else comes from a writer is the content itself, from its first byte to its last.

    :param codings: how the body is encoded, in the order in which it was done.
    """

    def __init__(
        self,
        state: ExchangeState,
        event_type: EventType,
        mode: BodyMode,
        agents: Sequence[RouteAgent],
        cutter: Callable[[], Cutter] | None,
        codings: Sequence[str],
    ) -> None:
        # The declared size is not the content's.
        super().__init__(state, event_type, mode, agents, None, cutter)
        self.decoded = self.writes and mode == BodyMode.STREAM
        self._codings = codings
        self._decoder: Decoder | None = None
        # Encoded bytes that were decoded, but not passed on yet.
        self._originals = Pieces()
        # No agent is left to be shown what follows: it goes on as it is.
        self._passing = False
        self._begun = False
        self._judging: _Judging | None = None

    @property
    def begun(self) -> bool:
        """Whether anything of the body has come, also where no content has come of it yet."""
        return self._begun or self.seen > 0

    def admit(self, *, encoded: bool) -> AgentDecision | None:
        """Refuse a coding that is not known here, or leave the agents out."""
        return self._prepare() if encoded else None

    def _prepare(self) -> AgentDecision | None:
        try:
            self._decoder = self._decoder or Decoder(self._codings)
        except UnreadableBody as exc:
            decision = self._refuse_unreadable(str(exc))
            self._passing, self.decoded = decision is None, False
            return decision
        return None

    def feed(self, data: bytes, last: bool, encoded: bool = False) -> Outcome:
        """Decode ``data`` and judge the content."""
        self._judging = None
        if not encoded:
            # A writer before this one has sent the content on.
            self.decoded = False
            return super().feed(data, last)
        if not data and not self._begun:
            # An empty body is not encoded, whatever its head says.
            return super().feed(data, last)
        refusal = self._prepare()
        if refusal is not None or self._passing:
            return data if refusal is None else refusal
        self._begun = self._begun or bool(data)
        self._judging = self._judge_encoded(data, last)
        return self._advance(self._judging, None)

    def resume(self, verdicts: Sequence[Verdict]) -> Outcome:
        """Go on with the ``verdicts`` on the event that was returned last."""
        if self._judging is None:
            return super().resume(verdicts)
        return self._advance(self._judging, verdicts)

    def _advance(self, judging: _Judging, verdicts: Sequence[Verdict] | None) -> Outcome:
        try:
            return judging.send(verdicts)
        except StopIteration as done:
            self._judging = None
            result: bytes | AgentDecision = done.value
            return result

    def _judge_encoded(self, data: bytes, last: bool) -> _Judging:
        """Judge the content of ``data``; returns what may go on, encoded or not."""
        if not self.decoded:
            self._originals.append(data)
        try:
            content = yield from self._judge_content(data, last)
        except UnreadableBody as exc:
            # A client that was sent a part of the content can't be sent the rest of what it was encoded as.
            decision = self._refuse_unreadable(str(exc), whatever_the_mode=self.decoded)
            return self._pass_on() if decision is None else decision
        if self.decoded or isinstance(content, AgentDecision):
            return content
        holding = self.holding or (self._cutter is not None and self._cutter.held > 0)
        if holding:
            # What is encoded can be much longer than its content.
            refusal = self.limit_held(self._originals.size)
            if refusal is not None:
                return refusal
        if not self.agents:
            return self._pass_on()
        if holding:
            return b""
        if not self.writes or (last and not self.changed):
            return self._originals.take()
        self.decoded = True
        self._originals.clear()
        return content

    def _judge_content(self, data: bytes, last: bool) -> _Judging:
        """What the agents let pass of the content that ``data`` adds. Raises :class:`UnreadableBody`."""
        assert self._decoder is not None
        judged: list[bytes] = []
        size = 0
        # One piece behind, for only the last may be called so.
        latest = b""
        for piece in self._decoder.feed(data, last):
            if latest:
                result = yield from self._judge_piece(latest, False)
                if isinstance(result, AgentDecision):
                    return result
                if self.writes or self.decoded:
                    judged.append(result)
                    size += len(result)
                    if size > _MAX_DECODED_AT_ONCE:
                        raise UnreadableBody(f"one message makes more than {_MAX_DECODED_AT_ONCE} bytes of content")
                if not self.agents and not self.decoded:
                    return b""
            latest = piece
        result = yield from self._judge_piece(latest, last)
        if isinstance(result, AgentDecision):
            return result
        return b"".join((*judged, result)) if judged else result

    def _judge_piece(self, content: bytes, last: bool) -> _Judging:
        outcome = super().feed(content, last)
        while isinstance(outcome, BodyChunkEvent):
            verdicts = yield outcome
            assert verdicts is not None
            outcome = super().resume(verdicts)
        return outcome

    def _pass_on(self) -> bytes:
        self._passing = True
        return self._originals.take()
