"""How many inputs Hypothesis makes up for a test: a quarter as many in the test command as in what `.ci/run` adds."""

from hypothesis import settings


def examples(count: int) -> int:
    """``count`` in the profile ``thorough``, and a part of it in those of fewer examples."""
    return max(10, count * settings().max_examples // 100)
