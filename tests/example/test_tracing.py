import threading
from collections.abc import Callable
from itertools import permutations

import pytest

from example_app.demo.tracing import SpanNote, TraceTrees


class HandTimer:
    """Goes off when the test says so."""

    made: list["HandTimer"]

    def __init__(self, seconds: float, function: Callable[[], None]) -> None:
        self.go_off = function
        self.daemon = False
        self.made.append(self)

    def start(self) -> None:
        pass


def span(trace_id: str, name: str, *, first: bool = True) -> SpanNote:
    return SpanNote(trace_id, f"span of {trace_id}", None, "shop", name, "client", 0, 1, "200", first)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_traces_are_printed_in_the_order_of_their_ends_whichever_timer_is_first(
    order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    HandTimer.made = []
    monkeypatch.setattr(threading, "Timer", HandTimer)
    shown: list[str] = []
    trees = TraceTrees(shown.append)
    for number in range(3):
        trees.add(span(f"t{number}", f"GET /{number}"))
    for number in order:
        HandTimer.made[number].go_off()
    assert [text.splitlines()[0] for text in shown] == ["trace t0", "trace t1", "trace t2"]
    trees.flush()


def test_a_trace_that_begins_twice_in_this_process_is_printed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    HandTimer.made = []
    monkeypatch.setattr(threading, "Timer", HandTimer)
    shown: list[str] = []
    trees = TraceTrees(shown.append)
    # The server's span ends, then the client's, whose trace it belongs to.
    trees.add(span("t0", "server"))
    trees.add(span("t0", "client"))
    trees.add(span("t1", "GET /"))
    for timer in reversed(HandTimer.made):
        timer.go_off()
    assert [text.splitlines()[0] for text in shown] == ["trace t0", "trace t1"]
    assert len(shown[0].splitlines()) == 3
