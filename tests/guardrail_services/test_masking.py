"""Which words a service has masked."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis.strategies import builds, lists, sampled_from, text

from asgi_agents.guardrail_services.masking import replaced_spans

_WORDS = sampled_from(["the", "a", " ", " ", "\n", "alice@example.com", "[0]", "电", "话", "b", ""])
_TEXTS = builds("".join, lists(_WORDS, max_size=40))


def replaced(before: str, spans: list[tuple[int, int, str]]) -> str:
    out: list[str] = []
    at = 0
    for start, end, new in spans:
        out += [before[at:start], new]
        at = end
    return "".join(out) + before[at:]


@given(_TEXTS, _TEXTS)
def test_to_replace_all_spans_gives_the_text_exactly(before: str, after: str) -> None:
    spans = replaced_spans(before, after)
    assert replaced(before, spans) == after
    assert all(0 <= start <= end <= len(before) for start, end, _ in spans)
    assert all(first[1] <= second[0] and first[0] < second[0] for first, second in pairwise(spans))


@given(text(max_size=60), text(max_size=60))
def test_so_it_does_for_any_text(before: str, after: str) -> None:
    assert replaced(before, replaced_spans(before, after)) == after


@pytest.mark.parametrize(
    ("before", "after", "spans"),
    [
        ("same", "same", []),
        ("to alice@example.com, please", "to [0], please", [(3, 21, "[0],")]),
        ("John Smith asks", "[NAME] asks", [(0, 10, "[NAME]")]),
        ("the a@b.c the d@e.f the", "the [0] the [1] the", [(4, 9, "[0]"), (14, 19, "[1]")]),
        ("pay 4111 1111 1111 1111 now", "pay [card] now", [(4, 23, "[card]")]),
        ("a b", "a b c", [(3, 3, " c")]),
        ("", "new", [(0, 0, "new")]),
        ("all of it", "", [(0, 9, "")]),
        ("电话是123456号", "电话是[0]号", [(3, 9, "[0]")]),
    ],
)
def test_spans_are_whole_words(before: str, after: str, spans: list[tuple[int, int, str]]) -> None:
    assert replaced_spans(before, after) == spans


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a b " * 50_000, "b a " * 50_000),
        (" ".join(map(str, range(50_000))), " ".join(map(str, reversed(range(50_000))))),
        ("a " * 100_000, "b " * 100_000),
        ("x" * 400_000, "y" * 400_000),
    ],
)
def test_no_text_takes_long(before: str, after: str) -> None:
    started = time.process_time()
    assert replaced(before, replaced_spans(before, after)) == after
    # It takes less than half a second; what is quadratic would take hours.
    assert time.process_time() - started < 30
