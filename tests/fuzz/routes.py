"""Whichever handler the app's router runs, the agents of the route that is spelt like it hear the connection."""

import anyio
from starlette.types import Scope

from ..support.finding import finder_of, ids_of
from . import route_tables
from .choices import Choices


def routes(data: bytes) -> None:
    """An app and our routes for it: what holds is what is to hold for the handler that ran, several times in a row."""
    choices = Choices(data)
    try:
        made = route_tables.table(choices)
    except (AssertionError, ValueError):
        # ConfigurationError among them: a pattern that there can't be, neither there nor here.
        return
    root_path = getattr(made.app, "root_path", "")
    finder = finder_of(made.app, made.routes, made.default)
    finder._examined = True  # the routes are mistakes, most of them
    scope: Scope | None = None
    for _ in range(1 + choices.below(8)):
        # What is remembered for one connection is most easily taken for one that differs from it in one thing.
        if scope is None or choices.flag():
            scope = route_tables.connection(choices, made)
        else:
            scope = route_tables.sibling(choices, scope)
        before = {**scope}
        # What is remembered is what was found.
        found, again = finder.look_up(scope), finder.look_up(scope)
        assert found is again, (made.routes, scope)
        assert scope == before
        made.ran.clear()
        anyio.run(route_tables.run, made.app, scope)
        expected = made.holder(scope, root_path)
        assert ids_of(found) == made.agents_of(expected), (made.handlers, made.ran, made.routes, scope)
