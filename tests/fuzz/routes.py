"""Whichever handler the app's router runs, the agents of the route that is spelt like it hear the connection."""

import anyio

from asgi_agents.routing.resolver import Resolver
from asgi_agents.routing.routes import Router

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
    resolver = Resolver(Router(made.routes, made.default, root_path), made.app)
    for _ in range(1 + choices.below(4)):
        scope = route_tables.connection(choices, made)
        before = {**scope}
        # What is remembered is what was found.
        found = {id(route): route for route, _ in (resolver.resolve(scope) for _ in range(2))}
        assert len(found) == 1, (made.routes, scope)
        assert scope == before
        [route] = found.values()
        made.ran.clear()
        anyio.run(route_tables.run, made.app, scope)
        expected = made.holder(scope, root_path)
        assert made.agents_of(route) == made.agents_of(expected), (made.handlers, made.ran, made.routes, scope)
