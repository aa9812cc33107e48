"""The table: all cases, by what the agent receives."""

from collections.abc import Sequence
from typing import Final

from . import of_bodies, of_heads, of_messages, of_responses, of_texts
from .case import Case

TABLE: Final[Sequence[Case]] = (
    *of_heads.CASES,
    *of_bodies.CASES,
    *of_responses.CASES,
    *of_messages.CASES,
    *of_texts.CASES,
)
BY_SLUG: Final = {case.slug: case for case in TABLE}
