"""Copies that wait for somebody who may be too slow."""

from asgi_agents.guardrails.backlog import Backlog


def test_items_are_taken_in_their_order() -> None:
    backlog: Backlog[str] = Backlog(100)
    for item in "abc":
        backlog.add(item, 10)
    assert len(backlog) == 3
    assert backlog.size == 30
    assert [backlog.take() for _ in range(3)] == ["a", "b", "c"]
    assert backlog.size == 0
    assert not backlog.dropped


def test_where_too_much_waits_all_of_it_and_all_that_follows_is_dropped() -> None:
    backlog: Backlog[str] = Backlog(25, overhead=5)
    backlog.add("a", 5)
    backlog.add("b", 10)
    assert backlog.size == 25
    backlog.add("c", 0)
    assert backlog.dropped
    assert (len(backlog), backlog.size) == (0, 0)
    backlog.add("d", 1)
    assert (len(backlog), backlog.size) == (0, 0)


def test_what_was_taken_makes_room() -> None:
    backlog: Backlog[int] = Backlog(20)
    for item in range(1000):
        backlog.add(item, 10)
        if item:
            assert backlog.take() == item - 1
    assert not backlog.dropped


def test_one_item_may_be_of_any_size() -> None:
    backlog: Backlog[str] = Backlog(10)
    backlog.add("large", 1000)
    assert backlog.take() == "large"
    backlog.add("small", 1)
    backlog.add("large", 1000)
    assert backlog.dropped
