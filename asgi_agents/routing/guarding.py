"""Which agents an endpoint has, said where the endpoint is: ``@guarded_by``, ``@unguarded``, ``guard_router``.

An endpoint's own policy is all that holds for it, else the routes decide.

The middleware finds the policy before the app runs: it asks the app's router which endpoint that will run
(:mod:`asgi_agents.routing.resolver`). But the router may not be found, or a middleware in between may rewrite the path.
So the endpoint checks again when it runs: without the agents of its policy it answers 503, and the log says why.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from starlette.applications import Starlette
from starlette.routing import Host, Mount
from starlette.routing import Router as AppRouter
from starlette.types import Scope

from ..errors import ConfigurationError
from ..evaluation.endpoint_policy import EndpointPolicy
from ..evaluation.route_agent import AgentReference
from ..guardrails import Guardrail, ToolPolicy
from ..guardrails.guardrail import checked_guardrails
from ..messages.naming import named
from ..messages.throttle import Throttle
from .endpoint_checks import checking, refused
from .guarded_routes import copies_routes, guard_app, guard_routes, keep_policy, own_policy_mark
from .marks import PolicyMark, is_endpoint_class, layers, mark_of, own_mark, put_mark
from .refusal import log_refusal
from .router_checks import CheckingApp, is_done, unasked
from .routes import checked_references

_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Any])
_Routes = TypeVar("_Routes", bound=AppRouter | Starlette | Mount | Host)

_NOBODY: Final = EndpointPolicy((), ())


def guarded_by(
    *agents: AgentReference, guardrails: Iterable[Guardrail | ToolPolicy] | None = None
) -> Callable[[_Endpoint], _Endpoint]:
    """Give an endpoint its agents.

    ::

        @app.get("/admin")
        @guarded_by("admin-auth", ("waf", FailureMode.OPEN))
        async def admin() -> str: ...

    An endpoint's own policy is all that holds for it, else the routes decide. Write it below ``@app.get(...)`` and all
    other decorators that register the endpoint. It is for functions and methods, for HTTPEndpoint and WebSocketEndpoint
    classes, and for the methods of an HTTPEndpoint, whose policies go before that of the class. Subclasses inherit it.

    The endpoint runs only on a connection whose agents were asked as the policy says. Else it answers 503, or closes
    the websocket with 1011, and the log says why. In a test of the function alone, call its ``__wrapped__``.

    :param agents: ids, or pairs of id and the failure mode that holds here, in the order of the chain.
    :param guardrails: those that judge the text of its requests and answers, in place of those of the middleware. None:
        those of the middleware.

    Raises :class:`ConfigurationError` for what can't work. An id that no agent has is one when the app starts; where it
    becomes known only later, the endpoint answers 503.
    """
    policy = _checked_policy("guarded_by", agents, guardrails)

    def decorate(endpoint: _Endpoint) -> _Endpoint:
        _check_unmarked(policy, endpoint)
        guarded: Any = _guarded_class(endpoint, policy) if inspect.isclass(endpoint) else _guarded(endpoint, policy)
        return guarded  # type: ignore[no-any-return]

    return decorate


def unguarded(endpoint: _Endpoint) -> _Endpoint:
    """Give an endpoint no agents, and no guardrails, whatever the routes and the routers around it say.

    ::

        @router.get("/healthz")
        @unguarded
        async def healthz() -> str: ...

    Raises :class:`ConfigurationError` for an endpoint that has a policy already.
    """
    if not callable(endpoint):
        raise ConfigurationError(f"unguarded: {named(endpoint)}, expected an endpoint: a function or a class")
    _check_unmarked(_NOBODY, endpoint)
    _put(endpoint, PolicyMark(_NOBODY, endpoint, checked=True))
    return endpoint


def guard_router(
    router: _Routes, *agents: AgentReference, guardrails: Iterable[Guardrail | ToolPolicy] | None = None
) -> _Routes:
    """Give all endpoints of a router their agents, but for those that have a policy of their own.

    ::

        admin = guard_router(APIRouter(prefix="/admin"), "admin-auth")

    Where routers are nested, the policy of the nearest one holds. What answers no endpoint, such as 404, 405 and
    redirects, is left to the routes, except in a Mount of an app without routes, where all is the policy's.

    :param router: a router, an APIRouter, a Mount, a Host, or a whole app, mounted or not.
    :param agents: as in :func:`guarded_by`; ``guardrails`` likewise.
    :returns: the router.

    Its routes keep the policy where they are put into the list of another router, and so does an app whose router is
    replaced before it starts.

    Raises :class:`ConfigurationError` for what can't work: for one that has a policy already, for a route that has that
    of another router, and for an APIRouter that has routes already where FastAPI copies these as it includes them, as
    it does below 0.137.
    """
    policy = _checked_policy("guard_router", agents, guardrails)
    there = _policy_on(router)
    if there is not None:
        if there.policy != policy:
            raise ConfigurationError(f"guard_router: {named(router)} has a policy already: {there}; expected one")
    elif isinstance(router, Mount | Host):
        router.app = CheckingApp(router.app, policy)
        # The app may be replaced.
        keep_policy(router, PolicyMark(policy, router, checked=True, of_router=True))
    elif isinstance(router, Starlette):
        guard_app(router, policy)
    elif not isinstance(router, AppRouter):
        raise ConfigurationError(
            f"guard_router: {named(router)}, expected a router, a Mount, a Host or an app; for a handler write"
            " @guarded_by(...)"
        )
    else:
        guard_routes(router, policy, copied=copies_routes(router))
    return router


def _policy_on(router: object) -> PolicyMark | None:
    """The policy that a router, a Mount, a Host or an app was given before."""
    if isinstance(router, Mount | Host):
        return own_policy_mark(router)
    if isinstance(router, Starlette):
        return own_mark(router) or own_mark(router.router)
    return own_mark(router)


def _guarded(endpoint: Any, policy: EndpointPolicy) -> Any:
    """A function that checks before it calls ``endpoint``, and is of the same kind."""
    if not callable(endpoint):
        raise ConfigurationError(f"{policy}: {named(endpoint)}, expected an endpoint: a function or a class")
    if not hasattr(endpoint, "__name__"):
        raise ConfigurationError(
            f"{policy}: {named(endpoint)}, expected a function, a method or an endpoint class; decorate its __call__"
        )
    guarded = checking(endpoint, policy)
    # On the function within as well: a decorator that registers it may stand below this one.
    _put(endpoint, PolicyMark(policy, endpoint, checked=False))
    return guarded


def _guarded_class(endpoint: Any, policy: EndpointPolicy) -> Any:
    """The class itself: each of its objects checks when it is made, which Starlette does for each connection."""
    if not is_endpoint_class(endpoint, "HTTPEndpoint", "WebSocketEndpoint"):
        raise ConfigurationError(
            f"{policy}: {named(endpoint)}, expected a function, an HTTPEndpoint or a WebSocketEndpoint; for an app"
            " write guard_router(Mount(path, app), ...)"
        )
    make = endpoint.__new__
    throttle = Throttle()

    # Not in __init__ or __await__, which subclasses may have of their own.
    @functools.wraps(make)
    def checked(cls: Any, scope: Scope, *others: Any, **more: Any) -> Any:
        method = scope.get("method") if scope["type"] == "http" else None
        mark = mark_of(cls, method)
        if mark is not None and not is_done(mark.policy, scope):
            log_refusal(throttle, unasked(mark.policy, cls.__qualname__, scope["type"]))
            raise refused(scope["type"])
        return make(cls) if make is object.__new__ else make(cls, scope, *others, **more)

    endpoint.__new__ = staticmethod(checked)
    put_mark(endpoint, PolicyMark(policy, endpoint, checked=True))
    return endpoint


def _put(endpoint: Any, mark: PolicyMark) -> None:
    target = endpoint.__func__ if inspect.ismethod(endpoint) else endpoint
    mark.owner = target
    try:
        put_mark(target, mark)
    except (AttributeError, TypeError):
        raise ConfigurationError(
            f"{mark.policy}: {named(endpoint)} can't keep a policy, expected a function or a class"
        ) from None


def _check_unmarked(policy: EndpointPolicy, endpoint: object) -> None:
    if inspect.isclass(endpoint):
        # That of a base class may be replaced.
        there = own_mark(endpoint)
    else:
        there = next((mark for mark in map(own_mark, layers(endpoint)) if mark is not None), None)
    # A function that makes apps may give a handler of its module the same policy each time.
    if there is not None and there.policy != policy:
        raise ConfigurationError(f"{policy}: {named(endpoint)} has a policy already: {there.policy}; expected one")


def _checked_policy(
    where: str, agents: tuple[object, ...], guardrails: Iterable[Guardrail | ToolPolicy] | None
) -> EndpointPolicy:
    if len(agents) == 1 and callable(agents[0]):
        raise ConfigurationError(f"{where}: {named(agents[0])}, expected ids of agents: {where}('waf')")
    if len(agents) == 1 and isinstance(agents[0], list):
        raise ConfigurationError(
            f"{where}: {named(agents[0])}, expected ids of agents, without a list: @{where}('waf')"
        )
    references = checked_references(where, agents)
    own = None if guardrails is None else checked_guardrails(f"{where}: guardrails", guardrails)
    if not references and not own:
        raise ConfigurationError(f"{where}: no agents, expected ids of agents; no agents at all is @unguarded")
    return EndpointPolicy(references, own)
