"""Several processes of one agent: while one of them is gone, the others do its work."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGKILL, SIGTERM

import pytest

from asgi_agents import AgentConfig, StreamTransport

from .guarded import CLOSED, TOLD, Guarded
from .load import Load, signed, signed_by
from .processes import PATIENCE, AgentProcess, agent_process, until

# Processes under load, killed again and again. test_failures has one that freezes, serve/test_main workers that are
# killed, and test_pool, in virtual time, instances that come and go.
pytestmark = pytest.mark.slow

CLIENTS = 50


@contextmanager
def two_processes() -> Iterator[list[AgentProcess]]:
    bind = ("--bind", "unix://{place}/agent")
    with agent_process("Signs", *bind) as one, agent_process("Signs", *bind) as other:
        yield [one, other]


def configured(transport: StreamTransport | list[str]) -> AgentConfig:
    """With a deadline that no machine is too slow for."""
    return AgentConfig("agent", transport, timeout=PATIENCE, circuit_breaker=TOLD)


@contextmanager
def load_on(guarded: Guarded) -> Iterator[Load]:
    with guarded.served(http="httptools", loop="uvloop") as url, Load(url, [CLOSED], clients=CLIENTS) as load:
        yield load


def test_when_one_of_two_instances_is_killed_only_the_calls_that_it_had_fail() -> None:
    with two_processes() as (one, other):
        guarded = Guarded(configured([*one.addresses, *other.addresses]))
        with load_on(guarded) as load:
            for each in (one, other):
                load.wait_for(signed_by(each), of=CLOSED)
            one.kill()
            until(lambda: guarded.connections[0] == 0)
            noticed = time.monotonic()
            load.wait_for(signed_by(other), of=CLOSED, count=5 * CLIENTS)
            one.start()
            one.wait_up()
            load.wait_for(signed_by(one), of=CLOSED)
        failed = [reply for reply in load.replies if reply.status != 200]
        assert not [reply for reply in failed if reply.began > noticed]
        assert len(failed) <= CLIENTS


def test_when_one_of_two_instances_is_told_to_end_not_a_single_request_fails() -> None:
    with two_processes() as (one, other):
        guarded = Guarded(configured([*one.addresses, *other.addresses]))
        with load_on(guarded) as load:
            for _ in range(2):
                for each in (one, other):
                    load.wait_for(signed_by(each), of=CLOSED)
                one.send(SIGTERM)
                assert one.wait_ended() == 0
                load.wait_for(signed_by(other), of=CLOSED, count=CLIENTS)
                one.start()
                one.wait_up()
        assert {(reply.status, reply.fault) for reply in load.replies} == {(200, "")}


# The system spreads connections as it likes: of sixteen both workers have some, of four perhaps only one.
@pytest.mark.parametrize("connections", [4, 16])
def test_when_a_worker_is_killed_under_load_another_one_is_called(connections: int) -> None:
    with agent_process("Signs", "--bind", "unix://{place}/agent", "--workers", "2") as agent:
        guarded = Guarded(configured(StreamTransport(agent.addresses[0], connections=connections)))
        with load_on(guarded) as load:
            for killed in range(1, 3):
                until(lambda: guarded.connections == [connections], told=guarded.statistics)
                load.wait_for(signed, of=CLOSED, count=CLIENTS)
                worker = load.replies[-1].agent
                assert worker is not None
                os.kill(worker, SIGKILL)
                until(lambda: agent.said.count("another one follows") == killed, told=lambda: agent.said)  # noqa: B023
                load.wait_for(lambda reply: signed(reply) and reply.agent != worker, of=CLOSED)  # noqa: B023
            until(lambda: guarded.statistics()["breaker"] == "closed", told=guarded.statistics)
        assert {(reply.status, reply.fault) for reply in load.replies} <= {(200, ""), (503, "")}
