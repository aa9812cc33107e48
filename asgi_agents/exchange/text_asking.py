"""Asks the agents of guardrails about windows of text, and notes what comes of it for the audit record and metrics."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Final, cast

import anyio
from anyio.lowlevel import checkpoint
from msgspec.structs import replace

from ..decision import AgentDecision, Verdict
from ..errors import AgentProtocolError, printable
from ..evaluation.route_agent import RouteAgent
from ..evaluation.text_judges import CallJudges, JudgeSet, RouteJudge
from ..failures import FailureKind
from ..guardrails.body import Body
from ..guardrails.dialect import Stop
from ..guardrails.judges import Blocked, Finding, Inspection, JudgeFailure
from ..guardrails.slots import Block, Call, Decision, Flag, Redact
from ..guardrails.text_guardrail import Decisions, WindowEvent, metadata_of
from ..guardrails.verdicts import decisions_of
from ..messages.places import raised_by
from ..protocol import Block as DeniedBy
from ..protocol import EventType, GuardrailInspectEvent, GuardrailResponse
from .guardrail_report import GuardrailReport
from .reply import describe
from .state import ExchangeState

logger: Final = logging.getLogger("asgi_agents")

# How often texts of a body are judged before others have their turn: a few milliseconds.
_ROUNDS_AT_ONCE: Final = 8
_NOTHING: Final = nullcontext()
_INSPECT: Final = EventType.GUARDRAIL_INSPECT
# Of a guardrail that judges beside the app.
_TOO_LATE: Final = "it redacts a request that the app has already (overlap=True); expected a block or a flag"
# What comes of it where `settled` raises: it is not asked again about the text.
_WITHOUT_SETTLED: Final = "its text waits as if it had no settled"


class Stopped(Exception):  # noqa: N818 - it is a decision
    """A call is stopped.

    :ivar stop: what its client is told.
    :ivar decision: what is recorded.
    """

    def __init__(self, stop: Stop, decision: AgentDecision) -> None:
        super().__init__(stop.message)
        self.stop = stop
        self.decision = decision

    @property
    def cause(self) -> str:
        """One line for logs and errors: who, and what; nothing that an agent has said."""
        return printable(self.stop.message) if self.decision.decided_by is None else describe(self.decision)


def blocked_by(blocked: Blocked) -> Stopped:
    """A guardrail has found what must not pass."""
    # It may quote what JSON can have in it and UTF-8 can't.
    stop = Stop(blocked.block.reason.encode("utf-8", "replace").decode())
    decision = AgentDecision(decision=DeniedBy(stop.status, stop.message), decided_by=blocked.judge.name)
    return Stopped(stop, decision)


def failed_with(verdict: Verdict) -> Stopped:
    """An agent has failed closed."""
    assert verdict.failure is not None
    block = verdict.failure.block
    decision = AgentDecision(decision=block, decided_by=verdict.agent_id, failure=verdict.failure)
    return Stopped(Stop(block.body or "", block.status), decision)


def refused(stop: Stop) -> Stopped:
    """What can't be read is stopped, and no agent has decided that."""
    return Stopped(stop, AgentDecision(decision=DeniedBy(stop.status, stop.message)))


