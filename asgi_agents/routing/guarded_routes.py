"""What keeps the policy of a router where others move things: its routes into another list, another router into an app.

A policy is for the routes of one router. But a route is an object that anybody may put into the list of another router,
and an app looks for its router only when it builds its middlewares. So each route of a guarded router keeps the policy
itself, and checks it, and a guarded app gives its policy to the router that it is built with.
"""

import functools
from collections.abc import Iterable
from typing import Any, SupportsIndex

from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.routing import Router as AppRouter

from ..errors import ConfigurationError
from ..evaluation.endpoint_policy import EndpointPolicy
from .marks import PolicyMark, own_mark, put_mark
from .router_checks import CheckingRoute, check_router


class _ListedMark(PolicyMark):
    """The mark of a route that is in the list of a guarded router."""

    __slots__ = ()


class GuardedRoutes(list[BaseRoute]):
    """The routes of a guarded router. All that are put into it keep its policy.

    Raises :class:`ConfigurationError` for a route that has the policy of another router.
    """

    def __init__(self, routes: Iterable[BaseRoute], policy: EndpointPolicy) -> None:
        super().__init__()
        self._policy = policy
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
        return route


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


def guard_routes(router: AppRouter, policy: EndpointPolicy) -> None:
    """Have a router, and all of its routes, keep a policy."""
    # First: it may be refused.
    router.routes = GuardedRoutes(router.routes, policy)
    mark = PolicyMark(policy, router, checked=True, of_router=True)
    check_router(router, mark)
    put_mark(router, mark)


def guard_app(app: Starlette, policy: EndpointPolicy) -> None:
    """Have an app keep a policy for its router, and for any that it is built with later."""
    guard_routes(app.router, policy)
    put_mark(app, PolicyMark(policy, app, checked=True, of_router=True))
    build = app.build_middleware_stack

    @functools.wraps(build)
    def build_guarded() -> Any:
        if own_mark(app.router) is None:
            guard_routes(app.router, policy)
        return build()

    app.build_middleware_stack = build_guarded  # type: ignore[method-assign]
