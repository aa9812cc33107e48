"""Puts the agents around a FastAPI or Starlette app: outside of everything in the app that answers."""

import functools
import os
import types
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from .audit import AuditHook, Redact
from .config import AgentConfig
from .errors import ConfigurationError
from .evaluation.route_agent import AgentReference
from .exchange import ChallengeRenderer, ErrorRenderer
from .guardrails import Guardrail, ToolPolicy
from .manager import AgentManager
from .messages.naming import kind_of
from .middleware import AgentMiddleware
from .observability.redaction import redact_secrets
from .routing.app_chain import GUARD, app_chain, attribute
from .routing.routes import AgentRoute

if TYPE_CHECKING:
    from .guardrails import Dialect

# Where every app keeps its middleware stack.
_STACK: Final = "middleware_stack"
# Where apps, routers and routes keep what they wrap, and FastAPI what it has included.
_WITHIN: Final = ("app", "middleware_stack", "router", "original_router")
# No app has so many parts. A mock object has any number.
_MOST: Final = 100_000


def protect(
    app: Starlette,
    *,
    agents: Iterable[AgentConfig] | None = None,
    manager: AgentManager | None = None,
    routes: Sequence[AgentRoute] | None = None,
    default_agents: Iterable[AgentReference] | None = None,
    guardrails: Iterable[Guardrail | ToolPolicy] = (),
    dialects: "Sequence[Dialect] | None" = None,
    challenge_renderer: ChallengeRenderer | None = None,
    render_error: ErrorRenderer | None = None,
    state_key: str | None = "agents",
    stop_grace: float = 1.0,
    correlation_header: str | None = "x-request-id",
    expose_correlation_id: bool = False,
    audit_headers: Iterable[str] = (),
    on_audit: AuditHook | None = None,
    audit_redact: Redact | None = redact_secrets,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    debug: bool = False,
    outside: Iterable[Middleware] = (),
    config: str | os.PathLike[str] | None = None,
    imports: Iterable[str] = (),
    reload: Literal["on-change", "on-sighup"] | None = None,
) -> AgentMiddleware:
    """Guard a FastAPI or Starlette app in place, and return the :class:`AgentMiddleware` that does it.

    ::

        app = FastAPI()
        protect(app, agents=[AgentConfig("waf", Waf())], outside=[Middleware(CORSMiddleware, allow_origins=["*"])])

    The agents stand outside of all middlewares of the app, whether they are added before or after this call, and
    outside of its error handlers. They judge every answer of the app: those of its handlers, middlewares, mounted apps
    and documentation pages, those of ``@app.exception_handler(Exception)``, and the traceback page of ``debug=True``.
    An :class:`AgentMiddleware` that is added with ``add_middleware`` stands inside of the error handlers.

    Call it once, before the app starts. Two things stay unjudged: what ``outside`` answers, and what a class of your
    own answers in its ``__call__`` before it calls that of FastAPI or Starlette.

    :param app: the app. It stays the object that is served, tested and imported. Its class becomes a subclass of the
        one that it had, with the same name.
    :param outside: ``Middleware(...)`` objects that stand around the agents, outermost first. CORSMiddleware belongs
        here: it answers preflights, which carry no credentials, before an agent refuses them, and gives the agents'
        denials the headers without which a browser doesn't show them. No agent is asked about what these middlewares
        answer themselves. They are made at once, not when the app starts.
    :param config: a TOML, YAML or JSON file with agents, routes, guardrails and other parameters, as :func:`load` reads
        it. A relative path begins at the working directory of the process, as it is when this is called. Agents and
        guardrails that are given here stand before those of the file. All else may be in one of both places only.
    :param imports: the modules of which the file may name agents: ``transport = "my_app.agents:Waf"``. They are
        imported then.
    :param reload: when the file is taken anew while the app runs: ``"on-change"``, for which it is looked at once a
        second, or ``"on-sighup"``, where the app runs in the main thread. Both need the app's lifespan. A file that is
        refused changes nothing, and the log says why. None: when :meth:`AgentMiddleware.reload` is called.

    All other parameters are those of :class:`AgentMiddleware`.

    Raises :class:`ConfigurationError` for what can't work: for what :class:`AgentMiddleware` refuses, for an app that
    has started, is protected or has an :class:`AgentMiddleware` already, and for a wrong entry of ``outside``. Raises
    TypeError for any other kind of ASGI app: wrap that in an :class:`AgentMiddleware`. The app is then as it was.
    """
    if not isinstance(app, Starlette):
        raise TypeError(
            f"protect: app is of type {type(app).__qualname__}, expected a FastAPI or Starlette app;"
            " any other ASGI app is guarded by wrapping it: app = AgentMiddleware(app, agents=[...])"
        )
    _check_unguarded(app)
    around = _checked_outside(outside)
    inside = _Inside(app)
    arguments: Mapping[str, Any] = {
        "agents": agents,
        "manager": manager,
        "routes": routes,
        "default_agents": default_agents,
        "guardrails": guardrails,
        "dialects": dialects,
        "challenge_renderer": challenge_renderer,
        "render_error": render_error,
        "state_key": state_key,
        "stop_grace": stop_grace,
        "correlation_header": correlation_header,
        "expose_correlation_id": expose_correlation_id,
        "audit_headers": audit_headers,
        "on_audit": on_audit,
        "audit_redact": audit_redact,
        "tracer_provider": tracer_provider,
        "meter_provider": meter_provider,
        "debug": debug,
    }
    attach: Callable[[AgentMiddleware], None] | None = None
    if config is not None:
        # It takes long to import, and only who has a file needs it.
        from .files import protecting

        file = protecting.FileProtection(config, imports, reload, arguments)
        arguments, attach = file.arguments, file.attach
    elif imports or reload is not None:
        raise ConfigurationError("protect: imports and reload are about a file, expected config='agents.toml'")
    middleware = AgentMiddleware(inside, **arguments)
    if attach is not None:
        attach(middleware)
    outermost: ASGIApp = middleware
    for cls, args, kwargs in reversed(around):
        outermost = cls(outermost, *args, **kwargs)
    # The class comes first: if it can't be changed, the app is as it was.
    app.__class__ = _protected(type(app))
    vars(app)[GUARD] = _Guard(inside, outermost)
    return middleware