class Asking:
    """Asks those who judge one call.

    :ivar judges: those who judge it, shadow agents too.
    :param reports: what is noted of each guardrail, by the identity of the guardrail. None: new ones.
    """

    def __init__(
        self,
        state: ExchangeState,
        judges: CallJudges,
        call: Call,
        reports: Mapping[int, GuardrailReport] | None = None,
    ) -> None:
        self._state = state
        self.judges = judges
        self.call = call
        if reports is None:
            # By identity: judges are compared field by field, and one that judges beside the app is another one.
            reports = {id(judge.guardrail): GuardrailReport(judge.name, call.dialect) for judge in judges.all}
            state.guardrails = (*state.guardrails, *reports.values())
        self._reports = reports

    def may_suspend(self, inspection: Inspection) -> bool:
        """Whether :meth:`ask` may suspend."""
        return _route_judge(inspection).agent.guard.may_suspend(_INSPECT)

    def may_wait(self, judges: JudgeSet) -> bool:
        """Whether a verdict of any of these may be late."""
        return any(judge.agent.guard.may_suspend(_INSPECT) for judge in judges.all)

    async def ask(self, inspection: Inspection) -> Sequence[Decision] | None:
        """What is to be done about a window. None: the agent can only say when all of the text is there.

        :raises Stopped: for an agent whose failure stops the call.
        """
        judge = _route_judge(inspection)
        agent, window = judge.agent, inspection.window
        if _INSPECT not in agent.guard.hears:
            # A remote agent has said so in its handshake, after the configuration was checked.
            verdict = self._skip(judge, FailureKind.UNAVAILABLE, "the agent does not receive such events")
            self._state.record((verdict,), every=False)
            return self._failed(judge, verdict)
        tally = agent.guard.tally.text
        tally.begin_window()
        try:
            verdict, answer = await self._inspect(agent, self._event(judge, inspection))
        finally:
            tally.end_window()
        if verdict.failure is not None:
            return self._failed(judge, verdict)
        decisions: Sequence[Decision]
        if type(answer) is Decisions:
            decisions = answer.decisions
        elif not answer.detected and not answer.detections and answer.redacted_content is None:
            return ()
        elif judge.redacts and _lacks_spans(answer, inspection):
            return None
        else:
            guardrail = judge.guardrail
            decisions = decisions_of(
                answer,
                window,
                action=guardrail.action,
                threshold=guardrail.threshold,
                categories=guardrail.counted,
                min_severity=guardrail.least_severity,
                shown_from=window.fresh,
            )
        if not agent.guard.config.enforce:
            return [_as_flag(decision, window.fresh, len(window.text)) for decision in decisions]
        return decisions

    async def ask_all(self, inspections: Sequence[Inspection]) -> Sequence[tuple[Inspection, Sequence[Decision]]]:
        """What is to be done about windows that are all there is of their texts; they are asked about in parallel.

        Of others nothing is known where one of them is blocked.

        :raises Stopped: for an agent whose failure stops the call.
        """
        answers: list[tuple[Inspection, Sequence[Decision]]] = []
        waiting: list[Inspection] = []
        for inspection in inspections:
            if self.may_suspend(inspection):
                waiting.append(inspection)
            else:
                answers.append((inspection, await self.ask(inspection) or ()))
        if len(waiting) == 1:
            answers.append((waiting[0], await self.ask(waiting[0]) or ()))
            return answers
        failed: Stopped | None = None

        async def ask_one(inspection: Inspection) -> None:
            nonlocal failed
            try:
                decisions = await self.ask(inspection) or ()
            except Stopped as exc:
                failed = failed or exc
                tasks.cancel_scope.cancel()
                return
            answers.append((inspection, decisions))
            if _blocks(decisions):
                tasks.cancel_scope.cancel()

        if waiting:
            async with anyio.create_task_group() as tasks:
                for inspection in waiting:
                    tasks.start_soon(ask_one, inspection)
        if failed is not None:
            raise failed
        return answers

    async def judge_body(self, body: Body, *, may_change: bool = True) -> None:
        """Have all text of a body judged; ``may_change``: a redaction can still be done.

        :raises Stopped: if it must not pass.
        """
        rounds = 0
        while inspections := body.inspections():
            rounds += 1
            if not rounds % _ROUNDS_AT_ONCE:
                # Where nothing suspends, others have their turn all the same: a body can have a million texts.
                await checkpoint()
            for inspection, given in await self.ask_all(inspections):
                decisions = given if may_change else self._without_changes(inspection, given)
                body.verdict(inspection, decisions)
            self.note(body.findings, [])
            if body.blocked is not None:
                self.note_block(body.blocked)
                raise blocked_by(body.blocked)
        self.note(body.findings, [])

    def _without_changes(self, inspection: Inspection, decisions: Sequence[Decision]) -> Sequence[Decision]:
        """The decisions on text that the app has already: to redact it is a failure. A block needs no redaction."""
        if _blocks(decisions) or not any(isinstance(decision, Redact) for decision in decisions):
            return decisions
        judge = _route_judge(inspection)
        verdict = self._skip(judge, FailureKind.NOT_APPLICABLE, _TOO_LATE)
        self._state.record((verdict,), every=False)
        return self._failed(judge, verdict)

    def not_shown(
        self, judges: Sequence[RouteJudge], kind: FailureKind, fault: str, *, stopped: bool = False
    ) -> Verdict | None:
        """Count that text could not be shown to ``judges``. Returns the verdict that stops the call, if one does.

        :param stopped: whether it is stopped whatever their failure modes.
        """
        stops: Verdict | None = None
        if judges:
            strict = stopped or any(judge.agent.stops_when_failing for judge in judges)
            self._complain(kind, fault, "stopped" if strict else "passed unjudged")
        for judge in judges:
            verdict = self._skip(judge, kind, fault)
            self._state.record((verdict,), every=False)
            self._count(judge, "unreadable")
            if verdict.fails_closed and stops is None:
                stops = verdict
        return stops

    def note_unreadable(self, judges: Sequence[RouteJudge], fault: str, outcome: str = "refused with 400") -> None:
        """Count that ``judges`` could not be shown a request, and say why.

        It is refused whatever their failure mode, and passes where all of them are shadow agents.
        """
        for judge in judges:
            self._count(judge, "unreadable")
        if judges:
            self._complain(FailureKind.REQUEST_UNREADABLE, fault, outcome)

    def note_dropped(self, judge: RouteJudge) -> None:
        """Count that a shadow agent was not shown all of a request or answer, because it was too slow for it."""
        self._count(judge, "dropped")

    def _count(self, judge: RouteJudge, what: str) -> None:
        self._report(judge).count(what)
        judge.agent.guard.tally.text.count(what, "")

    def _report(self, judge: RouteJudge) -> GuardrailReport:
        return self._reports[id(judge.guardrail)]

    def _complain(self, kind: FailureKind, fault: str, outcome: str) -> None:
        route_judges = self._state.resolved_route.judges
        path = str(self.call.scope.get("path", ""))
        if route_judges is not None and route_judges.complaints.due((kind, path)):
            logger.warning("guardrails, %r: %s; %s (logged once a minute)", printable(path), printable(fault), outcome)

    def note(self, findings: list[Finding], failures: list[JudgeFailure]) -> None:
        """Take note of what was found, and take it out of the lists."""
        for finding in findings:
            judge = cast(RouteJudge, finding.judge)
            found = finding.found
            what = "redact" if found.category is None else "flag"
            span = (found.start, found.end, (found.category or "")[:64])
            self._report(judge).add(what, finding.slot.kind, span)
            judge.agent.guard.tally.text.count(what, finding.slot.kind)
        findings.clear()
        for failure in failures:
            judge = cast(RouteJudge, failure.judge)
            self._report(judge).count("failure")
            self._skip(judge, FailureKind.ERROR, _fault_of_settled(failure), _WITHOUT_SETTLED)
        failures.clear()

    def note_block(self, blocked: Blocked) -> None:
        """Take note of what has stopped the call."""
        judge = cast(RouteJudge, blocked.judge)
        self._report(judge).add("block", blocked.slot.kind, None)
        judge.agent.guard.tally.text.count("block", blocked.slot.kind)

    def count_held(self, judges: Sequence[RouteJudge], change: int) -> None:
        """So many code points more wait for these; negative: fewer."""
        for judge in judges:
            judge.agent.guard.tally.text.hold(change)

    def note_hold(self, judges: Sequence[RouteJudge], held: int, delay: float) -> None:
        """Take note of how much text waited for these at most, and for how many seconds."""
        for judge in judges:
            report = self._report(judge)
            report.held = max(report.held, held)
            report.delay = max(report.delay, delay)
            judge.agent.guard.recorder.held(delay)

    def _event(self, judge: RouteJudge, inspection: Inspection) -> GuardrailInspectEvent:
        window, guardrail, call = inspection.window, judge.guardrail, self.call
        fresh = window.fresh
        content = window.text[fresh:] if fresh else window.text
        categories = guardrail.counted
        if judge.knows_windows:
            return WindowEvent(
                correlation_id=self._state.correlation_id,
                inspection_type=guardrail.inspection_type,
                content=content,
                model=call.model,
                categories=() if categories is None else tuple(categories),
                route_id=judge.agent.route,
                window=window,
                slot=inspection.slot,
            )
        return GuardrailInspectEvent(
            correlation_id=self._state.correlation_id,
            inspection_type=guardrail.inspection_type,
            content=content,
            model=call.model,
            categories=() if categories is None else sorted(categories),
            route_id=judge.agent.route,
            metadata=metadata_of(window, inspection.slot),
        )

    async def _inspect(self, agent: RouteAgent, event: GuardrailInspectEvent) -> tuple[Verdict, GuardrailResponse]:
        """Ask about a window. All windows of a connection share a span."""
        state, guard = self._state, agent.guard
        reserved = state.closed or guard.client.keeps_requests
        if not reserved and state.tracing.idle:
            # As most are.
            verdict, answer = await guard.inspect(event, agent.failure_mode, route=agent.route, window=True)
            if verdict.failure is not None or state.counting:
                self._note_call(verdict)
            return verdict, answer
        with state.reserved_id((guard,)) if reserved else _NOTHING as name:
            if name is not None and name != event.correlation_id:
                event = replace(event, correlation_id=name)
            session = state.session(_INSPECT)
            with _NOTHING if session is None else session.current():
                verdict, answer = await guard.inspect(event, agent.failure_mode, route=agent.route, window=True)
        if session is not None:
            session.note((verdict,))
        self._note_call(verdict)
        return verdict, answer

    def _note_call(self, verdict: Verdict) -> None:
        state = self._state
        if verdict.failure is not None:
            state.record((verdict,))
        elif state.counting:
            # What was found is in the guardrail's report.
            state.count((verdict,), 0)

    def _skip(self, judge: RouteJudge, kind: FailureKind, fault: str, consequence: str | None = None) -> Verdict:
        """The verdict of an agent that was not asked about a window."""
        agent = judge.agent
        verdict = agent.guard.skip(
            _INSPECT,
            kind,
            agent.failure_mode,
            fault,
            correlation_id=self._state.correlation_id,
            route=agent.route,
            traced=True,
            window=True,
            consequence=consequence,
        )
        session = self._state.session(_INSPECT)
        if session is not None:
            session.note((verdict,), counted=False)
        return verdict

    def _failed(self, judge: RouteJudge, verdict: Verdict) -> Sequence[Decision]:
        self._report(judge).count("failure")
        if verdict.fails_closed:
            raise failed_with(verdict)
        return ()


