"""Which connection takes the next request, given those that have room."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from asgi_agents.transports.stream import AgentConnection, LoadBalancing
from asgi_agents.transports.stream.balancing import chooser
from asgi_agents.transports.stream.flow_control import Capacity, Flow
from asgi_agents.transports.stream.health import Health


class FakeConnection:
    def __init__(self, name: str, *, calls: int = 0, score: float = 1.0, timeout_multiplier: float = 1.0) -> None:
        self.name = name
        self.calls = calls
        self.flow = Flow(Capacity(), 100)
        self.flow.capacity.taken = calls
        self.health = Health(0.0)
        self.health.score = score
        self.health.timeout_multiplier = timeout_multiplier


def picks(strategy: LoadBalancing, connections: Sequence[FakeConnection], times: int) -> list[str]:
    random.seed(7)
    choose = chooser(strategy)
    given: Any = connections
    chosen: list[AgentConnection] = [choose(given) for _ in range(times)]
    return [connection.name for connection in chosen]  # type: ignore[attr-defined]


A, B, C = (FakeConnection(name) for name in "abc")


@pytest.mark.parametrize("strategy", LoadBalancing)
def test_one_connection_takes_everything(strategy: LoadBalancing) -> None:
    assert picks(strategy, [A], 5) == ["a"] * 5


@pytest.mark.parametrize("strategy", [each for each in LoadBalancing if each is not LoadBalancing.LEAST_CONNECTIONS])
def test_equal_connections_all_have_their_turn(strategy: LoadBalancing) -> None:
    assert set(picks(strategy, [A, B, C], 100)) == {"a", "b", "c"}


def test_round_robin_takes_one_after_the_other() -> None:
    assert picks(LoadBalancing.ROUND_ROBIN, [A, B, C], 7) == list("abcabca")


def test_round_robin_survives_a_change_of_the_connections() -> None:
    choose: Any = chooser(LoadBalancing.ROUND_ROBIN)

    chosen = [choose(connections).name for connections in ([A, B, C], [A, B], [B], [A, B, C], [C])]

    assert set(chosen) <= {"a", "b", "c"}
    assert chosen[2] == "b"
    assert chosen[4] == "c"


def test_each_pool_has_its_own_turns() -> None:
    assert picks(LoadBalancing.ROUND_ROBIN, [A, B], 1) == picks(LoadBalancing.ROUND_ROBIN, [A, B], 1) == ["a"]


def test_least_connections_takes_the_one_with_the_fewest_calls() -> None:
    connections = [FakeConnection("a", calls=3), FakeConnection("b", calls=1), FakeConnection("c", calls=2)]
    choose: Any = chooser(LoadBalancing.LEAST_CONNECTIONS)

    chosen = []
    for _ in range(6):
        connection = choose(connections)
        connection.calls += 1
        chosen.append(connection.name)

    assert Counter(connection.calls for connection in connections) == {4: 3}
    assert chosen[0] == "b"


def test_random_is_fair() -> None:
    counts = Counter(picks(LoadBalancing.RANDOM, [A, B, C], 3000))

    assert all(800 < count < 1200 for count in counts.values())


def test_health_based_gives_more_to_those_that_answer_more() -> None:
    good, bad = FakeConnection("good", score=0.9), FakeConnection("bad", score=0.1)

    counts = Counter(picks(LoadBalancing.HEALTH_BASED, [bad, good], 2000))

    assert 1700 < counts["good"] < 1900


def test_health_based_gives_the_worst_a_chance_to_do_better() -> None:
    good, bad = FakeConnection("good", score=1.0), FakeConnection("bad", score=0.0)

    counts = Counter(picks(LoadBalancing.HEALTH_BASED, [bad, good], 2000))

    assert 0 < counts["bad"] < 300


def test_health_based_spares_those_that_say_they_are_degraded() -> None:
    well, degraded = FakeConnection("well"), FakeConnection("degraded", timeout_multiplier=4.0)

    counts = Counter(picks(LoadBalancing.HEALTH_BASED, [degraded, well], 2000))

    assert 300 < counts["degraded"] < 500


def test_the_power_of_two_goes_by_what_the_instance_has_to_do_and_then_by_the_connection() -> None:
    busy, idle = FakeConnection("busy", calls=5), FakeConnection("idle", calls=2)
    assert set(picks(LoadBalancing.POWER_OF_TWO, [busy, idle], 20)) == {"idle"}

    # Two connections to one instance.
    other = FakeConnection("other", calls=1)
    other.flow = idle.flow
    assert set(picks(LoadBalancing.POWER_OF_TWO, [idle, other], 20)) == {"other"}


def test_the_power_of_two_does_not_starve_what_has_failed_once() -> None:
    once, never = FakeConnection("once", score=0.9), FakeConnection("never")
    assert set(picks(LoadBalancing.POWER_OF_TWO, [once, never], 20)) == {"once", "never"}
