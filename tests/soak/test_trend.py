import random
from collections.abc import Callable

import pytest

from tests.soak.trend import BLOCK, trend

SAMPLES = 80
X = [float(number) for number in range(SAMPLES)]


@pytest.fixture
def noise() -> Callable[[], list[float]]:
    """Whatever other tests have drawn before, a test meets the same noise."""
    chance = random.Random(1)  # noqa: S311 - no secret
    return lambda: [chance.gauss(0, 1.0) for _ in X]


def test_what_is_constant_has_no_slope() -> None:
    found = trend(X, [7.0] * SAMPLES)
    assert (found.slope, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert not found.grows(0.0)


def test_a_line_is_found_with_its_slope() -> None:
    found = trend(X, [3.0 + 0.5 * x for x in X])
    assert found.slope == pytest.approx(0.5)
    assert found.p < 1e-6
    assert found.grows(0.5)


def test_a_slope_that_drowns_in_noise_at_first_sight_is_found(noise: Callable[[], list[float]]) -> None:
    found = trend(X, [0.03 * x + each for x, each in zip(X, noise(), strict=True)])
    assert found.low < 0.03 < found.high
    assert found.grows(0.01)


def test_one_more_now_and_then_is_found() -> None:
    """One descriptor for each twenty samples."""
    assert trend(X, [float(x // 20) for x in X]).grows(0.01)


def test_a_step_at_the_beginning_of_a_long_series_is_no_slope_of_any_size() -> None:
    found = trend(X, [0.0] * 8 + [5.0] * (SAMPLES - 8))
    assert found.slope == 0.0


def test_what_shrinks_does_not_grow() -> None:
    found = trend(X, [-x for x in X])
    assert found.p < 1e-6
    assert not found.grows(0.0)


def test_a_slope_that_is_certain_and_too_small_to_matter_is_no_growth() -> None:
    found = trend(X, [0.001 * x for x in X])
    assert found.p < 1e-6
    assert not found.grows(0.01)


def test_noise_is_seldom_taken_for_a_slope(noise: Callable[[], list[float]]) -> None:
    assert sum(trend(X, noise()).p < 0.01 for _ in range(300)) <= 9


def test_noise_that_remembers_is_seldom_taken_for_a_slope(noise: Callable[[], list[float]]) -> None:
    """Each sample resembles the one before, as samples of one process do."""

    def remembering() -> list[float]:
        values, value = [], 0.0
        for fresh in noise():
            value = 0.8 * value + fresh
            values.append(value)
        return values

    assert sum(trend(X, remembering()).p < 0.01 for _ in range(300)) <= 24


def test_the_interval_has_the_slope_in_it_most_of_the_time(noise: Callable[[], list[float]]) -> None:
    found = [trend(X, [0.1 * x + each for x, each in zip(X, noise(), strict=True)]) for _ in range(200)]
    assert sum(one.low <= 0.1 <= one.high for one in found) >= 175


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="8 samples, expected at least 12"):
        trend(X[: 2 * BLOCK], X[: 2 * BLOCK])
