"""The page of the documentation: what works where, as the test of all ways has it."""

from collections.abc import Iterator, Sequence
from typing import Final

import anyio

from asgi_agents import EventType
from tests.docs.pages import DOCS

from .agents import agent_of
from .case import Case, Kind
from .envoys import ENVOYS
from .limited import State, within
from .rays import RAYS
from .table import TABLE
from .way import Way
from .ways import LOCAL

PATH: Final = DOCS / "guide" / "where.md"
WAYS: Final[Sequence[Way]] = (*LOCAL, *RAYS, *ENVOYS)
KINDS: Final = {
    Kind.HEADS: "heads of requests and handshakes",
    Kind.BODIES: "bodies of requests",
    Kind.RESPONSES: "responses",
    Kind.MESSAGES: "messages of websockets",
    Kind.TEXTS: "a `TextGuardrail`",
}

_MARKS: Final = ("events", "cases")


def written() -> str:
    """The page as it is to be: what stands between its marks is what was found."""
    text = PATH.read_text()
    for mark, lines in zip(_MARKS, (_grid(["agent", "event"], list(_events())), _cases()), strict=True):
        begin, end = f"<!-- {mark}: written by `python -m tests.ways --page` -->", f"<!-- /{mark} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = "\n".join([before + begin, "", *lines, end + after])
    return text


def _events() -> Iterator[tuple[list[str], list[str]]]:
    for kind, title in KINDS.items():
        for event in sorted(agent_of(kind).events, key=list(EventType).index):
            yield [title, f"`{event.value}`"], [_asked(way, kind, event) for way in WAYS]


def _asked(way: Way, kind: Kind, event: EventType) -> str:
    cases = [case for case in TABLE if case.kind is kind]
    if all(way.refusal(case) for case in cases):
        return State.REFUSED
    if event in way.asked(kind):
        return "yes"
    return State.FAILS if all(way.fails(case) for case in cases) else State.NOT_ASKED


def _cases() -> Iterator[str]:
    for kind, title in KINDS.items():
        yield f"### Agents that receive {title}\n" if kind is not Kind.TEXTS else "### Text guardrails\n"
        cases = [case for case in TABLE if case.kind is kind]
        yield from _grid(["the agent can"], [([case.name], [_comes_to(way, case) for way in WAYS]) for case in cases])


def _comes_to(way: Way, case: Case) -> str:
    if way.refusal(case):
        return State.REFUSED
    limits = anyio.run(within, way, case)
    if limits.state is not State.WORKS:
        return limits.state
    here, there = limits.outcome, case.outcome
    if here == there or there.failed:
        return "yes"
    if here.status != there.status:
        return f"as {here.status}"
    routed = here.app is not None and there.app is not None and here.app.routing != there.app.routing
    return "left out" if routed else "as text"


def _grid(heads: Sequence[str], rows: Sequence[tuple[Sequence[str], Sequence[str]]]) -> Iterator[str]:
    """A table with a column for each way. Ways that differ in nothing share one."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for index, way in enumerate(WAYS):
        columns.setdefault(tuple(cells[index] for _, cells in rows), []).append(way.name)
    yield f"| {' | '.join([*heads, *map('; '.join, columns.values())])} |"
    yield f"|{' --- |' * (len(heads) + len(columns))}"
    for index, (titles, _) in enumerate(rows):
        yield f"| {' | '.join([*titles, *(column[index] for column in columns)])} |"
    yield ""