def _protection_of(app: object) -> ASGIApp | None:
    """What :func:`protect` has put around an app, the outermost of it; None where it has put nothing there."""
    guard = getattr(app, "__dict__", {}).get(GUARD)
    return guard.outermost if isinstance(guard, _Guard) else None


def middlewares_of(app: object) -> list[AgentMiddleware]:
    """All that guard ``app`` or what is mounted in it, outermost first.

    An app that has not started has no middlewares yet. It makes them here, as it would with its first connection.
    """
    found: list[AgentMiddleware] = []
    # The parts are kept, so that the id of one is not given to another.
    seen: dict[int, object] = {}
    waiting: list[object] = [app]
    while waiting and len(seen) < _MOST:
        part = waiting.pop(0)
        part = getattr(part, "__self__", part)  # a router gives its own method to its middlewares
        if part is None or id(part) in seen:
            continue
        seen[id(part)] = part
        if isinstance(part, AgentMiddleware):
            found.append(part)
        waiting.extend(_parts_of(part))
    return found


def _parts_of(part: object) -> Iterator[object]:
    outermost = _protection_of(part)
    if outermost is not None:
        yield outermost
    elif isinstance(part, Starlette) and part.middleware_stack is None and part.user_middleware:
        part.middleware_stack = part.build_middleware_stack()
    for name in _WITHIN:
        yield attribute(part, name)
    routes = attribute(part, "routes")
    if isinstance(routes, list | tuple):
        yield from routes


class _Inside:
    """What the agents guard: the app's own middleware stack.

    The app builds that stack with its first connection, after the agents are made, and others may have it built again.
    """

    def __init__(self, owner: Starlette) -> None:
        self._owner = owner
        #: The stack. The resolver follows it from one ``app`` to the next. None until it is built: FastAPI has put its
        #: ``root_path`` on the scope already when the agents see it, and it may change until then.
        self.app: ASGIApp | None = None

    @property
    def router(self) -> Router:
        """The app's router, which the resolver asks where a request would go."""
        return self._owner.router

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if self.app is None:
            raise RuntimeError(
                "protect: the AgentMiddleware of a protected app was called, expected the app to be served"
            )
        return self.app(scope, receive, send)


