"""Text that a handler has a guardrail judge: by the same agent, in the same way, as text that passes by itself."""

from collections.abc import Sequence
from typing import Final

from ..errors import GuardrailUnavailableError, UnknownGuardrailError
from ..evaluation.guardrail import unavailable_for
from ..evaluation.text_judges import CallJudges, RouteJudge, judge_of
from ..failures import FailureKind
from ..guardrails import Guardrail
from ..guardrails.slot_text import Outcome, WholeText
from ..guardrails.slots import KINDS, Call, Kind, Slot
from ..messages.naming import named
from .guardrail_report import GuardrailReport
from .inspected_text import InspectedText
from .state import ExchangeState
from .text_asking import Asking, Stopped

#: What stands in the place of a dialect in the audit record.
HANDLER: Final = "handler"
#: How many code points a text may have.
MAX_TEXT: Final = 16 * 1024 * 1024


async def inspect_text(
    state: ExchangeState, text: str, guardrail: str, kind: Kind = "input", model: str | None = None
) -> InspectedText:
    """Have a guardrail judge all of ``text`` at once.

    :raises UnknownGuardrailError: for a name that no guardrail of the path or the middleware has.
    :raises GuardrailUnavailableError: if the agent fails closed.
    """
    if not isinstance(text, str):
        raise TypeError(f"inspect: text is of type {type(text).__name__}, expected a str")
    if kind not in KINDS:
        raise ValueError(f"inspect: kind={kind!r:.100}, expected one of {', '.join(sorted(KINDS))}")
    judge, report = _judge_of(state, _guardrail_of(state, guardrail, kind))
    if not text:
        # There is nothing to judge, as in bodies.
        return InspectedText(text=text)
    call = Call(dialect=HANDLER, model=model, scope={"path": state.route or ""})
    asking = Asking(state, CallJudges((judge,)), call, {id(judge.guardrail): report})
    if len(text) > MAX_TEXT:
        fault = f"a text of more than {MAX_TEXT} code points"
        verdict = asking.not_shown((judge,), FailureKind.REQUEST_TOO_LARGE, fault)
        if verdict is not None and verdict.failure is not None:
            raise unavailable_for(verdict.failure)
        return InspectedText(text=text)
    try:
        return await _judge(asking, judge, Slot((HANDLER,), kind), text)
    except Stopped as stopped:
        raise _unavailable(stopped) from None


async def _judge(asking: Asking, judge: RouteJudge, slot: Slot, text: str) -> InspectedText:
    outcome = Outcome()
    released: list[str] = []
    in_a_row, beside = ((judge,), ()) if judge.redacts else ((), (judge,))
    whole = WholeText(slot, text, in_a_row, beside, outcome, released.append)
    for inspection, decisions in await asking.ask_all(outcome.hand_out()):
        whole.decide(inspection, decisions)
    found = sorted((finding.found for finding in outcome.findings), key=lambda found: (found.start, found.end))
    asking.note(outcome.findings, [])
    if outcome.blocked is not None:
        asking.note_block(outcome.blocked)
        return InspectedText(text="", reason=outcome.blocked.block.reason, found=tuple(found))
    whole.advance(0.0)
    return InspectedText(text=released[0], found=tuple(found))


def _guardrail_of(state: ExchangeState, name: str, kind: Kind) -> Guardrail:
    """The guardrail of that name: of several, the first that is for text of this kind."""
    guardrails = state.resolved_route.guardrails
    those = [guardrail for guardrail in guardrails if guardrail.agent_id == name]
    if not those:
        raise UnknownGuardrailError(_unknown(name, guardrails))
    return next((guardrail for guardrail in those if kind in guardrail.kinds), those[0])


def _unknown(name: object, guardrails: Sequence[Guardrail]) -> str:
    if not isinstance(name, str):
        return f"inspect: guardrail={named(name)}, expected the id of an agent that a Guardrail names"
    names = ", ".join(dict.fromkeys(guardrail.agent_id for guardrail in guardrails))
    have = f"there are: {names}" if names else "there are none"
    return f"inspect: no Guardrail has the agent {name!r:.100} here; {have}"


def _judge_of(state: ExchangeState, guardrail: Guardrail) -> tuple[RouteJudge, GuardrailReport]:
    """A guardrail as it judges on the connection, and the report on it, which all questions to it share."""
    agent = state.agent_of(guardrail.agent_id)
    asked = state.asked_by_handlers
    known = asked.get(id(guardrail))
    if known is not None and known[0].agent.guard is agent.guard:
        return known
    judge = judge_of(guardrail, agent)
    report = known[1] if known is not None else GuardrailReport(judge.name, HANDLER)
    if known is None:
        state.guardrails = (*state.guardrails, report)
    # Another dict, so that none is made for a connection whose handler asks nothing.
    state.asked_by_handlers = {**asked, id(guardrail): (judge, report)}
    return judge, report


def _unavailable(stopped: Stopped) -> GuardrailUnavailableError:
    # A block does not stop a question, so that what does is a failure.
    assert stopped.decision.failure is not None
    return unavailable_for(stopped.decision.failure)