def _route_judge(inspection: Inspection) -> RouteJudge:
    # A call's judges are those of its route.
    return cast(RouteJudge, inspection.judge)


def _blocks(decisions: Sequence[Decision]) -> bool:
    return any(isinstance(decision, Block) for decision in decisions)


def _fault_of_settled(failure: JudgeFailure) -> str:
    if isinstance(failure.error, AgentProtocolError):
        # It was not raised: that is what it has returned.
        return str(failure.error)
    agent = cast(RouteJudge, failure.judge).agent.guard.client.agent
    return f"settled {raised_by(failure.error, getattr(agent, 'settled', None))}"


def _lacks_spans(answer: GuardrailResponse, inspection: Inspection) -> bool:
    """Whether it does not say what is to be changed where, although not all of what the agent was shown may be."""
    if answer.redacted_content is not None and not answer.detections:
        return inspection.asked.has_left or not inspection.window.final
    # Which text that has no span is about, it can't say of text that has left.
    return inspection.asked.has_left and all(detection.span is None for detection in answer.detections)


def _as_flag(decision: Decision, start: int, end: int) -> Decision:
    """What a shadow agent would have done, as something that is only recorded."""
    match decision:
        case Redact():
            return Flag(decision.start, decision.end, "would redact")
        case Block():
            return Flag(start, end, "would block")
        case _:
            return decision
