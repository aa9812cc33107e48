"""The base class of agents written in Python."""

import dis
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from difflib import get_close_matches
from types import CodeType, FunctionType, MethodType
from typing import Any

from .errors import ConfigurationError
from .protocol import (
    AgentResponse,
    ConfigureEvent,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    WebSocketFrameEvent,
)

HOOKS: dict[EventType, str] = {event_type: f"on_{event_type.value}" for event_type in EventType}


class Agent:
    """Subclass it and override the hooks of the events that the agent is to receive.

    One instance serves all connections concurrently. Keep the state of a connection under ``event.correlation_id``, and
    drop it in :meth:`on_request_complete`. A hook that returns None allows the event. A hook may raise
    :class:`~asgi_agents.BadInput`, or Starlette's ``HTTPException`` or ``WebSocketException``, as an answer; any other
    exception is an error of the agent, to which its failure mode applies. Agents share the event objects: don't change
    them. An attribute whose name begins with ``on_`` and is no hook is refused, because it is most likely misspelled.

    A hook runs on the event loop, and its deadline can only end it where it awaits: work that blocks belongs in
    ``anyio.to_thread.run_sync``. The log names, once for each agent, a hook that has kept the event loop for more than
    50 ms at a time.
    """

    #: Names of request headers that this agent sets, and clients may not: in the middleware's process they are added to
    #: :attr:`AgentConfig.sets`.
    own_headers: Iterable[str] = ()
    #: Names of request headers that this agent reads, and the app is to see no client's value of: likewise added to
    #: :attr:`AgentConfig.replaces`.
    replaced_headers: Iterable[str] = ()
    #: True for an agent that never stops a connection, because it only sets headers or keeps records. ``python -m
    #: asgi_agents check`` does not count it as a guard then.
    never_stops: bool = False
    #: Names of request headers that this agent reads as other agents have set them. The log warns of a route on which
    #: it does not come :attr:`~AgentConfig.after` an agent that sets one of them.
    read_headers: Collection[str] = ()
    #: Those of which it trusts that clients can't choose them, such as ``x-user``: the log also warns of a route on
    #: which no agent sets one of them.
    trusted_headers: Collection[str] = ()

    async def on_configure(self, event: ConfigureEvent) -> AgentResponse | None:
        """Before the first call. ``event.config`` is ``AgentConfig.config``; raise an exception to refuse it.

        Without a configuration, an agent in the middleware's process is called with None, and a remote one is not
        called.
        """
        return None

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        """A request, or a websocket handshake, before the app sees it."""
        return None

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        """All of a request's body, or the next piece of it, before the app sees it."""
        return None

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        """The head of the app's response, before the client sees it."""
        return None

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        """All of a response's body, or the next piece of it, before the client sees it."""
        return None

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        """A websocket message, in either direction."""
        return None

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> AgentResponse | GuardrailResponse | None:
        """Content that a handler asks about. None means that nothing was found."""
        return None

    async def on_request_complete(self, event: RequestCompleteEvent) -> AgentResponse | None:
        """The last byte was sent. The answer changes nothing."""
        return None

    @property
    def events(self) -> frozenset[EventType]:
        """The events that this agent receives: those whose hook it overrides."""
        return frozenset(event_type for event_type, hook in HOOKS.items() if overrides(self, hook))


def check_agent(where: str, agent: Agent) -> None:
    """Raise :class:`ConfigurationError`, beginning with ``where``, for an agent whose hooks can't be called as written.

    Those are: an agent with an attribute ``on_…`` that is no hook, one with a hook that can't be awaited or that takes
    other parameters than the event, and one without any hook but :meth:`Agent.on_configure`. An agent that overrides
    :attr:`Agent.events` may have no hook.
    """
    name = type(agent).__name__
    for attribute in _attributes(agent):
        if attribute.startswith("on_") and attribute not in HOOKS.values():
            nearest = get_close_matches(attribute, HOOKS.values(), 1)
            right = nearest[0] if nearest else f"one of {', '.join(HOOKS.values())}, or a name without 'on_'"
            raise ConfigurationError(f"{where}: {name}.{attribute} is no hook, expected {right}")
    for hook in HOOKS.values():
        if overrides(agent, hook) and (fault := _fault_of(getattr(agent, hook))):
            raise ConfigurationError(f"{where}: {name}.{hook} is {fault}, expected an 'async def' without 'yield'")
        if overrides(agent, hook) and (parameters := _wrong_parameters(agent, hook)) is not None:
            raise ConfigurationError(
                f"{where}: {name}.{hook}{parameters} can't be called with an event alone, expected {hook}(self, event)"
            )
    declares = getattr(type(agent), "events", None) is not Agent.events
    if not declares and agent.events <= {EventType.CONFIGURE}:
        right = ", ".join(hook for event_type, hook in HOOKS.items() if event_type is not EventType.CONFIGURE)
        raise ConfigurationError(f"{where}: {name} receives no events, expected it to override at least one of {right}")


