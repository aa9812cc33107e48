"""An agent that answers what a test tells it to, and remembers what it was asked."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import anyio

from ..agent import Agent
from ..errors import ConfigurationError, NotApplicableError
from ..messages.naming import named
from ..protocol import (
    AgentResponse,
    ConfigureEvent,
    Event,
    EventType,
    GuardrailResponse,
)
from ..protocol.applicability import check_applicable

#: What a fake does with one event: give an answer (None: allow), raise an exception, or call a function with the event
#: and give what it returns. The function may be a coroutine function.
Reaction = AgentResponse | GuardrailResponse | Exception | type[Exception] | Callable[[Any], Any] | None
#: One reaction for all events of a type, or a list with one for each, of which the last is for all further ones.
Script = Reaction | Sequence[Reaction]

_Event = TypeVar("_Event", bound=Event)
_NEVER_BY_DEFAULT: Final = frozenset({EventType.CONFIGURE, EventType.REQUEST_COMPLETE})


class FakeAgent(Agent):
    """Allows everything, unless it is told otherwise, and remembers all events.

    ::

        FakeAgent()  # allows
        FakeAgent(AgentResponse.block(403))  # blocks
        FakeAgent(ConnectionError())  # fails
        FakeAgent(delay=60)  # is slow
        FakeAgent(request_headers=[None, AgentResponse.block(429)])  # allows the first request, and no other

    :param reaction: to all events that it may be given to. Header operations are given to heads only, a body mutation
        to bodies, a :class:`GuardrailResponse` to inspections; other events are allowed. It is given neither to
        ``configure`` nor to ``request_complete``.
    :param delay: seconds before each answer, or exception; ``math.inf`` for no answer at all. ``configure`` is answered
        at once.
    :param events: the events that it receives. None: those of the agent whose place it takes, or all. By itself, as in
        ``AgentConfig("waf", FakeAgent())``, it receives bodies too, with all that follows.

    An exception that a function raises is a failure of the agent. So an assertion in it does not fail the test.

    The other parameters are named after the events. Each is a reaction to all events of its type, or a list of
    reactions, one for each event, the last for all further ones. They go before ``reaction``.

    Raises :class:`ConfigurationError` for what is no reaction.

    :ivar received: the events that it was asked about, oldest first; those too that it has failed at.
    :ivar configurations: those that it was given, oldest first.
    """

    def __init__(
        self,
        reaction: Reaction = None,
        *,
        delay: float = 0.0,
        events: Iterable[EventType] | None = None,
        configure: Script = None,
        request_headers: Script = None,
        request_body_chunk: Script = None,
        response_headers: Script = None,
        response_body_chunk: Script = None,
        websocket_frame: Script = None,
        guardrail_inspect: Script = None,
        request_complete: Script = None,
    ) -> None:
        if isinstance(reaction, list | tuple):
            raise ConfigurationError(
                "FakeAgent: reaction is a list, expected one reaction to all events; a list is for events of one type:"
                " FakeAgent(request_headers=[...])"
            )
        _check("reaction", reaction)
        if isinstance(delay, bool) or not isinstance(delay, int | float) or not delay >= 0:
            raise ConfigurationError(f"FakeAgent: delay={delay!r}, expected a number of seconds, 0 or more")
        given = {
            EventType.CONFIGURE: configure,
            EventType.REQUEST_HEADERS: request_headers,
            EventType.REQUEST_BODY_CHUNK: request_body_chunk,
            EventType.RESPONSE_HEADERS: response_headers,
            EventType.RESPONSE_BODY_CHUNK: response_body_chunk,
            EventType.WEBSOCKET_FRAME: websocket_frame,
            EventType.GUARDRAIL_INSPECT: guardrail_inspect,
            EventType.REQUEST_COMPLETE: request_complete,
        }
        self._reaction = reaction
        self._delay = delay
        self._scripts = {kind: _steps(kind, script) for kind, script in given.items() if script is not None}
        self._asked = dict.fromkeys(EventType, 0)
        self._events = frozenset(EventType) if events is None else frozenset(EventType(kind) for kind in events)
        unheard = sorted(self._scripts.keys() - self._events - {EventType.CONFIGURE})
        if unheard:
            raise ConfigurationError(f"FakeAgent: {unheard[0]} has a script, expected it to be among its events")
        self.received: list[Event] = []
        self.configurations: list[Any] = []

    @property
    def events(self) -> frozenset[EventType]:
        """The events that it receives."""
        return self._events

    @property
    def scripted(self) -> frozenset[EventType]:
        """The events that have reactions of their own."""
        return frozenset(self._scripts)

    def received_of(self, kind: type[_Event]) -> list[_Event]:
        """The events of one class that it was asked about, oldest first."""
        return [event for event in self.received if isinstance(event, kind)]

    async def _react(self, event: Any) -> Any:
        kind: EventType = event.event_type
        asked = self._asked[kind]
        self._asked[kind] += 1
        if isinstance(event, ConfigureEvent):
            self.configurations.append(event.config)
        else:
            self.received.append(event)
            await _wait(self._delay)
        script = self._scripts.get(kind)
        if script is not None:
            return await _given(script[min(asked, len(script) - 1)], event)
        reaction = self._reaction
        return await _given(reaction, event) if _fits(reaction, kind) else None

    # Its hooks. They can suspend, as those of a remote agent do, so that all deadlines and limits hold for them.
    on_configure = _react
    on_request_headers = _react
    on_request_body_chunk = _react
    on_response_headers = _react
    on_response_body_chunk = _react
    on_websocket_frame = _react
    on_guardrail_inspect = _react
    on_request_complete = _react


async def _wait(seconds: float) -> None:
    if seconds == math.inf:
        await anyio.sleep_forever()
    if seconds:
        await anyio.sleep(seconds)


async def _given(reaction: Reaction, event: Event) -> Any:
    if isinstance(reaction, Exception):
        # It may be raised many times, and would keep the traceback of each.
        raise reaction.with_traceback(None)
    if isinstance(reaction, type):
        raise reaction
    if callable(reaction):
        reaction = reaction(event)
        if inspect.isawaitable(reaction):
            reaction = await reaction
    return reaction


def _fits(reaction: Reaction, kind: EventType) -> bool:
    """Whether a reaction to all events is one to such events."""
    if kind in _NEVER_BY_DEFAULT:
        return False
    if isinstance(reaction, GuardrailResponse):
        return kind is EventType.GUARDRAIL_INSPECT
    if isinstance(reaction, AgentResponse):
        if reaction.websocket_decision is not None:
            return kind is EventType.WEBSOCKET_FRAME
        try:
            check_applicable(kind, reaction)
        except NotApplicableError:
            return False
    return True


def _steps(kind: EventType, script: Script) -> Sequence[Reaction]:
    if not isinstance(script, list | tuple):
        _check(kind, script)
        return [script]  # type: ignore[list-item]
    if not script:
        raise ConfigurationError(f"FakeAgent: {kind}={script!r}, expected at least one reaction")
    for reaction in script:
        _check(kind, reaction)
    return list(script)


def _check(where: str, reaction: object) -> None:
    if isinstance(reaction, type):
        right = issubclass(reaction, Exception)
    else:
        right = isinstance(reaction, AgentResponse | GuardrailResponse | Exception | None) or callable(reaction)
    if not right:
        raise ConfigurationError(
            f"FakeAgent: {where}={named(reaction)}, expected an AgentResponse, a GuardrailResponse, an exception, a"
            " function of the event, or None"
        )