class _Guard:
    """The agents of one app, and the middlewares outside of them."""

    def __init__(self, inside: _Inside, outermost: ASGIApp) -> None:
        self.inside = inside
        self.outermost = outermost


class _GuardedStack:
    """What a protected app has for its middleware stack: that stack, with the agents around it."""

    def __init__(self, guard: _Guard, inner: ASGIApp) -> None:
        self.guard = guard
        self.inner = inner
        #: What is wrapped, under the name that it has in every middleware.
        self.app = guard.outermost

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return self.app(scope, receive, send)


class _Protected:
    """A base class of every protected app, before its own. It puts the agents around each new middleware stack.

    To replace ``build_middleware_stack`` is not enough: OpenTelemetry's ``uninstrument_app`` puts back the one that it
    has found, and calls it.
    """

    def __init_subclass__(cls, **_: object) -> None:
        """Don't call the hook of the app's class, which is meant for the subclasses that people write."""

    @property
    def middleware_stack(self) -> ASGIApp | None:
        """The stack with the agents around it; None until it is built."""
        stack: ASGIApp | None = vars(self).get(_STACK)
        return stack

    @middleware_stack.setter
    def middleware_stack(self, stack: ASGIApp | None) -> None:
        guard: _Guard | None = vars(self).get(GUARD)
        # Without a guard it is another app, made with `type(app)()`.
        if guard is not None and stack is not None:
            if isinstance(stack, _GuardedStack) and stack.guard is guard:
                # It was read before, and is now put back.
                stack = stack.inner
            if guard.inside in app_chain(stack):
                # It would call itself for ever.
                raise ConfigurationError(
                    f"middleware_stack={type(stack).__qualname__}(app.middleware_stack), which has the agents in it"
                    " already; expected app.build_middleware_stack() in it, or that middleware in"
                    " protect(..., outside=[...])"
                )
            guard.inside.app = stack
            stack = _GuardedStack(guard, stack)
        vars(self)[_STACK] = stack


def _protected(cls: type[Starlette]) -> Any:
    """A subclass of ``cls`` that looks the same: in ``repr()``, documentation, and to those who look for its name."""
    body = {
        "__slots__": (),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    return types.new_class(cls.__name__, (_Protected, cls), exec_body=lambda namespace: namespace.update(body))


def _check_unguarded(app: Starlette) -> None:
    if GUARD in vars(app):
        raise ConfigurationError(
            "protect: app is protected already, expected one call with all agents; to change them later, give a manager"
        )
    if any(_is_agent_middleware(entry) for entry, _, _ in app.user_middleware):
        raise ConfigurationError(
            "protect: app has an AgentMiddleware already, expected either protect(app, ...)"
            " or app.add_middleware(AgentMiddleware, ...), and not both"
        )
    if app.middleware_stack is not None:
        raise ConfigurationError(
            "protect: app has started already, expected the call before its first connection, beside the line that"
            " makes the app; FastAPIInstrumentor.uninstrument_app starts it too"
        )


def _checked_outside(outside: object) -> list[Middleware]:
    if isinstance(outside, str | Middleware) or not isinstance(outside, Iterable):
        raise ConfigurationError(f"protect: outside is {kind_of(outside)}, expected a list of Middleware(...)")
    return [_checked_entry(entry) for entry in outside]


def _checked_entry(entry: object) -> Middleware:
    if isinstance(entry, tuple) and len(entry) == 3 and callable(entry[0]):
        # Starlette's own list takes these too.
        factory, args, kwargs = entry
        entry = Middleware(factory, *args, **kwargs)
    if not isinstance(entry, Middleware):
        factory_name = getattr(entry, "__name__", None) or "CORSMiddleware"
        raise ConfigurationError(
            f"protect: outside contains {kind_of(entry)}, expected objects such as Middleware({factory_name}, ...)"
        )
    if not callable(entry.cls):
        raise ConfigurationError(
            f"protect: outside contains Middleware({kind_of(entry.cls)}), expected the class of a middleware in it"
        )
    if _is_agent_middleware(entry.cls):
        raise ConfigurationError("protect: outside contains AgentMiddleware, expected all agents in agents=[...]")
    return entry


def _is_agent_middleware(factory: object) -> bool:
    while isinstance(factory, functools.partial):
        factory = factory.func
    return isinstance(factory, type) and issubclass(factory, AgentMiddleware)
