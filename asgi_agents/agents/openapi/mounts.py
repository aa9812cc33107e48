"""FastAPI apps, and what is mounted in them."""

from collections.abc import Iterator, Sequence
from typing import Any

from starlette.routing import Host, Mount

from ...routing.app_chain import app_chain, attribute
from ...routing.matching import is_included, router_of


def described_app(app: object) -> Any:
    """The FastAPI app that an app is or wraps, or None."""
    for wrapped in app_chain(app):
        if callable(attribute(wrapped, "openapi")) and attribute(wrapped, "router") is not None:
            return wrapped
    return None


def described_within(app: object) -> Iterator[Any]:
    """The FastAPI apps that an app is, or that are mounted in it, each once."""
    return (one for one in _apps_within(app) if described_app(one) is one)


def is_within(app: object, outer: object) -> bool:
    """Whether requests to ``outer`` can get to the router of ``app``, as far as that can be seen."""
    router = router_of(app)[0]
    return any(router_of(one)[0] is router for one in _apps_within(outer))


def is_mount(route: object) -> bool:
    """Whether a route hands requests to another app."""
    return isinstance(route, Mount | Host)


def _apps_within(app: object) -> Iterator[Any]:
    seen: list[object] = []
    todo = [app]
    while todo:
        outer = todo.pop()
        one = described_app(outer) or outer
        if any(one is other for other in seen):
            continue
        seen.append(one)
        yield one
        router = router_of(one)[0]
        todo += [route.app for route in _flat(router.routes if router is not None else ()) if is_mount(route)]


def _flat(routes: Sequence[Any]) -> Iterator[Any]:
    for route in routes:
        if is_included(route):
            yield from _flat(route.original_router.routes)
        else:
            yield route
