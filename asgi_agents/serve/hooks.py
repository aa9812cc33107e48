"""What an agent answers to an event, or why it doesn't; the same on every address."""

import logging
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from ..agent import Agent, check_agent
from ..calls.blocking import Steps, in_steps
from ..calls.raised import answer_raised
from ..concurrency.cancellation import cancel_requests, is_of_cancellations, name_of, raise_swallowed
from ..errors import AgentError, ConfigurationError
from ..messages.naming import named
from ..messages.throttle import Throttle
from ..observability.correlation import reset_current, set_current
from ..observability.tracing import serving_span
from ..protocol import (
    AgentResponse,
    Answer,
    Event,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    check_inspection,
    check_response,
    reason_of,
)
from ..protocol.responses import NOT_CONFIGURABLE
from ..protocol.stream import correlation_id_of
from ..transports import InProcessTransport

logger: Final = logging.getLogger("asgi_agents.serve")

_T = TypeVar("_T")


class NoAnswer(Exception):  # noqa: N818 - says what there is not
    """The agent failed. The message says how, and nothing of what it knows; the cause is what it raised."""


class Hooks:
    """The hooks of one agent.

    :param configurable: whether clients may configure it. Otherwise every configuration is refused.
    """

    def __init__(self, agent: Agent, name: str | None = None, *, configurable: bool = True) -> None:
        self.name = type(agent).__name__ if name is None else name
        self.events = agent.events
        self.configurable = configurable
        self._complaints = Throttle()
        self._transport = InProcessTransport(agent)
        self._steps = Steps(self.name, self._transport, logger)

    def may_suspend(self, event_type: EventType) -> bool:
        """Whether :meth:`answer` can ever suspend."""
        return self._transport.may_suspend(event_type)

    async def answer(self, event: Event, encode: Callable[[Answer], _T], caller: Mapping[str, list[str]]) -> _T:
        """The agent's answer, if the protocol allows it, as ``encode`` spells it; raises :class:`NoAnswer`.

        ``caller`` has the ``traceparent`` and ``tracestate`` that came with the event.
        """
        correlation_id = correlation_id_of(event)
        entered = set_current(correlation_id)
        try:
            with serving_span(caller, self.name, event.event_type.value, correlation_id):
                return await self._answer(event, encode)
        finally:
            reset_current(entered)

    async def _answer(self, event: Event, encode: Callable[[Answer], _T]) -> _T:
        event_type = event.event_type
        if event_type is EventType.CONFIGURE and not self.configurable:
            if self._complaints.due(event_type):
                logger.warning("%s: a client's configuration is refused (logged once a minute)", self.name)
            return encode(AgentResponse.block(403, NOT_CONFIGURABLE))
        suspends = self.may_suspend(event_type)
        # One that can't suspend may run outside of any task.
        requests = cancel_requests() if suspends else 0
        try:
            answer = await in_steps(self._transport.call(event), self._steps, event_type)
        except Exception as exc:
            answer = self._answer_raised(exc, event_type)
            if suspends:
                await raise_swallowed(requests)
            if answer is None:
                raise NoAnswer(f"agent raised {type(exc).__name__}") from exc
        except BaseException as exc:
            if not is_of_cancellations(exc):
                raise
            if suspends:
                await raise_swallowed(requests)
            # Nobody has cancelled the hook, but something that it awaited, such as a task or future of its own: a
            # failure like any other. As a cancellation it would end whatever waits for the answer, without a word.
            kind = name_of(exc)
            logger.error("%s: %s: raised %s, though nobody has cancelled it", self.name, event_type, kind, exc_info=exc)
            raise NoAnswer(f"agent raised {kind}") from exc
        if suspends:
            # Nobody waits for the answer of a hook that was cancelled, whether it has swallowed that or not.
            await raise_swallowed(requests)
        try:
            checked = _checked(answer, event)
            if event_type is EventType.CONFIGURE and isinstance(checked, AgentResponse) and not checked.is_allow:
                logger.warning("%s: %s: it refuses its configuration: %s", self.name, event_type, reason_of(checked))
            return encode(checked)
        except Exception as exc:
            # Not only AgentProtocolError: what is in `audit.custom` is first looked at when it is encoded.
            logger.error("%s: %s: the answer can't be sent: %s", self.name, event_type, exc)
            raise NoAnswer("the agent's answer is not allowed by the protocol") from exc

    def _answer_raised(self, exc: Exception, event_type: EventType) -> AgentResponse | None:
        """The answer that the agent has given by raising ``exc``; None where it has failed, which is logged."""
        fault = f"raised {type(exc).__name__}"
        try:
            answer = answer_raised(exc, event_type, self._steps.function(event_type))
        except AgentError as error:
            answer, fault = None, str(error)
        if answer is None:
            logger.error("%s: %s: %s", self.name, event_type, fault, exc_info=exc)
        return answer


def require_agent(where: str, agent: object) -> None:
    """Raise :class:`ConfigurationError` for what is no agent, and as :func:`check_agent` does."""
    if not isinstance(agent, Agent):
        raise ConfigurationError(f"{where}: agent={agent!r}, expected an instance of an Agent")
    check_agent(where, agent)


def require_flag(where: str, name: str, value: object) -> None:
    """Raise :class:`ConfigurationError` unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{where}: {name}={named(value)}, expected True or False")


def require_positive(where: str, name: str, value: object) -> None:
    """Raise :class:`ConfigurationError` for what is no whole number of at least 1."""
    if type(value) is not int or value < 1:
        raise ConfigurationError(f"{where}: {name}={value!r}, expected a whole number of at least 1")


def _checked(answer: Answer | None, event: Event) -> Answer:
    if isinstance(event, GuardrailInspectEvent):
        if answer is None:
            return GuardrailResponse(detected=False)
        if isinstance(answer, GuardrailResponse):
            return check_inspection(answer, event.content)
    # What the agent may change is for the middleware's configuration to say.
    return check_response(answer, may_mutate=True, may_set_host=True)
