"""The connections of agents in whose places others are for a while."""

from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest
from starlette.testclient import TestClient

from asgi_agents import AgentConfig, AgentResponse, EventType
from asgi_agents.serve import serve_stream
from asgi_agents.testing import FakeAgent, override_agents

from .apps import aget, protected
from .test_overriding import BLOCK, Listens, manager_of


class Counting:
    """A transport to an agent elsewhere, whose connections are counted."""

    kind = "counting"
    remote = True
    events = frozenset({EventType.REQUEST_HEADERS})
    carries = frozenset(EventType)

    def __init__(self) -> None:
        self.open = 0

    def may_suspend(self, event_type: EventType) -> bool:
        return True

    async def call(self, event: object) -> AgentResponse | None:
        self.open = 1
        return None

    async def aclose(self) -> None:
        self.open = 0


def test_an_agent_that_is_out_of_its_place_is_closed_with_the_app() -> None:
    transport = Counting()
    app = protected(AgentConfig("waf", transport))
    client, override = ExitStack(), ExitStack()
    test_client = client.enter_context(TestClient(app))
    test_client.get("/orders")
    assert transport.open == 1
    override.enter_context(override_agents(app, waf=FakeAgent()))
    client.close()
    assert transport.open == 0
    override.close()


@pytest.mark.parametrize("started", [False, True])
async def test_an_agent_behind_a_stream_is_connected_again(tmp_path: Path, started: bool) -> None:
    real = Listens()
    app = protected(AgentConfig("waf", f"unix://{tmp_path}/waf.sock"))
    async with anyio.create_task_group() as tasks:
        await tasks.start(
            lambda *, task_status: serve_stream(real, f"unix://{tmp_path}/waf.sock", task_status=task_status)
        )
        if started:
            assert (await aget(app)).status_code == 200
        with override_agents(app, waf=FakeAgent(request_headers=BLOCK)):
            assert (await aget(app)).status_code == 403
        assert (await aget(app)).status_code == 200
        await manager_of(app).shutdown()
        tasks.cancel_scope.cancel()
    assert real.asked == 1 + started
