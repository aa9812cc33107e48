"""What is listed for an endpoint is what is asked when it is called, on random apps."""

import logging
from collections.abc import Sequence

import pytest

from asgi_agents import AgentRoute
from asgi_agents.commands.check import finder_at
from asgi_agents.commands.report import EndpointReport, report_of
from asgi_agents.routing.survey import survey_app

from .random_app import Call, RandomApp


@pytest.fixture(autouse=True)
def _no_advice(caplog: pytest.LogCaptureFixture) -> None:
    # Random routes are full of likely mistakes.
    caplog.set_level(logging.CRITICAL, "asgi_agents")


def rows_for(rows: Sequence[EndpointReport], call: Call) -> list[EndpointReport]:
    """The lines that are for the path and method of a call: those for its path alone, else that for all paths."""
    own = [row for row in rows if row.name == call.handler and (not row.methods or call.method in row.methods)]
    special = [row for row in own if row.only is not None and AgentRoute(row.only, agents=[]).matches(call.path, "GET")]
    return special or [row for row in own if row.only is None]


def differences(app: RandomApp) -> list[str]:
    rows = [report_of(endpoint) for endpoint in survey_app(app.app, finder_at).endpoints]
    found = []
    for call in app.calls:
        meant, outcome = rows_for(rows, call), app.outcome(call)
        if outcome.ran != call.handler:
            # Another one is before it. It may run for other paths, such as those that are looked for.
            continue
        listed = [[agent.id for agent in row.agents] for row in meant]
        # A path may match several lines, of which the narrowest holds.
        if outcome.asked not in listed:
            found.append(f"{call}: listed {listed}, asked {outcome.asked}, {meant}")
    return found


@pytest.mark.parametrize("seed", range(8))
def test_what_is_listed_is_what_is_asked(seed: int) -> None:
    assert differences(RandomApp(seed, 30)) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 300))
def test_what_is_listed_is_what_is_asked_on_many_apps(seed: int) -> None:
    assert differences(RandomApp(seed, 40)) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_300_endpoints_are_listed_as_they_are_asked(seed: int) -> None:
    app = RandomApp(seed, 300)
    assert len(app.patterns) == 300
    assert differences(app) == []
