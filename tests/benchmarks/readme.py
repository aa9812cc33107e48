"""Puts what was found between two marks in the README. No I/O."""

from typing import Final

BEGIN: Final = "<!-- benchmarks: written by `python -m tests.benchmarks --readme` -->"
END: Final = "<!-- /benchmarks -->"


def rewritten(readme: str, found: str) -> str:
    """:raises ValueError: when the marks are not there, once each and in order."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise ValueError(f"expected {BEGIN!r} and then {END!r}, once each")
    return f"{before}{BEGIN}\n{found.strip()}\n{END}{after}"
