"""What is listed for an endpoint is what is asked when it is called, on random apps."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from asgi_agents import AgentMiddleware, AgentRoute
from asgi_agents.commands.check import finder_at
from asgi_agents.commands.report import EndpointReport, report_of
from asgi_agents.middleware import finder_of
from asgi_agents.routing.survey import SurveyedEndpoint, survey_app, survey_of
from asgi_agents.routing.tracer import layers

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
@pytest.mark.parametrize("seed", range(100, 200))
def test_what_is_listed_is_what_is_asked_on_many_apps(seed: int) -> None:
    assert differences(RandomApp(seed, 40)) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_300_endpoints_are_listed_as_they_are_asked(seed: int) -> None:
    app = RandomApp(seed, 300)
    assert len(app.patterns) == 300
    assert differences(app) == []


@pytest.mark.parametrize("seed", range(20, 24))
def test_it_agrees_with_the_list_of_the_outermost_middleware(seed: int) -> None:
    """That list is for OpenAPI. It has the agents of one middleware, and builds nothing."""
    app = RandomApp(seed, 30).app
    outermost = next(layer for layer in layers(app, build=True) if isinstance(layer, AgentMiddleware))
    listed = {_key(one): _agents(one) for one in survey_of(outermost, finder_of(outermost), app)}
    compared = 0
    for endpoint in survey_app(app, finder_at).endpoints:
        if endpoint.only is None and endpoint.taken_by is None and endpoint.example is not None:
            # Where a middleware within has other agents for some methods, that survey has a line for each.
            found = [agents for key, agents in listed.items() if _is_part(_key(endpoint), key)]
            assert _agents(endpoint) in found, endpoint
            compared += 1
    assert compared > 20


def _key(endpoint: SurveyedEndpoint) -> tuple[Any, ...]:
    return endpoint.kind, endpoint.host, endpoint.path, endpoint.name, endpoint.only, endpoint.methods


def _is_part(key: tuple[Any, ...], whole: tuple[Any, ...]) -> bool:
    *where, methods = key
    *there, all_methods = whole
    return where == there and (methods == all_methods or (methods or set()) <= (all_methods or set()))


def _agents(endpoint: SurveyedEndpoint) -> list[str]:
    return [agent.guard.config.id for agent in endpoint.asked[0].agents] if endpoint.asked else []
