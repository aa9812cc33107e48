"""The table of all ways, on Ray Serve: a cluster on this machine, its handles, and its proxy.

Which events an agent has received is not seen here: it is in a process of Ray's.
"""

import os
import socket
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.ways.agents import agent_of
from tests.ways.case import Case, Kind
from tests.ways.direct import outcome_of
from tests.ways.limited import State, within
from tests.ways.rays import RAYS
from tests.ways.served import Served, nowhere
from tests.ways.table import TABLE
from tests.ways.way import check
from tests.ways.ways import Reached

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install '.[ray]'")

from dataclasses import replace

from asgi_agents.ray import agent_deployment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # Ray's own
]
ROOT = Path(__file__).parents[2]
_runs = count()


@pytest.fixture(scope="module")
def served() -> Iterator[dict[Kind, Served]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    before = dict(os.environ)
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
    ray.init(
        num_cpus=len(Kind) + 1,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"})
    places = {}
    for kind in Kind:
        agent = agent_of(kind)
        application = agent_deployment(type(agent), ray_actor_options={"num_cpus": 0.5})
        serve.run(application, name=kind.value, route_prefix=f"/{kind.value}")
        places[kind] = replace(nowhere(agent), http=f"http://127.0.0.1:{port}/{kind.value}")
    yield places
    serve.shutdown()
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("case", TABLE, ids=[case.slug for case in TABLE])
@pytest.mark.parametrize("way", RAYS, ids=[way.name for way in RAYS])
async def test_the_outcome_is_the_same(way: Reached, case: Case, served: dict[Kind, Served]) -> None:
    limits = await within(way, case)
    assert limits.state is State.WORKS
    middleware = way.guard(case, served[case.kind])
    async with middleware.manager:
        check(way, case, await outcome_of(case, middleware, f"{way.name}-{next(_runs)}"), limits.outcome)
