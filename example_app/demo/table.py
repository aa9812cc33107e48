"""The outcomes as a table."""

import os
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TextIO

from asgi_agents import AuditGuardrail, Verdict

from .run import Outcome

_WIDTH = 160
_GAP = "  "
_HEADINGS = ("#", "request", "expected", "got", "decided by", "what each agent decided, and how many ms it took")
BOLD, GREEN, RED, _RESET = "\x1b[1m", "\x1b[32m", "\x1b[31m", "\x1b[0m"
_NO_BREAK_SPACE = "\xa0"


class Style(NamedTuple):
    """How rows that are right and rows that are wrong are marked, and whether there are colours."""

    right: str = "✓"
    wrong: str = "✗"
    colour: bool = False

    def paint(self, text: str, code: str) -> str:
        """``text`` between escape codes, where those are welcome."""
        return f"{code}{text}{_RESET}" if self.colour else text


def style_for(stream: TextIO) -> Style:
    """What ``stream`` can show, and wants to (https://no-color.org)."""
    colour = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    style = Style(colour=colour)
    try:
        (style.right + style.wrong).encode(stream.encoding)
    except UnicodeEncodeError:
        style = Style("ok", "NO", colour)
    return style


def render(outcomes: Sequence[Outcome], style: Style) -> Iterator[str]:
    """The table's lines, of at most 160 columns unless an outcome is longer than anyone expected."""
    rows = [_cells(number, outcome) for number, outcome in enumerate(outcomes, 1)]
    widths = [max(map(len, column)) for column in zip(_HEADINGS[:-1], *(row[:-1] for row in rows), strict=True)]
    indent = sum(widths) + len(widths) * len(_GAP)
    room = max(40, _WIDTH - indent - len(_GAP) - len(style.wrong))

    def line(cells: Sequence[str], agents: str) -> str:
        return _GAP.join(cell.ljust(width) for cell, width in zip((*cells, agents), (*widths, room), strict=True))

    yield style.paint(line(_HEADINGS[:-1], _HEADINGS[-1]).rstrip(), BOLD)
    for (*cells, agents), outcome in zip(rows, outcomes, strict=True):
        first, *others = textwrap.wrap(agents, room, break_on_hyphens=False)
        mark = style.paint(style.right, GREEN) if outcome.right else style.paint(style.wrong, RED)
        for text in (f"{line(cells, first)}{_GAP}{mark}", *(" " * indent + other for other in others)):
            yield text.replace(_NO_BREAK_SPACE, " ")
    yield ""
    yield "(agent): a shadow agent, which is only recorded.  stream: the answer arrived while it was being made."
    yield _summary(outcomes, style)


def _cells(number: int, outcome: Outcome) -> tuple[str, ...]:
    decision = outcome.decision
    decider = decision.decided_by or (f"({outcome.shadow})" if outcome.shadow else "")
    agents = _agents(decision.verdicts, outcome.guardrails)
    return str(number), outcome.step.request, outcome.step.expected, outcome.got, decider, agents


def _agents(verdicts: Sequence[Verdict], guardrails: Sequence[AuditGuardrail]) -> str:
    """The last thing each agent said that wasn't plain, and the time that all it said took; what guardrails did."""
    said: dict[str, str] = {}
    took: dict[str, float] = {}
    for verdict in verdicts:
        words = _words(verdict)
        if words != "allow" or verdict.agent_id not in said:
            said[verdict.agent_id] = words
        took[verdict.agent_id] = took.get(verdict.agent_id, 0.0) + verdict.duration * 1000
    parts = [f"{agent_id} {words} {took[agent_id]:.2f}" for agent_id, words in said.items()]
    parts += [f"{done.agent} {word} {count} x" for done in guardrails for word, count in done.counts.items()]
    return ", ".join(part.replace(" ", _NO_BREAK_SPACE) for part in parts) or "none was asked"


def _words(verdict: Verdict) -> str:
    if verdict.response is None:
        return verdict.outcome
    if verdict.response.response_body_mutation is not None:
        return "changes body"
    return " ".join((verdict.outcome, *verdict.response.audit.rule_ids))


def _summary(outcomes: Sequence[Outcome], style: Style) -> str:
    right = sum(outcome.right for outcome in outcomes)
    if right == len(outcomes):
        return style.paint(f"All {right} came out as expected.", GREEN)
    return style.paint(f"{len(outcomes) - right} of {len(outcomes)} did not come out as expected.", RED)
