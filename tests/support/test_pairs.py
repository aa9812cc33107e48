"""The rule by which the short command leaves out cases."""

from itertools import combinations, product

import pytest

from .pairs import Case, beyond_pairs


def _taken(*values: str) -> list[Case]:
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
