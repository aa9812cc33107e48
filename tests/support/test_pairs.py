"""The rule by which the short command leaves out cases."""

from collections.abc import Sequence
from itertools import combinations, product

import pytest

from .pairs import MANY, Case, beyond_pairs


def _taken(*values: Sequence[str]) -> list[Case]:
    cases = list(product(*values))
    left_out = set(beyond_pairs([(case, case) for case in cases]))
    return [case for case in cases if case not in left_out]


@pytest.mark.parametrize("values", [("ab",), ("abc", "xy"), ("a", "b"), ()])
def test_all_cases_of_two_parameters_or_fewer_are_taken(values: tuple[str, ...]) -> None:
    assert _taken(*values) == list(product(*values))


@pytest.mark.parametrize("values", [("abc", "xy", "12"), ("abcd", "abcd", "abcd"), ("ab", "ab", "ab", "ab", "xyz")])
def test_every_pair_of_values_is_in_a_case_that_is_taken(values: tuple[str, ...]) -> None:
    taken = _taken(*values)
    for first, second in combinations(range(len(values)), 2):
        assert {(case[first], case[second]) for case in taken} == set(product(values[first], values[second]))
    assert len(taken) < len(list(product(*values)))


def test_they_are_few() -> None:
    assert len(_taken("ab", "ab", "ab", "abcdefgh", "ab", "abcd")) < 512 / 10


LOOPS = ("asyncio", "trio")


@pytest.mark.parametrize("values", [("abcd",), ("abcdefghijk",), ("abc", "xyz"), ("ab", "ab", "abcde")])
def test_many_cases_take_turns_on_the_event_loops(values: tuple[str, ...]) -> None:
    taken = _taken(*values, LOOPS)
    for places in combinations(range(len(values)), min(2, len(values))):
        assert {tuple(case[place] for place in places) for case in taken} == set(
            product(*(values[place] for place in places))
        )
    assert len(taken) < len(list(product(*values, LOOPS))) * 0.7
    on = [[case[-1] for case in taken].count(loop) for loop in LOOPS]
    assert min(on) >= max(on) / 3


@pytest.mark.parametrize("values", [(), ("a",), ("abc",)])
def test_few_cases_run_on_all_event_loops(values: tuple[str, ...]) -> None:
    assert len(list(product(*values, LOOPS))) < MANY
    assert _taken(*values, LOOPS) == list(product(*values, LOOPS))


@pytest.mark.parametrize(
    "values", [("12", "abcdefghijklmnopq"), ("abcdefghijklmnopq", "12"), ("123", "abcdefgh", "xy")]
)
def test_every_value_that_is_taken_often_is_taken_on_all_event_loops(values: tuple[str, ...]) -> None:
    taken = _taken(*values, LOOPS)
    for place, names in enumerate(values):
        for name in names:
            on = [sum(case[place] == name and case[-1] == loop for case in taken) for loop in LOOPS]
            assert sum(on) < 4 or min(on) >= sum(on) / 4, (name, on)
