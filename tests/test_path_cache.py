"""What is remembered of paths: bounded, whoever asks for how many."""

import pytest

from asgi_agents.evaluation.resolved_route import ResolvedRoute
from asgi_agents.routing.cache import MAX_KNOWN, MAX_KNOWN_LENGTH, PathCache, PathKey

ROUTE = ResolvedRoute([])


def test_a_path_that_was_never_asked_for_is_unknown() -> None:
    assert PathCache().get("/") is None


@pytest.mark.parametrize("key", ["/items", ("/items", "", "GET"), ("http", "GET", "", "/items")])
def test_a_path_is_known_once_it_is_remembered(key: PathKey) -> None:
    cache = PathCache()
    cache.remember(key, ROUTE)
    assert cache.get(key) is ROUTE


def test_what_is_remembered_last_counts() -> None:
    cache, later = PathCache(), ResolvedRoute([])
    cache.remember("/", ROUTE)
    cache.remember("/", later)
    assert cache == {"/": later}


@pytest.mark.parametrize(
    ("fits", "too_long"),
    [
        ("/" * MAX_KNOWN_LENGTH, "/" * (MAX_KNOWN_LENGTH + 1)),
        (("/" * (MAX_KNOWN_LENGTH - 3), "", "GET"), ("/" * (MAX_KNOWN_LENGTH - 3), "", "POST")),
    ],
)
def test_a_key_that_is_too_long_is_not_kept(fits: PathKey, too_long: PathKey) -> None:
    cache = PathCache()
    cache.remember(too_long, ROUTE)
    assert not cache
    cache.remember(fits, ROUTE)
    assert list(cache) == [fits]


def test_when_there_are_too_many_all_are_forgotten() -> None:
    cache = PathCache()
    for number in range(MAX_KNOWN):
        cache.remember(f"/{number}", ROUTE)
    assert len(cache) == MAX_KNOWN
    cache.remember("/one/more", ROUTE)
    assert list(cache) == ["/one/more"]
