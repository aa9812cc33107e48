"""One call to an agent while it is under way."""

from msgspec import Struct

from ..policy import FailureMode
from ..protocol import ALLOW, AgentResponse, Event, GuardrailResponse


class AgentCall(Struct):
    """An event on its way to the agent. ``timeout`` counts from ``started``; ``queued`` is how long it has waited."""

    event: Event
    failure_mode: FailureMode
    route: str | None
    timeout: float
    started: float = 0.0
    queued: float = 0.0
    #: Whether a guardrail asks, about a window of text that passes.
    window: bool = False
    #: Whether the call was cancelled before it failed. It then says nothing of the agent.
    given_up: bool = False
    #: What the agent has raised already.
    raised: BaseException | None = None
    #: What it has answered, once that was found to be allowed.
    answer: AgentResponse | GuardrailResponse = ALLOW
