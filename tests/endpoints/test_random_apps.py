"""Whatever an app is made of: before an endpoint runs, those are asked whom its nearest policy names."""

from collections.abc import Iterable
from random import Random

import pytest
from starlette.exceptions import HTTPException, WebSocketException
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.examples import some_are_short

from .asking import World
from .random_apps import METHODS, RandomApp


def made(chance: Random, world: World) -> RandomApp:
    app = RandomApp(chance, world)
    app.settle()
    return app


def lines(chance: Random, app: RandomApp) -> Iterable[tuple[str, str]]:
    """Calls of each handler, of other methods at its path, and of paths near it, in any order."""
    found = []
    for line, host in app.calls:
        method, path = line.split(" ")
        found += [(line, host), (line, "a.example"), (f"{chance.choice(METHODS)} {path}", host)]
        found.append((f"{method} {path}{chance.choice(('/', '/x', chr(10)))}", host))
    chance.shuffle(found)
    return found


SEEDS = some_are_short(range(200), one_in=16)


@pytest.mark.parametrize("seed", SEEDS)
async def test_those_are_asked_whom_the_nearest_policy_names(seed: int) -> None:
    chance = Random(seed)  # noqa: S311 - nobody is to be kept from guessing it
    world = World()
    app = made(chance, world)
    guarded = world.guard(app.app, routes=app.routes)
    ran_at_all: set[str] = set()
    for line, host in lines(chance, app):
        _, ran, asked = await world.call(guarded, line, host=host)
        for name in ran:
            ran_at_all.add(name)
            assert asked == app.expected(name), (line, host, name)
        path = line.split(" ")[1]
        if not ran and not any(path.startswith(taken) for taken in app.all_methods):
            # 404, 405 or a redirect: the routes decide, whatever is around.
            assert asked in (["rest"], ["route"]), (line, host)
    # Handlers of one path and method are in one another's way; most are not.
    assert len(ran_at_all) * 2 > len(app.policies)


class Rewriting:
    """Sends connections elsewhere than the agents have seen."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app({**scope, "path": scope["path"].removeprefix("/to")}, receive, send)


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(n, marks=pytest.mark.slow) for n in range(12, 60))])
async def test_no_endpoint_runs_without_its_agents_wherever_its_path_was_written(seed: int) -> None:
    chance = Random(1000 + seed)  # noqa: S311 - nobody is to be kept from guessing it
    world = World()
    app = made(chance, world)
    straight = world.guard(app.app, routes=app.routes)
    detour = world.guard(Rewriting(app.app), routes=app.routes)
    for line, host in app.calls:
        _, ran, _ = await world.call(straight, line, host=host)
        try:
            await world.call(detour, line.replace(" ", " /to"), host=host)
        except (HTTPException, WebSocketException):
            # Of a router alone, without an app that makes answers of exceptions.
            assert not world.ran
        # Those with agents don't run, and those without do.
        assert world.ran == [name for name in ran if not app.policies[name]], (line, host)
