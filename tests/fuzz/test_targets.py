"""Every target, on what Hypothesis makes up. It knows nothing of coverage, but it runs everywhere."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.examples import examples

from .targets import TARGETS, Target

# By itself Hypothesis rarely makes more than a few bytes.
INPUTS = st.sampled_from([2, 8, 24, 64, 200, 600]).flatmap(lambda size: st.binary(min_size=size, max_size=size))
ALL = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@pytest.fixture(autouse=True)
def quiet() -> object:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@ALL
def test_what_is_promised_holds_for_the_seeds(target: Target) -> None:
    for seed in target.seeds:
        target.run(seed)


# Where `@given` is inside, the plugin does not see it.
@pytest.mark.hypothesis
@ALL
def test_what_is_promised_holds_whatever_the_input(target: Target) -> None:
    @settings(deadline=None, derandomize=True, database=None, max_examples=examples(target.examples))
    @given(INPUTS)
    def check(data: bytes) -> None:
        target.run(data)

    check()
