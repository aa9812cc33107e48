"""The fixtures for pytest: in this run, and in one of a project that has installed the package."""

import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from asgi_agents import AgentResponse
from asgi_agents.testing import FakeAgent, assert_blocked_by
from asgi_agents.testing.plugin import AgentOverrides

from .apps import aget, get, protected, state_of

# In the tests of this project pytest does not look for it.
pytest_plugins = ["asgi_agents.testing.plugin"]

APP = protected()
BEFORE = state_of(APP)
REAL = time.monotonic, anyio.to_thread.run_sync


class TestOverrides:
    def test_agents_are_replaced_until_the_test_is_over(self, agent_overrides: AgentOverrides) -> None:
        recorded = agent_overrides(APP, waf=FakeAgent(AgentResponse.block(403)))
        assert_blocked_by(get(APP), "waf")
        agent_overrides(APP, {"waf": FakeAgent(AgentResponse.block(401))})
        assert get(APP).status_code == 401
        assert len(recorded.records) == 2

    def test_they_are_back_afterwards(self) -> None:
        assert state_of(APP) == BEFORE


class TestVirtualTime:
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest, virtual_time: Any) -> Any:
        return virtual_time(request.param)

    async def test_deadlines_pass_at_once(self, agent_overrides: AgentOverrides) -> None:
        agent_overrides(APP, waf=FakeAgent(delay=60))
        began = anyio.current_time()
        assert (await aget(APP)).status_code == 504
        assert anyio.current_time() - began == pytest.approx(1.0, abs=1e-3)

    def test_time_is_real_again_afterwards(self) -> None:
        assert (time.monotonic, anyio.to_thread.run_sync) == REAL


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_plugin_imports_neither_trio_nor_a_client() -> None:
    others = {"httpx", "trio"}
    assert run(f"import asgi_agents.testing.plugin, sys; print(*sorted({others!r} & sys.modules.keys()))") == ""


def test_the_kit_imports_neither_pytest_nor_trio_nor_a_client() -> None:
    others = {"httpx", "pytest", "trio"}
    assert run(f"import asgi_agents.testing, sys; print(*sorted({others!r} & sys.modules.keys()))") == ""


def test_the_plugin_is_declared() -> None:
    assert {each.value for each in entry_points(group="pytest11", name="asgi_agents")} == {"asgi_agents.testing.plugin"}


SHOP = """
from starlette.applications import Starlette
from asgi_agents import AgentConfig, EventType, protect

app = Starlette()
protect(app, agents=[AgentConfig("waf", "http://127.0.0.1:1/", events={EventType.REQUEST_HEADERS})])
"""
TESTS = """
import httpx, pytest, time
from starlette.testclient import TestClient
from asgi_agents import AgentResponse
from asgi_agents.testing import FakeAgent, assert_blocked_by
from shop import app

pytestmark = pytest.mark.anyio

@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request, virtual_time):
    return virtual_time(request.param)

@pytest.fixture
def waf(agent_overrides):
    fake = FakeAgent()
    agent_overrides(app, waf=fake)
    return fake

def test_passes(waf):
    assert TestClient(app).get("/").status_code == 404
    assert len(waf.received) == 1

def test_fails(waf):
    assert_blocked_by(TestClient(app).get("/"), "waf")

def test_is_as_before():
    assert TestClient(app).get("/").status_code == 503

async def test_virtual(agent_overrides):
    agent_overrides(app, waf=FakeAgent(delay=3600))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        assert (await client.get("/")).status_code == 504
"""


# A run of pytest, with all plugins that are installed.
@pytest.mark.slow
def test_a_project_finds_the_fixtures(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "test_shop.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 failed, 4 passed" in done.stdout, done.stdout + done.stderr
    assert "E       AssertionError: GET / was not blocked by 'waf': no agent has stopped it (status 404)" in done.stdout
    # The assertion is shown in the test, and not in the kit.
    assert "asserting.py" not in done.stdout
