"""An agent process that dies or freezes while fifty clients want something."""

import time
from signal import SIGCONT, SIGSTOP

import pytest

from asgi_agents import AgentConfig, StreamTransport

from .guarded import CLOSED, OPEN, TOLD, Guarded
from .load import Load, Reply, signed_by, unsigned
from .processes import PATIENCE, agent_process, until


def refused(reply: Reply) -> bool:
    return reply.status == 503


def timed_out(reply: Reply) -> bool:
    return reply.status == 504


def assert_failed_as_configured(load: Load) -> None:
    closed = [reply for reply in load.replies if reply.path == CLOSED]
    assert {reply.status for reply in closed} <= {200, 503, 504}
    assert all(reply.agent is not None for reply in closed if reply.status == 200)
    assert {reply.status for reply in load.replies if reply.path == OPEN} == {200}


# Five processes one after the other. The one below, which freezes, is quick enough.
@pytest.mark.slow
def test_an_agent_that_is_killed_under_load_fails_as_configured_and_is_called_again_as_soon_as_it_is_back() -> None:
    with agent_process("Signs", "--bind", "unix://{place}/agent") as agent:
        guarded = Guarded(AgentConfig("agent", agent.addresses[0], timeout=PATIENCE, circuit_breaker=TOLD))
        with guarded.served(http="httptools", loop="uvloop") as url, Load(url, [CLOSED, OPEN], clients=50) as load:
            for _ in range(5):
                for path in (CLOSED, OPEN):
                    load.wait_for(signed_by(agent), of=path)
                agent.kill()
                killed = time.monotonic()
                load.wait_for(refused, of=CLOSED, count=25)
                load.wait_for(unsigned, of=OPEN, count=25)
                # Long enough for some attempts to connect.
                until(lambda: time.monotonic() - killed > 0.4)  # noqa: B023 - called here and now
                agent.start()
                agent.wait_up()
                for path in (CLOSED, OPEN):
                    load.wait_for(signed_by(agent), of=path)
            # Nothing of it has an effect for longer.
            until(lambda: guarded.statistics()["breaker"] == "closed")
            load.wait_for(signed_by(agent), of=CLOSED, count=100)
        assert_failed_as_configured(load)


@pytest.mark.slow
def test_an_agent_that_freezes_under_load_is_a_timeout_and_is_called_again_when_it_goes_on() -> None:
    with agent_process("Signs", "--bind", "unix://{place}/agent") as agent:
        transport = StreamTransport(agent.addresses[0], connect_timeout=2.0, ping_interval=0.1, stall_timeout=3.0)
        guarded = Guarded(AgentConfig("agent", transport, timeout=1.5, circuit_breaker=TOLD))
        with guarded.served(http="h11", loop="asyncio") as url, Load(url, [CLOSED, OPEN], clients=50) as load:
            for _ in range(2):
                for path in (CLOSED, OPEN):
                    load.wait_for(signed_by(agent), of=path)
                agent.send(SIGSTOP)
                # All clients may be waiting already. Once the deadlines have passed, the breaker is open.
                load.wait_for_one(timed_out, of=CLOSED)
                load.wait_for(unsigned, of=OPEN)
                until(lambda: guarded.connections == [0], told=guarded.statistics)
                agent.send(SIGCONT)
            for path in (CLOSED, OPEN):
                load.wait_for(signed_by(agent), of=path)
        assert_failed_as_configured(load)