def _attributes(agent: Agent) -> Iterator[str]:
    """The names that the agent and its classes define."""
    yield from getattr(agent, "__dict__", ())
    for kind in type(agent).__mro__:
        yield from vars(kind)


def overrides(agent: Agent, hook: str) -> bool:
    """Whether the agent has that hook, rather than the one of :class:`Agent`."""
    return getattr(getattr(agent, hook), "__func__", None) is not getattr(Agent, hook)


def _fault_of(hook: object) -> str | None:
    """Why a hook can't be awaited, as far as that is known without calling it.

    A function that wraps a coroutine function, as decorators do, is assumed to return its coroutine. What objects,
    partials and mocks return is known only when they are called.
    """
    if not callable(hook):
        return f"a {type(hook).__name__}"
    function = getattr(hook, "__func__", hook)
    # ValueError: the function wraps itself.
    with suppress(ValueError):
        function = inspect.unwrap(function, stop=lambda wrapper: _fault_of_function(wrapper) != _PLAIN)
    return _fault_of_function(function)


def _wrong_parameters(agent: Agent, hook: str) -> str | None:
    """The parameters, as they are written, of a hook that can't be called with an event alone; else None.

    A function that wraps another is judged by its own parameters: it is called with those.
    """
    called = getattr(agent, hook)
    function = getattr(called, "__func__", called)
    if isinstance(called, MethodType) and isinstance(function, FunctionType) and _takes_two(function.__code__):
        return None
    try:
        parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):
        # Some built-in functions have no signature.
        return None
    with suppress(TypeError, ValueError):  # ValueError: a method that takes nothing at all, not even itself
        inspect.signature(called, follow_wrapped=False).bind(None)
        return None
    plain = [parameter.replace(annotation=parameter.empty) for parameter in parameters]
    static = isinstance(inspect.getattr_static(agent, hook), staticmethod)
    return f"{inspect.Signature(plain)}{', a static method,' if static else ''}"


def _takes_two(code: CodeType) -> bool:
    """Whether it is written ``(self, event)``, as nearly every hook is: to read a signature takes long."""
    return code.co_argcount == 2 and not code.co_kwonlyargcount


_PLAIN = "a plain function"


def _fault_of_function(function: Callable[..., Any]) -> str | None:
    if not isinstance(function, FunctionType) or inspect.iscoroutinefunction(function):
        return None
    flags = function.__code__.co_flags
    if flags & inspect.CO_ITERABLE_COROUTINE:
        return None
    return "a generator function" if flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR) else _PLAIN


def may_suspend(hook: object) -> bool:
    """Whether calling this coroutine function can ever suspend.

    A coroutine only suspends at an ``await`` (or ``async for``, ``async with``), all of which compile to a SEND
    instruction. A hook that can't suspend needs no deadline and no task of its own. Anything but a plain coroutine
    function is assumed to suspend. A method whose only ``await`` is that of another method of its agent names that as
    its ``awaits``.
    """
    function = getattr(hook, "__func__", hook)
    awaited = getattr(function, "awaits", None)
    # What wraps it has its attributes too, and may await anything.
    if isinstance(awaited, str) and not hasattr(function, "__wrapped__"):
        hook = getattr(hook.__self__, awaited)  # type: ignore[attr-defined]
        function = getattr(hook, "__func__", hook)
    code = getattr(function, "__code__", None)
    if type(code) is not CodeType or not code.co_flags & inspect.CO_COROUTINE:
        return True
    # Every second byte is an instruction; what CPython caches between them is 0 here.
    return _SEND in code.co_code[::2]


_SEND = dis.opmap["SEND"]
