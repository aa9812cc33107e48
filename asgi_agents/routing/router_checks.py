"""The check of :func:`guard_router`: no endpoint runs without the agents of the policy around it.

It stands right before a router looks for its route, within all middlewares, since these may rewrite the path. Where the
router sends a connection on into an app within that has a router as well, that one checks again: it knows from the
scope what holds for its routes. Connections whose agents were asked cost nothing of this.
"""

from collections.abc import Callable
from inspect import ismethod
from typing import Any, Final

from starlette.routing import BaseRoute, Host, Mount
from starlette.routing import Router as AppRouter
from starlette.types import ASGIApp, Receive, Scope, Send

from ..evaluation.endpoint_policy import EndpointPolicy
from ..evaluation.resolved_route import ResolvedRoute
from ..messages.throttle import Throttle
from ..observability.correlation import STATE_KEY, current
from .app_chain import app_chain, attribute
from .marks import ChecksPolicy, PolicyMark, own_mark, put_mark
from .matching import Around, Enter, Leaf, copy_of, is_foreign, is_included, match, match_within, router_of
from .refusal import Refusing, consequence

#: In the scope: the router that has to check, and what holds for its routes.
_HANDED: Final = "asgi_agents.around"


def is_asked(policy: EndpointPolicy, scope: Scope | None = None) -> bool:
    """Whether the running code serves a connection whose agents are asked as ``policy`` says.

    What a handler calls in this process, or leaves running, inherits its connection, but serves another one.

    :param scope: the one of the connection, where that is known.
    """
    exchange = current()
    resolved_route = getattr(exchange, "resolved_route", None)
    if not isinstance(resolved_route, ResolvedRoute) or getattr(exchange, "closed", False):
        return False
    # Not compared with the exchange, for some servers give one state to several connections.
    if scope is not None and STATE_KEY not in (scope.get("state") or ()):
        return False
    return policy.holds_on(resolved_route)


def is_done(policy: EndpointPolicy, scope: Scope) -> bool:
    """Whether a policy asks for nothing, or all of it is done."""
    return not (policy.agents or policy.guardrails) or is_asked(policy, scope)


def unasked(policy: EndpointPolicy | PolicyMark, where: str, kind: str) -> str:
    """Why an endpoint may not run, for the log. ``kind`` is the type of the scope; empty: nobody knows."""
    what = "no agents were asked about the connection"
    if isinstance(getattr(current(), "resolved_route", None), ResolvedRoute):
        what = "other agents were asked about the connection"
    return (
        f"{policy} on {where}: {what}, so {consequence(kind)}; the policy was not found before the app ran: no"
        " AgentMiddleware is around the app, or a middleware within rewrites the path or hides the router, or a"
        " decorator above hides the function that it wraps"
    )


def check_router(router: AppRouter, mark: PolicyMark) -> None:
    """Have a router check the policy that is put on it."""
    if not _put_innermost(router, lambda app: _CheckingRouter(app, router, mark)):
        # Nobody knows what the middlewares in between make of a connection.
        router.middleware_stack = _CheckingRouter(router.middleware_stack, router, mark, blind=True)
    handle = attribute(router, "handle")
    if handle is not None:
        # FastAPI calls this one where the router is included.
        vars(router)["handle"] = _CheckingRouter(handle, router, mark)


def check_endpoints(router: AppRouter) -> None:
    """Have a router check the policies of endpoints that don't do it by themselves."""
    if any(isinstance(app, _CheckingEndpoints) for app in _stack_of(router)):
        return
    if not _put_innermost(router, lambda app: _CheckingEndpoints(app, router)):
        # Around its own middlewares, which can't be looked through.
        router.middleware_stack = _CheckingEndpoints(router.middleware_stack, router)


class _Checking(ChecksPolicy):
    """Stands before an app, and answers in its place where :meth:`unasked` finds a policy that is not carried out."""

    #: What has the policy, for the log.
    where = "its router"

    def __init__(self, app: ASGIApp) -> None:
        #: Under the name that it has in every middleware.
        self.app: ASGIApp = app
        self._throttle = Throttle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] in ("http", "websocket") and (mark := self.unasked(scope)) is not None:
            app = Refusing(self._throttle, unasked(mark, self.where, scope["type"]))
        await app(scope, receive, send)

    def unasked(self, scope: Scope) -> PolicyMark | None:
        """The policy of what is about to run, if it is not carried out. None: go on."""
        raise NotImplementedError


class CheckingApp(_Checking):
    """Stands in a mount, with a policy for all that is mounted there."""

    def __init__(self, app: ASGIApp, policy: EndpointPolicy) -> None:
        super().__init__(app)
        self._mark = PolicyMark(policy, self, checked=True, of_router=True)
        put_mark(self, self._mark)

    def unasked(self, scope: Scope) -> PolicyMark | None:
        """As in the base."""
        if is_done(self._mark.policy, scope):
            return None
        router, root_path = router_of(self.app)
        if router is None:
            return self._mark
        around = Around(self._mark).into(self.app)
        if around.ours:
            return None if _hand_on(scope, router, around) else self._mark
        # The app has agents of its own, within which nobody knows of ours.
        asked = copy_of(scope)
        if root_path:
            asked["root_path"] = root_path
        return _unasked_in(router, asked, around, scope)


