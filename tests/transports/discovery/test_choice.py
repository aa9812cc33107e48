"""The power of two choices."""

import random
from collections import Counter

import pytest

from asgi_agents.transports.discovery import less_loaded


def test_where_there_is_one_it_is_taken_whatever_its_load() -> None:
    def load(_: str) -> int:
        raise AssertionError

    assert less_loaded(["a"], load) == "a"


def test_of_two_the_less_loaded_is_taken() -> None:
    loads = {"a": 3, "b": 2}
    assert {less_loaded(list(loads), loads.__getitem__) for _ in range(100)} == {"b"}


def test_the_most_loaded_of_all_is_never_taken_and_all_others_are() -> None:
    loads = {"a": 1, "b": 2, "c": 3, "d": 4}
    random.seed(7)
    assert {less_loaded(list(loads), loads.__getitem__) for _ in range(500)} == {"a", "b", "c"}


@pytest.mark.parametrize("count", [2, 3, 10])
def test_equals_get_equal_shares(count: int) -> None:
    random.seed(7)
    shares = Counter(less_loaded(range(count), lambda _: 0) for _ in range(1000 * count))
    assert all(850 < share < 1150 for share in shares.values())
    assert len(shares) == count


def test_the_two_that_are_drawn_are_never_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for drawn in (0.0, 0.4, 0.99999999):
        monkeypatch.setattr(random, "random", lambda drawn=drawn: drawn)
        seen: list[int] = []

        def load(each: int, seen: list[int] = seen) -> int:
            seen.append(each)
            return 0

        less_loaded(range(3), load)
        assert len(set(seen)) == 2


def test_load_is_spread_almost_evenly() -> None:
    random.seed(7)
    loads = [0] * 10
    for _ in range(10_000):
        loads[less_loaded(range(10), loads.__getitem__)] += 1
    assert max(loads) - min(loads) < 10
