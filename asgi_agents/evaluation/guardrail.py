"""Content that handlers ask an agent about: the question, and the error where the agent gives no answer."""

from ..decision import Verdict
from ..errors import GuardrailUnavailableError, UnknownAgentError
from ..failures import Failure
from ..guard import Guard
from ..policy import FailureMode
from ..protocol import EventType, GuardrailInspectEvent, GuardrailResponse


async def inspect_guardrail(
    guard: Guard, event: GuardrailInspectEvent, failure_mode: FailureMode | None = None
) -> tuple[Verdict, GuardrailResponse]:
    """Ask an agent about a piece of content, in ``failure_mode``, or in its own where that is None.

    An agent that fails, or is a shadow agent, detects nothing. Whether it fails closed is in the verdict.
    Raises :class:`UnknownAgentError` where the agent is no guardrail agent.
    """
    if EventType.GUARDRAIL_INSPECT not in guard.hears:
        raise UnknownAgentError(f"agent {guard.config.id!r} does not receive {EventType.GUARDRAIL_INSPECT.value}")
    verdict, response = await guard.inspect(event, failure_mode or guard.config.fails, route=event.route_id)
    if verdict.failure is not None or not verdict.enforced:
        return verdict, GuardrailResponse(detected=False)
    return verdict, response


def unavailable(verdict: Verdict) -> GuardrailUnavailableError:
    """The error for the handler, of a verdict that fails closed."""
    assert verdict.failure is not None
    return unavailable_for(verdict.failure)


def unavailable_for(failure: Failure) -> GuardrailUnavailableError:
    """The error for the handler, of the failure of an agent that fails closed."""
    block = failure.block
    headers = None if block.headers is None else dict(block.headers)
    return GuardrailUnavailableError(block.status, block.body or "", failure.message, headers)
