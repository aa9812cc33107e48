import gc
import os
import re
from collections import defaultdict
from collections.abc import Generator, Iterator
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import none

from asgi_agents import middleware
from asgi_agents.routing.marks import marks
from tests.support.pairs import beyond_pairs
from tests.support.virtual_time import in_virtual_time

# gRPC's library tells standard error of connections that ended, otherwise.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

# Every run takes the same examples, and takes as long over each as it needs: what passes here passes there. 25 of them
# find the planted defects (tests/mutation). .ci/run also takes 100.
# Other examples are looked for by `pytest --hypothesis-profile=hunting`, and by tests/fuzz.
_STEADY: Final = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100
)
settings.register_profile("steady", _STEADY, max_examples=25)
settings.register_profile("thorough", _STEADY)
settings.register_profile("hunting", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

# Nothing in these goes on outside of the event loop of a test: their coroutine functions run in virtual time.
_IN_VIRTUAL_TIME: Final = (
    "agents/test_jwt_slow_issuer.py",
    "exchange/",
    "files/test_handing_back.py",
    "files/test_reload.py",
    "files/test_retry.py",
    "files/test_watch.py",
    "guardrail_services/test_wired.py",
    "guardrails/test_waiting.py",
    "guardrails/wired/",
    "observability/",
    "recording/test_replay",
    "recording/test_traffic_log",
    "transports/discovery/test_watch.py",
    "transports/stream/",
    "transports/test_http_names.py",
    "transports/test_toy.py",
    "unjudged/",
    "test_audit.py",
    "test_authorization.py",
    "test_cancellation.py",
    "test_correlation.py",
    "test_former_guards.py",
    "test_frames.py",
    "test_guard.py",
    "test_handovers.py",
    "test_left_meanwhile.py",
    "test_limiter.py",
    "test_manager.py",
    "test_metering.py",
    "test_metrics.py",
    "test_middleware.py",
    "test_stages.py",
    "test_uvicorn.py",
    "test_virtual_time.py",
    "status/test_app.py",
    "status/test_reasons.py",
    "status/test_snapshot.py",
    "threats/test_answers.py",
    "threats/test_bodies.py",
    "threats/test_sockets.py",
)
# Modules that have policies on endpoints from when they are imported; others have one of the functions at hand.
_WITH_POLICIES: Final = ("commands/", "endpoints/", "mistakes/", "typing/")
_POLICIES: Final = frozenset({"guard_router", "guarded_by", "unguarded"})
_ADDRESS: Final = re.compile(r"\bat 0x[0-9a-f]+|\bid='\d+'")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--general-way", action="store_true", help="no request takes the short way of asgi_agents.exchange.plan"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """How many processes ``-n auto`` makes: one more than cores, since tests wait for other processes, too."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1


@pytest.fixture(autouse=True)
def general_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``--general-way``, the middleware makes no plan. What the tests see has to be the same."""
    if request.config.getoption("--general-way") and request.path.name != "test_plan.py":
        monkeypatch.setattr(middleware, "HeadPlan", lambda *args, **settings: None)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> object:
    """What a test runs on: a name, and options with it where that is in virtual time."""
    path = request.path.relative_to(Path(__file__).parent).as_posix()
    if (
        iscoroutinefunction(request.function)
        and path.startswith(_IN_VIRTUAL_TIME)
        and not request.node.get_closest_marker("real_time")
    ):
        return in_virtual_time(request.param, monkeypatch)
    return request.param


@pytest.fixture(params=["http1", "httpcore"])
def http_client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What carries the requests of `HttpTransport` on asyncio; on trio it is always httpcore."""
    name: str = request.param
    if name == "httpcore":
        monkeypatch.setattr("asgi_agents.transports.http_origin._HAS_HTTP1", False)
    elif "anyio_backend" in request.fixturenames and request.getfixturevalue("anyio_backend_name") == "trio":
        pytest.skip("http1 is for asyncio")
    return name


@pytest.fixture(autouse=True)
def steps_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warnings of hooks that block the event loop, as any seems to on a busy machine. Their own tests have them."""
    monkeypatch.setattr("asgi_agents.calls.blocking.Steps.took", lambda *_: None)


@pytest.fixture(autouse=True)
def no_policies_of_other_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests without policies on endpoints run as in a process without any, whatever others have left in this one."""
    path = request.path.relative_to(Path(__file__).parent).as_posix()
    if not path.startswith(_WITH_POLICIES) and _POLICIES.isdisjoint(vars(request.module)):
        monkeypatch.setattr(marks, "used", False)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The garbage collector does not look at the tests: neither while there are more and more of them, nor afterwards.

    Hundreds of tests call ``gc.collect``. Each call would visit the million objects of the tests that were collected.
    """
    gc.disable()
    _have_hypothesis_find_the_global_random()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@settings(max_examples=1)
@given(none())
def _have_hypothesis_find_the_global_random(_: None) -> None:
    """It does so before its first example. Older versions warn where what refers to that is frozen by then."""


@pytest.fixture(autouse=True, scope="module")
def left_alone() -> Iterator[None]:
    """Nor does the garbage collector look, in later modules, at what stays of this one: imports, caches, reports."""
    yield
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test has the same name in every process: by its name it is run again, and handed to a worker.

    Of parameters that are multiplied with one another, the cases that hold no pair of values of their own are slow.
    """
    named_by_address = [item.nodeid for item in items if _ADDRESS.search(item.nodeid)]
    if named_by_address:
        raise pytest.UsageError(f"tests whose names contain an address in memory: {named_by_address[:5]}")
    tables = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and not item.get_closest_marker("slow"):
            # In a version of pytest that doesn't tell these apart, all cases are taken.
            names = getattr(item.callspec, "_idlist", (item.callspec.id,))
            tables[item.parent, item.originalname].append((item, names))
    for cases in tables.values():
        for item in beyond_pairs(cases):
            item.add_marker(pytest.mark.slow)
