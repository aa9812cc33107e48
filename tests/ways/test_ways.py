"""One agent, one table, all ways: the same outcomes, but for what a way says that it does not carry."""

import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.docs.test_tables import table

from .case import Case, Kind
from .direct import PATIENCE, outcome_of
from .limited import Limits, State, within
from .page import PATH, WAYS, written
from .served import Served, serving
from .table import BY_SLUG, TABLE
from .way import check
from .ways import IN_PROCESS, LOCAL, Reached

_runs = count()


@pytest.fixture(scope="module")
def served() -> Iterator[dict[Kind, Served]]:
    # The path of a Unix socket has to be short.
    with tempfile.TemporaryDirectory(prefix="ways-") as directory, serving(Path(directory)) as places:
        yield places


#: What is refused where it is set up, and what the error says.
REFUSED = {
    (
        "gRPC",
        Kind.TEXTS,
    ): "does not receive guardrail_inspect, which its transport can't carry; expected",
    ("ext_proc", Kind.MESSAGES): "events contains websocket_frame, which its transport can't carry",
    ("ext_authz", Kind.RESPONSES): "events contains response_body_chunk, response_headers",
    ("ext_authz", Kind.MESSAGES): "events contains websocket_frame",
    ("ext_authz", Kind.TEXTS): "receives neither request_headers nor request_body_chunk",
    **{
        (way, kind): told
        for way in ("ext_authz over HTTP", "forward_auth")
        for kind, told in {
            Kind.BODIES: "receives request_body_chunk, and no bodies can be shown to it here",
            Kind.RESPONSES: "events contains response_body_chunk, response_headers",
            Kind.MESSAGES: "events contains websocket_frame",
            Kind.TEXTS: "receives neither request_headers nor request_body_chunk",
        }.items()
    },
}


def refused(way: Reached, case: Case) -> str | None:
    """What the error says where the agent of the case is to be refused."""
    if (way.name, case.kind, case.mode) == ("ext_authz", Kind.BODIES, "stream"):
        return "request_body_mode='stream', expected 'buffer'"
    return REFUSED.get((way.name, case.kind))


def _ways_and_cases() -> Iterator[Any]:
    """All of them; a third of the cases of each way in the short run, and each case by several ways."""
    for first, way in enumerate(LOCAL):
        for number, case in enumerate(TABLE):
            marks = [pytest.mark.slow] if (number + first) % 3 else []
            yield pytest.param(way, case, id=f"{way.name}-{case.slug}", marks=marks)


@pytest.mark.parametrize(("way", "case"), list(_ways_and_cases()))
async def test_the_outcome_is_the_same(way: Reached, case: Case, served: dict[Kind, Served]) -> None:
    refusal, told = way.refusal(case), refused(way, case)
    if told is not None:
        # Before anything is connected.
        assert told in refusal
        return
    assert not refusal
    limits = await within(way, case)
    run = f"{way.name}-{next(_runs)}"
    middleware = way.guard(case, served[case.kind])
    async with middleware.manager:
        found = await outcome_of(case, middleware, run)
    check(way, case, found, limits.outcome)
    if way is not IN_PROCESS:
        await _hears(served[case.kind], run, limits)


async def _hears(place: Served, run: str, limits: Limits) -> None:
    """The agent has received the events that the way carries, and no others."""
    if not limits.heard:
        return
    heard = place.agent.heard[run]
    with anyio.move_on_after(PATIENCE):
        # Nobody waits for its answer to the last one.
        while not limits.failed and heard != limits.heard:  # noqa: ASYNC110 - the agent is in another thread
            await anyio.sleep(0.001)
    assert heard <= limits.heard if limits.failed else heard == limits.heard


def test_there_are_sixty_cases_at_least() -> None:
    assert len(TABLE) == len(BY_SLUG) >= 60


@pytest.mark.parametrize("case", TABLE, ids=[case.slug for case in TABLE])
async def test_in_the_process_nothing_is_missing(case: Case) -> None:
    limits = await within(IN_PROCESS, case)
    assert limits.outcome == case.outcome
    assert limits.state is State.WORKS


def test_the_page_says_where_each_way_leads() -> None:
    rows = table(PATH, "| way | where the agent is | how it is set up |")
    assert [name for name, _, _ in rows] == [way.name for way in WAYS]


@pytest.mark.slow
def test_the_page_says_what_works_where() -> None:
    assert PATH.read_text() == written(), "write it anew: python -m tests.ways --page"