class _CheckingRouter(_Checking):
    """Stands before the routes of a router that has a policy.

    :param blind: whether the path may be rewritten within.
    """

    def __init__(self, app: ASGIApp, router: AppRouter, mark: PolicyMark, *, blind: bool = False) -> None:
        super().__init__(app)
        self.router = router
        self._mark = mark
        self._blind = blind

    def unasked(self, scope: Scope) -> PolicyMark | None:
        """As in the base."""
        if is_done(self._mark.policy, scope):
            return None
        return self._mark if self._blind else _unasked_in(self.router, copy_of(scope), Around(self._mark), scope)


class _CheckingWithin(_Checking):
    """Stands before the routes of a router that is within a guarded one, and checks what was handed on to it."""

    def __init__(self, app: ASGIApp, router: AppRouter) -> None:
        super().__init__(app)
        self.router = router

    def unasked(self, scope: Scope) -> PolicyMark | None:
        """As in the base."""
        handed = scope.get(_HANDED)
        if handed is None or handed[0] is not self.router:
            return None
        return _unasked_in(self.router, copy_of(scope), handed[1], scope)


class _CheckingEndpoints(_Checking):
    """Stands before the routes of a router with endpoints that have a policy and don't check it."""

    where = "an endpoint"

    def __init__(self, app: ASGIApp, router: AppRouter) -> None:
        super().__init__(app)
        self.router = router

    def unasked(self, scope: Scope) -> PolicyMark | None:
        """As in the base."""
        try:
            leaf = match(self.router, copy_of(scope), "", Around(), lambda inner, holds: None)
        except Exception:
            return None
        return None if leaf is None or leaf.mark is None or leaf.mark.checked else _if_not_done(leaf.mark, scope)


class CheckingRoute(_Checking):
    """Stands in the place of a route's ``handle``, and checks the policy that is kept on the route."""

    def __init__(self, handle: ASGIApp, route: BaseRoute) -> None:
        super().__init__(handle)
        self._route = route

    def unasked(self, scope: Scope) -> PolicyMark | None:
        """As in the base."""
        mark = own_mark(self._route)
        if mark is None or is_done(mark.policy, scope):
            return None
        methods = None if isinstance(self._route, Mount | Host) else attribute(self._route, "methods")
        if methods and scope["type"] == "http" and scope["method"] not in methods:
            return None  # 405
        around = Around(mark)
        return _unasked_by(
            lambda enter: match_within(self._route, {}, copy_of(scope), "", around, enter), around, scope
        )


def _unasked_in(router: AppRouter, asked: Scope, around: Around, scope: Scope) -> PolicyMark | None:
    """The policy of what a router runs, if it is not carried out.

    :param asked: a copy of ``scope``, to match routes with.
    """

    def find(enter: Enter) -> Leaf | None:
        included: Any = (asked.get("fastapi") or {}).get("included_router")
        if is_included(included) and included.original_router is router:
            # It has matched already, and its own mark is in ``around``.
            return match_within(included, {}, asked, "", around, enter)
        # Nobody knows what another router would run.
        return Leaf(None, around.mark) if is_foreign(router, "app") else match(router, asked, "", around, enter)

    return _unasked_by(find, around, scope)


def _unasked_by(find: Callable[[Enter], Leaf | None], around: Around, scope: Scope) -> PolicyMark | None:
    """The policy of what ``find`` finds, if it is not carried out. Routers within that it enters check again."""
    stuck: list[PolicyMark | None] = []

    def enter(inner: AppRouter, holds: Around) -> None:
        if not _hand_on(scope, inner, holds):
            stuck.append(holds.mark)

    try:
        leaf = find(enter)
    except Exception:
        return _if_not_done(around.mark, scope)
    return _if_not_done(stuck[0] if stuck else None if leaf is None else leaf.mark, scope)


def _if_not_done(mark: PolicyMark | None, scope: Scope) -> PolicyMark | None:
    return None if mark is None or is_done(mark.policy, scope) else mark


def _hand_on(scope: Scope, router: AppRouter, around: Around) -> bool:
    """Have a router within check again, by what holds there. False: it can't."""
    if not any(isinstance(app, _CheckingWithin) for app in _stack_of(router)) and not _put_innermost(
        router, lambda app: _CheckingWithin(app, router)
    ):
        return False
    # In place: middlewares further out read what the router writes there.
    scope[_HANDED] = (router, around)
    return True


def _stack_of(router: AppRouter) -> list[Any]:
    """The middlewares of a router, outermost first, and what stands before its routes."""
    stack = []
    for app in app_chain(router.middleware_stack):
        if app is router:
            break
        stack.append(app)
    return stack


def _put_innermost(router: AppRouter, wrap: Any) -> bool:
    """Put something right before the routes of a router. False where its middlewares can't be looked through."""

    def is_own(app: object) -> bool:
        return ismethod(app) and app.__self__ is router

    if is_own(router.middleware_stack):
        router.middleware_stack = wrap(router.middleware_stack)
        return True
    for middleware in _stack_of(router):
        inner = attribute(middleware, "app")
        if is_own(inner):
            try:
                middleware.app = wrap(inner)
            except AttributeError:
                return False
            return True
    return False
