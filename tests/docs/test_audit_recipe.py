"""What the documentation says about a log of denials alone."""

import logging
from collections.abc import Iterator
from typing import Any, Final

import pytest

from asgi_agents import AgentConfig, AgentResponse, FailureMode
from tests.support.asgi import App, Client, Probe, guarded

from .markdown import blocks_of
from .pages import DOCS

LOGGER: Final = logging.getLogger("asgi_agents.audit")
PAGE: Final = (DOCS / "guide" / "observability.md").read_text()
BLOCK: Final = AgentResponse.block(403)


def fail(event: object) -> None:
    raise ValueError


def recipe() -> str:
    (code,) = [block.code for block in blocks_of(PAGE) if "class Stopped(logging.Filter)" in block.code]
    return code


@pytest.fixture
def wider() -> str:
    """The recipe as the page says that it lets more through."""
    (more,) = [line for line in PAGE.split("`") if line.startswith("or audit.would_stop")]
    return recipe().replace('audit.decision != "allow"', f'audit.decision != "allow" {more}')


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = list(LOGGER.filters)
    yield
    LOGGER.filters[:] = before


CASES: Final[dict[str, tuple[AgentConfig, bool, bool]]] = {
    "allow": (AgentConfig("a", Probe(request_headers=None)), False, False),
    "block": (AgentConfig("a", Probe(request_headers=BLOCK)), True, True),
    "redirect": (AgentConfig("a", Probe(request_headers=AgentResponse.redirect("/login"))), True, True),
    "challenge": (AgentConfig("a", Probe(request_headers=AgentResponse.challenge("basic"))), True, True),
    "close": (AgentConfig("a", Probe(request_headers=AgentResponse.websocket_close(4000))), True, True),
    "closed": (AgentConfig("a", Probe(request_headers=fail)), True, True),
    "open": (AgentConfig("a", Probe(request_headers=fail), failure_mode=FailureMode.OPEN), False, True),
    "shadow": (AgentConfig("a", Probe(request_headers=BLOCK), enforce=False), False, True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("wide", [False, True])
async def test_the_log_has_the_lines_of_what_was_stopped(
    case: str, wide: bool, wider: str, caplog: pytest.LogCaptureFixture
) -> None:
    config, narrow_line, wide_line = CASES[case]
    exec(compile(wider if wide else recipe(), "recipe", "exec"), {"__name__": "recipe"})  # noqa: S102 - our own page
    records: list[Any] = []
    with caplog.at_level(logging.INFO, logger="asgi_agents.audit"):
        await Client().call(guarded(App(), config, on_audit=records.append))
        LOGGER.info("what an application logs there itself")
    lines = [record for record in caplog.records if record.name == LOGGER.name]
    assert [hasattr(line, "audit") for line in lines] == [True] * (wide_line if wide else narrow_line) + [False]
    assert len(records) == 1
