"""The guardrails of a route: whose agents judge which text."""

import logging
from collections.abc import Sequence
from typing import Final

from ..advice import warn_of_hold
from ..errors import ConfigurationError
from ..guard import Guard
from ..guardrails import Call, Guardrail, TextGuardrail
from ..guardrails.judges import Judge, Judges
from ..guardrails.slots import Kind
from ..guardrails.windows import WindowLimits
from ..messages.places import raised_by
from ..messages.throttle import Throttle
from ..protocol import EventType
from .route_agent import RouteAgent

logger: Final = logging.getLogger("asgi_agents")

_DEFAULT_HOLD: Final = 80
# What is for agents that answer with detections, and its defaults.
_SAID_BY_CHECK: Final = (("action", "redact"), ("threshold", 0.5), ("categories", None), ("min_severity", None))


class RouteJudge(Judge, frozen=True, kw_only=True):
    """A guardrail on a route.

    :ivar agent: whose failure mode is that of the route.
    """

    guardrail: Guardrail
    agent: RouteAgent

    @property
    def guard(self) -> Guard:
        return self.agent.guard

    @property
    def knows_windows(self) -> bool:
        """Whether the agent is a :class:`TextGuardrail` in the process, which says itself what is to be done."""
        return isinstance(self.agent.guard.client.agent, TextGuardrail)


class RouteJudges:
    """The guardrails of a route, in their order."""

    __slots__ = ("_always", "_judges", "agents", "complaints")

    def __init__(self, judges: Sequence[RouteJudge]) -> None:
        self._judges = judges
        #: Lets lines of the log through about what could not be judged.
        self.complaints = Throttle()
        #: The agents behind them.
        self.agents = tuple(judge.agent for judge in judges)
        # Of calls, where none of them depends on the call.
        self._always = None if any(judge.guardrail.when is not None for judge in judges) else CallJudges(judges)

    @property
    def depend_on_calls(self) -> bool:
        """Whether some of them judge only some calls."""
        return self._always is None

    def judge_any(self, kinds: frozenset[Kind]) -> bool:
        """Whether any of them judges text of these kinds, for whatever call."""
        return any(not judge.on.isdisjoint(kinds) for judge in self._judges)

    def of(self, call: Call) -> "CallJudges":
        """Those who judge a call."""
        if self._always is not None:
            return self._always
        return CallJudges([judge for judge in self._judges if self._judges_call(judge, call)])

    def _judges_call(self, judge: RouteJudge, call: Call) -> bool:
        try:
            return judge.guardrail.judges(call)
        except Exception as exc:
            if self.complaints.due(("when", judge.name)):
                fault = raised_by(exc, judge.guardrail.when)
                logger.warning(
                    "Guardrail(%r): when %s; it judges all the same (logged once a minute)", judge.name, fault
                )
            return True


class CallJudges(Judges):
    """Those who judge one call."""

    __slots__ = ("all",)

    def __init__(self, judges: Sequence[RouteJudge]) -> None:
        super().__init__(judges)
        self.all = tuple(judges)

    def on(self, kinds: frozenset[Kind]) -> Sequence[RouteJudge]:
        """Those who judge text of these kinds."""
        return [judge for judge in self.all if not judge.on.isdisjoint(kinds)]

    def strict(self, kinds: frozenset[Kind]) -> bool:
        """Whether text of these kinds that nobody can judge must not pass."""
        return any(judge.agent.stops_when_failing for judge in self.on(kinds))


def check_guardrail(guardrail: Guardrail, guard: Guard) -> None:
    """Raise :class:`ConfigurationError` where an agent can't judge what a guardrail asks for."""
    where = f"Guardrail({guardrail.agent_id!r})"
    if EventType.GUARDRAIL_INSPECT not in guard.hears:
        raise ConfigurationError(
            f"{where}: agent {guardrail.agent_id!r} does not receive guardrail_inspect; expected a TextGuardrail, an"
            " Agent with on_guardrail_inspect, or a remote agent with events=[EventType.GUARDRAIL_INSPECT]"
        )
    agent = guard.client.agent
    if isinstance(agent, TextGuardrail):
        name = type(agent).__name__
        if type(agent).check is TextGuardrail.check and "check" not in vars(agent):
            raise ConfigurationError(f"{where}: {name} has no check, expected 'async def check(self, window)'")
        for field, default in _SAID_BY_CHECK:
            value = getattr(guardrail, field)
            if value != default:
                shown = set(value) if isinstance(value, frozenset) else str(value) if isinstance(value, str) else value
                raise ConfigurationError(
                    f"{where}: {field}={shown!r:.80}, expected none: {name}.check says itself what to do"
                )
    elif guardrail.hold is None and not guard.local:
        warn_of_hold(guardrail.agent_id, _DEFAULT_HOLD)
    limits_of(guardrail, guard)


def judge_of(guardrail: Guardrail, agent: RouteAgent) -> RouteJudge:
    """A guardrail as it judges on a route."""
    enforced = agent.guard.config.enforce
    return RouteJudge(
        name=guardrail.agent_id,
        on=guardrail.kinds,
        # What a shadow agent says is recorded and not done.
        redacts=enforced and guardrail.action == "redact",
        limits=limits_of(guardrail, agent.guard),
        guardrail=guardrail,
        agent=agent,
    )


def limits_of(guardrail: Guardrail, guard: Guard) -> WindowLimits:
    """When its text is judged. Raises :class:`ConfigurationError` for a window that is no more than is held back."""
    agent = guard.client.agent
    text = agent if isinstance(agent, TextGuardrail) else None
    hold = guardrail.hold
    if hold is None:
        hold = _DEFAULT_HOLD if text is None else text.hold
    window = guardrail.window
    if window is None and text is not None:
        window = text.window
    if window is None:
        window = max(400, 4 * hold)
    settles = text is not None and (type(text).settled is not TextGuardrail.settled or "settled" in vars(text))
    suspends = EventType.GUARDRAIL_INSPECT not in guard.client.non_suspending_hooks
    try:
        return WindowLimits(
            hold=hold,
            window=window,
            max_hold=guardrail.max_hold,
            in_flight=guardrail.in_flight,
            eager=guard.local and (settles or not suspends),
            settled=text.settled if text is not None and settles else None,
        )
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(f"Guardrail({guardrail.agent_id!r}): {exc}") from None
