"""Members that are left alone for a while, and those that are not because there are too few others.

For how long is tested with endpoints, in ``tests/transports/stream/test_endpoint.py``.
"""

import random

import pytest

from asgi_agents.transports.discovery import Ejection, can_be_spared


def test_one_that_can_not_be_spared_stays_however_often_it_fails() -> None:
    ejection = Ejection()
    for _ in range(100):
        ejection.failed(1000.0, spared=False)
    assert ejection.until == 0.0
    assert ejection.failures == 100


def test_it_goes_with_the_next_failure_once_others_are_back() -> None:
    ejection = Ejection()
    for _ in range(20):
        ejection.failed(1000.0, spared=False)
    ejection.failed(1000.0)
    assert ejection.until == pytest.approx(1005.0)
    assert ejection.failures == 0


@pytest.mark.parametrize("members", range(1, 12))
def test_at_least_half_of_the_members_stay(members: int) -> None:
    ejected = 0
    while ejected < members and can_be_spared(members - ejected - 1, members):
        ejected += 1
    assert members - ejected >= members / 2
    assert members - ejected - 1 < members / 2


def test_the_only_one_is_never_ejected() -> None:
    assert not can_be_spared(0, 1)


def test_one_that_fails_and_can_not_be_spared_gets_a_fifth_of_its_calls_until_it_answers() -> None:
    random.seed(7)
    ejection = Ejection()
    for _ in range(4):
        ejection.failed(1000.0, spared=False)
    assert not ejection.left_out(1000.0)
    ejection.failed(1000.0, spared=False)
    assert 750 < sum(ejection.left_out(1000.0) for _ in range(1000)) < 850
    ejection.answered()
    assert not ejection.left_out(1000.0)


def test_one_that_is_ejected_gets_none_until_that_is_over() -> None:
    ejection = Ejection()
    for _ in range(5):
        ejection.failed(1000.0)
    assert all(ejection.left_out(1004.9) for _ in range(100))
    assert not ejection.left_out(1005.1)
