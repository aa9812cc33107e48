"""What keeps the policy of a router where others move things: its routes into another list, another router into an app.

A policy is for the routes of one router. But a route is an object that anybody may put into the list of another router,
and an app looks for its router only when it builds its middlewares. So each route of a guarded router keeps the policy
itself, and checks it, and a guarded app gives its policy to the router that it is built with.

FastAPI below 0.137 makes new routes of those of a router that it includes. These have nothing of the old ones but their
endpoints. There a function that checks is put in the place of each endpoint, as soon as its route is there.
"""

import functools
from collections.abc import Iterable
from inspect import isclass
from typing import Any, Final, SupportsIndex

from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.routing import Router as AppRouter

from ..errors import ConfigurationError
from ..evaluation.endpoint_policy import EndpointPolicy
from ..messages.naming import named
from .app_chain import attribute
from .endpoint_checks import checking
from .marks import PolicyMark, mark_of, own_mark, put_mark
from .router_checks import CheckingRoute, check_router

#: The first FastAPI that keeps a router that was included, rather than copies of its routes.
KEEPS_INCLUDED: Final = "0.137"


class _ListedMark(PolicyMark):
    """The mark of a route that is in the list of a guarded router."""

    __slots__ = ()


class GuardedRoutes(list[BaseRoute]):
    """The routes of a guarded router. All that are put into it keep its policy.

    Raises :class:`ConfigurationError` for a route that has the policy of another router.
    """

    def __init__(self, routes: Iterable[BaseRoute], policy: EndpointPolicy, *, copied: bool) -> None:
        super().__init__()
        self._policy = policy
        self._copied = copied
        self.extend(routes)

    def append(self, route: BaseRoute) -> None:
        """As in a list."""
        super().append(self._kept(route))

    def insert(self, index: SupportsIndex, route: BaseRoute) -> None:
        """As in a list."""
        super().insert(index, self._kept(route))

    def extend(self, routes: Iterable[BaseRoute]) -> None:
        """As in a list."""
        super().extend([self._kept(route) for route in routes])

    def __iadd__(self, routes: Iterable[BaseRoute]) -> "GuardedRoutes":  # type: ignore[override, misc]
        self.extend(routes)
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        kept = [self._kept(route) for route in value] if isinstance(index, slice) else self._kept(value)
        super().__setitem__(index, kept)

    def _kept(self, route: BaseRoute) -> BaseRoute:
        there = own_mark(route)
        if there is None:
            keep_policy(route, _ListedMark(self._policy, route, checked=True, of_router=True))
        elif isinstance(there, _ListedMark) and there.policy != self._policy:
            where = getattr(route, "path", None)
            raise ConfigurationError(
                f"guard_router: the route {where!r:.200} is in two routers with different policies: {there} and"
                f" {self._policy.written('guard_router')}; expected a route of its own in each"
            )
        if self._copied:
            self._check_in_endpoint(route)
        return route

    def _check_in_endpoint(self, route: BaseRoute) -> None:
        """Have the endpoint check the policy, unless it has one of its own."""
        endpoint = attribute(route, "endpoint")
        if endpoint is None or mark_of(endpoint) is not None:
            return
        if isclass(endpoint) or not hasattr(endpoint, "__name__"):
            raise ConfigurationError(
                f"guard_router: {named(endpoint)} is an endpoint of an APIRouter, whose routes this version of FastAPI"
                f" copies when it includes them; write @guarded_by{self._policy.written('')} on it, or install"
                f" fastapi>={KEEPS_INCLUDED}"
            )
        route.endpoint = checking(endpoint, self._policy, of_router=True)  # type: ignore[attr-defined]


def keep_policy(route: BaseRoute, mark: PolicyMark) -> None:
    """Have a route keep a policy for all that it leads to, and check it, whatever list it is in."""
    own = vars(route)
    if not isinstance(own.get("handle"), CheckingRoute):
        own["handle"] = CheckingRoute(route.handle, route)
    put_mark(route, mark)


def own_policy_mark(route: BaseRoute) -> PolicyMark | None:
    """The mark that a Mount or a Host was given itself."""
    mark = own_mark(route)
    return None if isinstance(mark, _ListedMark) else mark


def guard_routes(router: AppRouter, policy: EndpointPolicy, *, copied: bool) -> None:
    """Have a router, and all of its routes, keep a policy.

    :param copied: whether it may be included, by a FastAPI that copies routes.
    """
    if copied and router.routes:
        # They may have been copied already, and nobody can tell into which router.
        written = policy.written("")[1:]
        raise ConfigurationError(
            f"guard_router: {named(router)} has routes already, which this version of FastAPI copies when it includes"
            f" them; write router = guard_router(APIRouter(...), {written} above them, or install"
            f" fastapi>={KEEPS_INCLUDED}"
        )
    # First: it may be refused.
    router.routes = GuardedRoutes(router.routes, policy, copied=copied)
    mark = PolicyMark(policy, router, checked=True, of_router=True)
    check_router(router, mark)
    put_mark(router, mark)


def guard_app(app: Starlette, policy: EndpointPolicy) -> None:
    """Have an app keep a policy for its router, and for any that it is built with later."""
    guard_routes(app.router, policy, copied=False)
    put_mark(app, PolicyMark(policy, app, checked=True, of_router=True))
    build = app.build_middleware_stack

    @functools.wraps(build)
    def build_guarded() -> Any:
        if own_mark(app.router) is None:
            guard_routes(app.router, policy, copied=False)
        return build()

    app.build_middleware_stack = build_guarded  # type: ignore[method-assign]


def copies_routes(router: AppRouter) -> bool:
    """Whether it is an APIRouter of a FastAPI that copies its routes where it is included."""
    if not hasattr(router, "include_router"):
        return False
    from fastapi import routing

    return not hasattr(routing, "_IncludedRouter")
