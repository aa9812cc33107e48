"""Members that are left alone for a while, and those that are not because there are too few others.

For how long is tested with endpoints, in ``tests/transports/stream/test_endpoint.py``.
"""

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
    while can_be_spared(members - ejected - 1, members):
        ejected += 1
    assert members - ejected >= members / 2
    assert members - ejected - 1 < members / 2


def test_the_only_one_is_never_ejected() -> None:
    assert not can_be_spared(0, 1)
