"""How many cases of a test the test command of the README takes; `.ci/run` takes all of them."""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings


def examples(count: int) -> int:
    """``count`` inputs in Hypothesis's profile ``thorough``, and a part of that in those of fewer examples."""
    return max(10, count * settings().max_examples // 100)


def the_first_is_short(cases: Iterable[Any]) -> list[Any]:
    """Parameters of a test: all but the first are slow."""
    first, *others = cases
    return [first, *(pytest.param(case, marks=pytest.mark.slow) for case in others)]


def some_are_short(cases: Iterable[Any], *, one_in: int) -> list[Any]:
    """Parameters of a test that has many cases of one kind: all but the first of each ``one_in`` are slow."""
    return [pytest.param(case, marks=[pytest.mark.slow] if place % one_in else []) for place, case in enumerate(cases)]
