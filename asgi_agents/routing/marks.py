"""Policies that stand on endpoints and routers: how they are kept there, and how they are found.

A decorator that uses ``functools.wraps`` copies what a function keeps, and so the mark. A copy counts for nothing: a
mark holds where it was put, and it is found there through ``__wrapped__``. So no mark gets to another endpoint by being
copied.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from inspect import isclass, isfunction, ismethod
from typing import Any, Final
from weakref import WeakMethod

from ..evaluation.endpoint_policy import EndpointPolicy
from .app_chain import attribute

_ATTRIBUTE: Final = "__asgi_agents__"
# No endpoint has so many decorators, and those of a mock object have no end.
_MOST_DECORATORS: Final = 64


class PolicyMark:
    """A policy, and what it stands on.

    :ivar checked: whether what it stands on checks by itself, when it runs, that the policy holds.
    :ivar of_router: whether it is for all endpoints of a router.
    """

    __slots__ = ("checked", "of_router", "owner", "policy")

    def __init__(self, policy: EndpointPolicy, owner: object, *, checked: bool, of_router: bool = False) -> None:
        self.policy = policy
        self.owner = owner
        self.checked = checked
        self.of_router = of_router

    def __str__(self) -> str:
        """As it is written."""
        return self.policy.written("guard_router") if self.of_router else str(self.policy)


class ChecksPolicy:
    """A base of what stands in the place of an app, and checks that a policy is carried out.

    ``app`` is what it stands in the place of.
    """

    app: Any


class _Marks:
    """What is known of the marks of this process."""

    def __init__(self) -> None:
        #: Whether there is any: else nobody looks for one.
        self.used = False
        #: Grows with every mark, and whenever an app gets agents: what was found before may not hold any more.
        self.generation = 0
        self._methods: list[WeakMethod[Callable[[], None]]] = []

    def changed(self, *, used: bool = True) -> None:
        """Note a mark (``used``), or a change of what marks hold for."""
        self.generation += 1
        if used and not self.used:
            self.used = True
            for reference in self._methods:
                method = reference()
                if method is not None:
                    method()
            self._methods.clear()

    def on_first_use(self, method: Callable[[], None]) -> None:
        """Have a bound method called when the first mark is made, unless its object is gone or there is one."""
        if not self.used:
            self._methods = [reference for reference in self._methods if reference() is not None]
            self._methods.append(WeakMethod(method))


marks: Final = _Marks()


def put_mark(owner: Any, mark: PolicyMark) -> None:
    """Keep a mark on a function, a class, a router or a wrapper of an app."""
    setattr(owner, _ATTRIBUTE, mark)
    marks.changed()


def own_mark(thing: object) -> PolicyMark | None:
    """The mark that was put on this very object. No copy of it, and none that a class has for its instances."""
    kept = attribute(thing, "__dict__")
    try:
        mark = None if kept is None else kept.get(_ATTRIBUTE)
    except Exception:
        return None
    return mark if isinstance(mark, PolicyMark) and mark.owner is thing else None


def mark_of(endpoint: object, method: str | None = None) -> PolicyMark | None:
    """The mark of an endpoint; None where it has none.

    :param method: the method of the request, which selects the handler of an HTTPEndpoint. None: of no method.
    """
    for layer in layers(endpoint):
        if isclass(layer):
            if method is not None and is_endpoint_class(layer, "HTTPEndpoint"):
                handler = attribute(layer, handler_name(layer, method))
                mark = None if handler is None or isclass(handler) else mark_of(handler)
                if mark is not None:
                    return mark
            for base in layer.__mro__:
                mark = own_mark(base)
                if mark is not None:
                    return mark
        else:
            mark = own_mark(layer)
            if mark is not None:
                return mark
    return None


def is_endpoint_class(cls: type, *names: str) -> bool:
    """Whether it derives from one of these classes of ``starlette.endpoints``, which few apps import."""
    module = sys.modules.get("starlette.endpoints")
    return module is not None and any(issubclass(cls, getattr(module, name)) for name in names)


def handler_name(endpoint: type, method: str) -> str:
    """The name of the method of an HTTPEndpoint that Starlette runs for the method of a request."""
    return "get" if method == "HEAD" and not hasattr(endpoint, "head") else method.lower()


def layers(endpoint: object) -> Iterator[object]:
    """An endpoint, and what is within it: the functions of decorators and of partials, and ``__call__`` of objects."""
    for _ in range(_MOST_DECORATORS):
        while isinstance(endpoint, partial):
            yield endpoint
            endpoint = endpoint.func
        if ismethod(endpoint):
            endpoint = endpoint.__func__
        if endpoint is None:
            return
        yield endpoint
        inner = attribute(endpoint, "__wrapped__")
        if inner is None and not isclass(endpoint) and not isfunction(endpoint):
            called = attribute(type(endpoint), "__call__")
            inner = called if isfunction(called) else None
        endpoint = inner
