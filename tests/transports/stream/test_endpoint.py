"""How long an endpoint that can't be reached, or fails its calls, is left alone."""

import random

import pytest

from asgi_agents.transports.stream.endpoint import Endpoint
from asgi_agents.transports.wire import Address

from .pools import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def endpoint(clock: Clock) -> Endpoint:
    return Endpoint(Address("unix:///waf.sock", path="/waf.sock"), clock=clock)


def no_chance(monkeypatch: pytest.MonkeyPatch, drawn: float) -> None:
    monkeypatch.setattr(random, "random", lambda: drawn)


def fail(endpoint: Endpoint, times: int = 1) -> None:
    for _ in range(times):
        endpoint.rated(answered=False)


def ejection(endpoint: Endpoint, clock: Clock) -> float:
    """Seconds for which it is still ejected, to a tenth."""
    began = clock.now
    while endpoint.ejected:
        clock.now = round(clock.now + 0.1, 1)
        assert clock.now < began + 1000
    return round(clock.now - began, 1)


# Connecting


def test_an_endpoint_that_nobody_has_tried_is_not_down(endpoint: Endpoint) -> None:
    assert not endpoint.down
    assert endpoint.fault == ""


def test_an_endpoint_is_down_from_a_failed_attempt_to_the_next_that_succeeds(endpoint: Endpoint) -> None:
    endpoint.not_connected("nobody listens")
    assert endpoint.down
    assert endpoint.fault == "nobody listens"

    endpoint.connected()
    assert not endpoint.down
    assert endpoint.fault == ""


def test_the_backoff_doubles_up_to_five_seconds(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    no_chance(monkeypatch, 1.0)

    waits = [endpoint.not_connected("down") for _ in range(9)]

    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])


def test_chance_takes_half_of_the_backoff_at_most(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    no_chance(monkeypatch, 0.0)

    waits = [endpoint.not_connected("down") for _ in range(8)]

    assert waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.5, 2.5])


@pytest.mark.parametrize("seed", range(20))
def test_the_backoff_is_never_out_of_its_bounds(endpoint: Endpoint, seed: int) -> None:
    random.seed(seed)

    for attempt in range(12):
        whole = min(5.0, 0.1 * 2**attempt)
        assert whole / 2 <= endpoint.not_connected("down") <= whole


def test_two_clients_of_one_agent_dont_knock_at_the_same_time() -> None:
    address = Address("unix:///waf.sock", path="/waf.sock")

    assert len({Endpoint(address).not_connected("down") for _ in range(50)}) > 1


def test_an_answer_starts_the_backoff_anew(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    no_chance(monkeypatch, 1.0)
    for _ in range(8):
        endpoint.not_connected("down")

    endpoint.connected()
    endpoint.rated(answered=True)

    assert endpoint.not_connected("down") == pytest.approx(0.1)


def test_a_connection_that_lasts_starts_the_backoff_anew(
    endpoint: Endpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_chance(monkeypatch, 1.0)
    for _ in range(8):
        endpoint.not_connected("down")
    endpoint.connected()
    clock.now += 5.1

    # The next attempt need not wait.
    assert not endpoint.lost()
    assert endpoint.not_connected("down") == pytest.approx(0.1)


def test_a_connection_that_is_lost_at_once_is_a_failed_attempt(
    endpoint: Endpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_chance(monkeypatch, 1.0)
    waits = []
    for _ in range(4):
        endpoint.connected()
        clock.now += 0.5
        assert endpoint.lost()
        waits.append(endpoint.not_connected("lost"))

    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8])


def test_a_connection_that_has_answered_may_be_lost_without_a_wait(endpoint: Endpoint) -> None:
    endpoint.connected()
    endpoint.rated(answered=True)

    assert not endpoint.lost()


def test_an_endpoint_that_was_away_and_is_back_is_not_flapping(endpoint: Endpoint, clock: Clock) -> None:
    for _ in range(3):
        endpoint.not_connected("nobody listens")
    clock.now += 100

    endpoint.connected()

    assert not endpoint.flapping


def test_an_endpoint_whose_connections_are_lost_at_once_is_flapping_until_it_answers(endpoint: Endpoint) -> None:
    for _ in range(2):
        endpoint.connected()
        endpoint.lost()
        endpoint.not_connected("lost")
    endpoint.connected()
    assert endpoint.flapping

    endpoint.rated(answered=True)
    assert not endpoint.flapping


def test_years_of_attempts_overflow_nothing(endpoint: Endpoint) -> None:
    for _ in range(20_000):
        assert endpoint.not_connected("down") <= 5.0


# Calls


def test_four_failures_eject_nobody(endpoint: Endpoint) -> None:
    fail(endpoint, 4)

    assert not endpoint.ejected


def test_five_failures_in_a_row_eject_for_five_seconds(endpoint: Endpoint, clock: Clock) -> None:
    fail(endpoint, 5)

    assert ejection(endpoint, clock) == pytest.approx(5.0)


def test_an_answer_among_the_failures_starts_the_count_anew(endpoint: Endpoint) -> None:
    for _ in range(5):
        fail(endpoint, 4)
        endpoint.rated(answered=True)

    assert not endpoint.ejected


def test_each_ejection_is_twice_as_long_as_the_one_before_up_to_a_minute(endpoint: Endpoint, clock: Clock) -> None:
    lengths = []
    for _ in range(6):
        fail(endpoint, 5)
        lengths.append(ejection(endpoint, clock))

    assert lengths == pytest.approx([5, 10, 20, 40, 60, 60])


def test_one_that_is_back_has_five_failures_again_until_it_is_ejected(endpoint: Endpoint, clock: Clock) -> None:
    fail(endpoint, 5)
    ejection(endpoint, clock)

    fail(endpoint, 4)
    assert not endpoint.ejected
    fail(endpoint)
    assert endpoint.ejected


def test_an_answer_after_an_ejection_makes_the_next_one_short_again(endpoint: Endpoint, clock: Clock) -> None:
    for _ in range(3):
        fail(endpoint, 5)
        ejection(endpoint, clock)

    endpoint.rated(answered=True)
    fail(endpoint, 5)

    assert ejection(endpoint, clock) == pytest.approx(5.0)


def test_no_number_of_ejections_overflows_anything(endpoint: Endpoint, clock: Clock) -> None:
    for _ in range(2_000):
        fail(endpoint, 5)
        clock.now += 61

    fail(endpoint, 5)
    assert ejection(endpoint, clock) == pytest.approx(60.0)


def test_calls_that_fail_together_are_one_reason_to_eject_and_not_several(endpoint: Endpoint, clock: Clock) -> None:
    """All calls under way fail when an agent crashes, and those that it still had when it was ejected time out."""
    fail(endpoint, 40)
    clock.now += 1.0
    fail(endpoint, 10)

    assert ejection(endpoint, clock) <= 5.0
