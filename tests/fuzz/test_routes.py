"""That the target for routes finds what it is for: each of these was a fault, or would be one."""

import logging
import re
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from asgi_agents import Route
from asgi_agents.routing import finder, matching, resolver
from asgi_agents.routing.cache import PathCache
from asgi_agents.routing.matching import Leaf
from asgi_agents.routing.resolver import Resolver

from .routes import routes


def first_match(patch: pytest.MonkeyPatch) -> None:
    """The app's router is never asked."""

    def settle(self: Resolver, candidates: list[Route], *others: Any) -> Route | None:
        return candidates[0] if candidates else None

    patch.setattr(Resolver, "_settle", settle)


def more_than_starlette(patch: pytest.MonkeyPatch) -> None:
    """A pattern goes on after a line break, and takes one more at its end."""

    def matches(self: Route, path: str, method: str) -> bool:
        wide = re.compile(self.regex.pattern.removesuffix("$") + r"\n?\Z", re.DOTALL)
        return self.takes(method) and wide.match(path) is not None

    patch.setattr(Route, "matches", matches)


def prefixes_forgotten(patch: pytest.MonkeyPatch) -> None:
    """What is in a mount is taken for what it is spelt like inside."""
    original = matching.match
    for module in (matching, resolver):
        patch.setattr(module, "match", lambda router, scope, prefix, around: original(router, scope, "", around))


def root_paths_forgotten(patch: pytest.MonkeyPatch) -> None:
    """The app's router is asked for the path as a mount has it, not as the router in it sees it."""
    original = matching.match_within

    def within(route: Any, child_scope: Any, *others: Any) -> Leaf | None:
        return original(route, {key: child_scope[key] for key in child_scope if key != "root_path"}, *others)

    patch.setattr(matching, "match_within", within)


def methods_forgotten(patch: pytest.MonkeyPatch) -> None:
    """What is remembered for one method, type or host is given to another."""

    class Careless(PathCache):
        def get(self, key: Any, default: Any = None) -> Any:
            return super().get(self.cut(key), default)

        def __setitem__(self, key: Any, resolved_route: Any) -> None:
            super().__setitem__(self.cut(key), resolved_route)

        def cut(self, key: Any) -> Any:
            return key[2:] if isinstance(key, tuple) and len(key) == 4 else key

    patch.setattr(finder, "PathCache", Careless)


def shifts_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A handler is only ever run for a path that matches its spelling."""
    original = Resolver._settle

    def settle(self: Resolver, candidates: list[Route], match: str | None, *others: Any) -> Route | None:
        if match not in {route.path for route in candidates}:
            return candidates[0] if candidates else None
        return original(self, candidates, match, *others)

    patch.setattr(Resolver, "_settle", settle)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


DEFECTS = (
    first_match,
    more_than_starlette,
    prefixes_forgotten,
    root_paths_forgotten,
    methods_forgotten,
    shifts_forgotten,
)
# Any would do: of the 4,000 inputs of each seed about one in a few hundred finds a defect.
SEEDS = (1, pytest.param(2, marks=pytest.mark.slow))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_a_planted_defect_is_found(defect: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    defect(monkeypatch)
    chance = Random(seed)  # noqa: S311 - nobody is to be kept from guessing it
    with pytest.raises(AssertionError):
        _many(chance)


def _many(chance: Random) -> None:
    for _ in range(4000):
        routes(chance.randbytes(300))
