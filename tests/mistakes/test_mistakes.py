"""The page of common mistakes says what they get, and nothing passes in silence."""

import os

import pytest

from .mistake import Mistake
from .page import PATH, page_of
from .running import ROOT, outcome_of
from .table import MISTAKES

ALL = [mistake for group in MISTAKES.values() for mistake in group]


@pytest.fixture(scope="module")
def page() -> str:
    return page_of(MISTAKES)


@pytest.fixture
def steps_of_any_length() -> None:
    """A hook that blocks is one of the mistakes."""


@pytest.mark.slow
def test_the_page_says_what_the_mistakes_get(page: str) -> None:
    assert PATH.read_text() == page, "write it anew: python -m tests.mistakes"


@pytest.mark.slow
def test_the_page_names_no_place_of_the_machine_that_it_was_made_on(page: str) -> None:
    assert str(ROOT) not in page
    assert os.path.expanduser("~") not in page
    assert " at 0x" not in page


def test_there_are_the_forty_commonest() -> None:
    assert len(ALL) >= 40
    assert len({(mistake.title, mistake.code) for mistake in ALL}) == len(ALL)


@pytest.mark.parametrize("mistake", [mistake for mistake in ALL if not mistake.command], ids=lambda each: each.title)
def test_no_mistake_passes_in_silence(mistake: Mistake) -> None:
    assert [line for line in outcome_of(mistake) if not line.startswith("GET ")]
