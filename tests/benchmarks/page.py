"""Puts what was found between two marks in a page of the documentation. No I/O."""

from typing import Final

BEGIN: Final = "<!-- benchmarks: written by `python -m tests.benchmarks --page` -->"
END: Final = "<!-- /benchmarks -->"


def rewritten(page: str, found: str) -> str:
    """:raises ValueError: when the marks are not there, once each and in order."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise ValueError(f"expected {BEGIN!r} and then {END!r}, once each")
    return f"{before}{BEGIN}\n{found.strip()}\n{END}{after}"
