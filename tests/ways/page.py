"""The page of the documentation: what works where, as the test of all ways has it."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
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


Row = tuple[Sequence[str], Sequence[str]]
"""The titles of a row, and what comes of it by each way."""


def written() -> str:
    """The page as it is to be: what stands between its marks is what was found."""
    text = PATH.read_text()
    events, cases = list(_events()), {kind: list(_cases(kind)) for kind in KINDS}
    columns = _columns([*events, *chain.from_iterable(cases.values())])
    tables = _grid(["agent", "event"], events, columns), _sections(cases, columns)
    for mark, lines in zip(_MARKS, tables, strict=True):
        begin, end = f"<!-- {mark}: written by `python -m tests.ways --page` -->", f"<!-- /{mark} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = "\n".join([before + begin, "", *lines, end + after])
    return text


def _events() -> Iterator[Row]:
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


def _cases(kind: Kind) -> Iterator[Row]:
    for case in TABLE:
        if case.kind is kind:
            yield [case.name], [_comes_to(way, case) for way in WAYS]


def _sections(cases: Mapping[Kind, Sequence[Row]], columns: Sequence[Sequence[int]]) -> Iterator[str]:
    for kind, rows in cases.items():
        yield f"### Agents that receive {KINDS[kind]}\n" if kind is not Kind.TEXTS else "### Text guardrails\n"
        yield from _grid(["the agent can"], rows, columns)


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


def _columns(rows: Sequence[Row]) -> Sequence[Sequence[int]]:
    """The ways of each column, by their places in WAYS. Those that differ in none of all the rows share one."""
    columns: dict[tuple[str, ...], list[int]] = {}
    for index in range(len(WAYS)):
        columns.setdefault(tuple(cells[index] for _, cells in rows), []).append(index)
    return list(columns.values())


def _grid(heads: Sequence[str], rows: Sequence[Row], columns: Sequence[Sequence[int]]) -> Iterator[str]:
    """A table. All of them have the same columns."""
    names = ["; ".join(WAYS[index].name for index in column) for column in columns]
    yield f"| {' | '.join([*heads, *names])} |"
    yield f"|{' --- |' * (len(heads) + len(columns))}"
    for titles, cells in rows:
        yield f"| {' | '.join([*titles, *(cells[first] for first, *_ in columns)])} |"
    yield ""
