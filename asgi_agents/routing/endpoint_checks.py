"""The check of an endpoint that is a function: it runs only on a connection whose agents were asked."""

import functools
import inspect
from typing import Annotated, Any, Final, get_args, get_origin

from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import HTTPConnection
from starlette.types import Scope
from starlette.websockets import WebSocket

from ..evaluation.endpoint_policy import EndpointPolicy
from ..messages.throttle import Throttle
from .app_chain import attribute
from .marks import PolicyMark, put_mark
from .refusal import REASON, log_refusal
from .router_checks import is_asked, unasked

# The parameter by which FastAPI hands over the connection.
_CONNECTION: Final = "asgi_agents_connection"


def checking(endpoint: Any, policy: EndpointPolicy, *, of_router: bool = False) -> Any:
    """A function that checks before it calls ``endpoint``, is of the same kind, and has the mark of the policy.

    :param of_router: whether the policy is that of a router.
    """
    throttle = Throttle()
    mark = PolicyMark(policy, None, checked=True, of_router=of_router)

    def check(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        scope = _scope_in(args, kwargs)
        kwargs.pop(_CONNECTION, None)
        if not is_asked(policy, scope):
            kind = "" if scope is None else scope["type"]
            log_refusal(throttle, unasked(mark, getattr(endpoint, "__qualname__", "an endpoint"), kind))
            raise refused(kind)

    if inspect.iscoroutinefunction(endpoint):

        @functools.wraps(endpoint)
        async def checked(*args: Any, **kwargs: Any) -> Any:
            check(args, kwargs)
            return await endpoint(*args, **kwargs)

    else:
        # FastAPI looks at what is wrapped to find out whether it is a generator, or returns a coroutine.
        @functools.wraps(endpoint)
        def checked(*args: Any, **kwargs: Any) -> Any:
            check(args, kwargs)
            return endpoint(*args, **kwargs)

    signature = _with_connection(endpoint)
    if signature is not None:
        checked.__signature__ = signature  # type: ignore[attr-defined]
    mark.owner = checked
    put_mark(checked, mark)
    return checked


def refused(kind: str) -> Exception:
    """What an endpoint raises that may not run. ``kind`` is the type of the scope; empty: nobody knows."""
    return WebSocketException(1011, REASON) if kind == "websocket" else HTTPException(503, REASON)


def _with_connection(endpoint: Any) -> inspect.Signature | None:
    """A signature for which FastAPI hands over the connection as well; None where the endpoint is given one anyway.

    Without it nobody could tell which connection an endpoint is called for.
    """
    try:
        signature = inspect.signature(endpoint, eval_str=True)
    except Exception:
        # A name of its annotations is not there, or not yet. FastAPI has ways of its own then.
        return None
    parameters = list(signature.parameters.values())
    if any(_is_connection(parameter.annotation) for parameter in parameters):
        return None
    at = len(parameters)
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        at -= 1
    own = inspect.Parameter(_CONNECTION, inspect.Parameter.KEYWORD_ONLY, annotation=HTTPConnection)
    parameters.insert(at, own)
    return signature.replace(parameters=parameters)


def _is_connection(annotation: object) -> bool:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return isinstance(annotation, type) and issubclass(annotation, HTTPConnection)


def _scope_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Scope | None:
    """The scope of the connection that an endpoint is called for, where it is given that."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, HTTPConnection):
            # In a test of the function alone it may have none.
            return attribute(value, "scope") or {"type": "websocket" if isinstance(value, WebSocket) else "http"}
    # An object that is an app by itself. FastAPI gives all by name, and so what clients send.
    return next((value for value in args if isinstance(value, dict) and "type" in value), None)
