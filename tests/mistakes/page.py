"""The page of the documentation: what each mistake gets, verbatim."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from .mistake import Mistake
from .running import ROOT, outcome_of

PATH: Final = ROOT / "docs" / "pages" / "mistakes.md"

_TOP: Final = """\
# Common mistakes

What people write, what they get for it, word for word, and what they should have written. `python -m tests.mistakes`
makes each of these mistakes and writes this page.

Most errors are a `ConfigurationError`, raised where the mistake is written. It names the field, the value, and what
would be right. What works, but most likely not as it was meant, is one warning of the logger `asgi_agents`. Without any
set-up of logging Python writes warnings to standard error.

In the code `app` is a FastAPI app that answers `GET /items`, and `Waf` an agent with the hook `on_request_headers`.
`Block` and `Redact` are those of `asgi_agents.guardrails`.
"""


def page_of(mistakes: Mapping[str, Sequence[Mistake]]) -> str:
    """The page, with a table for each heading."""
    return "\n".join([_TOP, *(line for heading, group in mistakes.items() for line in _table(heading, group))])


def _table(heading: str, group: Sequence[Mistake]) -> Iterator[str]:
    yield f"## {heading}\n"
    yield "| mistake | what it gets | instead |"
    yield "| --- | --- | --- |"
    for mistake in group:
        what = f"{mistake.title}<br>{_code(mistake.code.strip().splitlines())}"
        yield f"| {what} | {_code(outcome_of(mistake))} | {mistake.instead} |"
    yield ""


def _code(lines: Sequence[str]) -> str:
    """Lines of code within a cell of a table."""
    return "<br>".join(_span(line) for line in lines if line.strip())


def _span(line: str) -> str:
    # Spaces at the beginning of a span are shown as they are only if they can't break.
    text = line.lstrip(" ")
    indented = "\u00a0" * (len(line) - len(text)) + text
    fence = "``" if "`" in indented else "`"
    return f"{fence}{indented}{fence}".replace("|", "\\|")
