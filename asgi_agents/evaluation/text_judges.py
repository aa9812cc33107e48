"""The guardrails of a route: whose agents judge which text."""

import logging
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from ..advice import warn_of_hold, warn_of_short_hold
from ..agent import Agent
from ..config import AgentConfig
from ..errors import ConfigurationError
from ..guard import Guard
from ..guardrails import Call, Guardrail, TextGuardrail, ToolPolicy
from ..guardrails.judges import Judge, Judges
from ..guardrails.slots import Kind
from ..guardrails.windows import WindowLimits
from ..messages.places import raised_by
from ..messages.throttle import Throttle
from ..protocol import EventType
from ..transports.resolve import agent_of
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
    def enforced(self) -> bool:
        """Whether what it says is done. What a shadow agent says is only recorded."""
        return self.agent.guard.config.enforce

    @property
    def knows_windows(self) -> bool:
        """Whether the agent is a :class:`TextGuardrail` in the process, which says itself what is to be done."""
        return isinstance(self.agent.guard.client.agent, TextGuardrail)


class RouteJudges:
    """The guardrails of a route, in their order.

    :param policies: which tools may be called.
    """

    __slots__ = ("_always", "_judges", "agents", "complaints", "policies")

    def __init__(self, judges: Sequence[RouteJudge], policies: Sequence[ToolPolicy] = ()) -> None:
        self._judges = judges
        self.policies = tuple(policies)
        #: Lets lines of the log through about what could not be judged.
        self.complaints = Throttle()
        #: The agents behind them.
        self.agents = tuple(judge.agent for judge in judges)
        # Of calls, where none of them depends on the call.
        self._always = None if any(judge.guardrail.when is not None for judge in judges) else CallJudges(judges)

    @property
    def guardrails(self) -> Sequence[Guardrail]:
        """The guardrails, in their order."""
        return tuple(judge.guardrail for judge in self._judges)

    @property
    def depend_on_calls(self) -> bool:
        """Whether some of them judge only some calls."""
        return self._always is None

    def judge_any(self, kinds: frozenset[Kind], *, enforced: bool = False) -> bool:
        """Whether any of them judges text of these kinds, for whatever call.

        ``enforced``: shadow agents don't count.
        """
        return any(not judge.on.isdisjoint(kinds) and (judge.enforced or not enforced) for judge in self._judges)

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


class JudgeSet(Judges):
    """Some of those who judge one call."""

    __slots__ = ("all",)

    def __init__(self, judges: Iterable[RouteJudge]) -> None:
        self.all = tuple(judges)
        super().__init__(self.all)

    def on(self, kinds: frozenset[Kind]) -> Sequence[RouteJudge]:
        """Those who judge text of these kinds."""
        return [judge for judge in self.all if not judge.on.isdisjoint(kinds)]

    def strict(self, kinds: frozenset[Kind]) -> bool:
        """Whether text of these kinds that nobody can judge must not pass."""
        return any(judge.agent.stops_when_failing for judge in self.on(kinds))


class CallJudges(JudgeSet):
    """Those who judge one call.

    :ivar enforced: those that are no shadow agents: they judge answers.
    :ivar before_app: those of them whose verdicts on the request the app waits for.
    :ivar beside_app: those that judge the request while the app runs. They are asked about the same text in parallel,
        because none of them can change it.
    :ivar shadows: each shadow agent.
    """

    __slots__ = ("before_app", "beside_app", "enforced", "shadows")

    def __init__(self, judges: Iterable[RouteJudge]) -> None:
        super().__init__(judges)
        enforced = [judge for judge in self.all if judge.enforced]
        overlapping = [judge for judge in enforced if judge.guardrail.overlap]
        self.enforced: JudgeSet = self if len(enforced) == len(self.all) else JudgeSet(enforced)
        self.before_app: JudgeSet = self.enforced
        if overlapping:
            self.before_app = JudgeSet([judge for judge in enforced if not judge.guardrail.overlap])
        self.beside_app = JudgeSet([replace(judge, redacts=False) for judge in overlapping])
        self.shadows = [JudgeSet([judge]) for judge in self.all if not judge.enforced]


class _Facts(NamedTuple):
    """What is known of an agent before it is asked. ``hears`` is None where it says itself what it receives."""

    hears: frozenset[EventType] | None
    agent: Agent | None
    never_suspends: bool
    transport: object


def _facts_of(guard: Guard) -> _Facts:
    client, transport = guard.client, guard.config.resolved_transport
    return _Facts(guard.hears, client.agent, EventType.GUARDRAIL_INSPECT in client.non_suspending_hooks, transport)


def check_guardrail(guardrail: Guardrail, guard: Guard) -> None:
    """:func:`require_guardrail`, and warn in the log of what most likely leaks."""
    require_guardrail(guardrail, guard)
    warn_of_guardrail(guardrail, guard)


def require_guardrail(guardrail: Guardrail, guard: Guard) -> None:
    """Raise :class:`ConfigurationError` where an agent can't judge what a guardrail asks for. Logs nothing."""
    _check(guardrail, _facts_of(guard))


def warn_of_guardrail(guardrail: Guardrail, guard: Guard) -> None:
    """Warn in the log of a guardrail that holds less text back than its agent needs, or maybe does."""
    agent = guard.client.agent
    if agent is None and guardrail.hold is None and not guard.stands_in:
        warn_of_hold(guardrail.agent_id, _DEFAULT_HOLD)
    # The default is what nobody has thought about.
    said = agent.hold if isinstance(agent, TextGuardrail) and agent.hold != TextGuardrail.hold else 0
    if guardrail.hold is not None and guardrail.hold < said:
        warn_of_short_hold(guardrail.agent_id, guardrail.hold, said)


def check_guardrail_of(guardrail: Guardrail, config: AgentConfig) -> None:
    """:func:`check_guardrail` for an agent that has no guard yet, as far as its configuration tells. Logs nothing."""
    transport = config.resolved_transport
    agent = agent_of(transport)
    hears = config.hears
    if hears is None and agent is not None:
        hears = agent.events
    hooks = getattr(transport, "non_suspending_hooks", ())
    _check(guardrail, _Facts(hears, agent, EventType.GUARDRAIL_INSPECT in hooks, transport))


def _check(guardrail: Guardrail, facts: _Facts) -> None:
    where = f"Guardrail({guardrail.agent_id!r})"
    if facts.hears is not None and EventType.GUARDRAIL_INSPECT not in facts.hears:
        if EventType.GUARDRAIL_INSPECT not in getattr(facts.transport, "carries", frozenset(EventType)):
            raise ConfigurationError(
                f"{where}: agent {guardrail.agent_id!r} does not receive guardrail_inspect, which its transport can't"
                " carry; expected an agent in the process, or one at unix://, tcp://, http:// or ray://"
            )
        raise ConfigurationError(
            f"{where}: agent {guardrail.agent_id!r} does not receive guardrail_inspect; expected a TextGuardrail, an"
            " Agent with on_guardrail_inspect, or a remote agent with events=[EventType.GUARDRAIL_INSPECT]"
        )
    agent = facts.agent
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
    elif guardrail.overlap and guardrail.action == "redact":
        raise ConfigurationError(
            f"{where}: overlap=True with action='redact', expected action='block' or 'flag': the app has the request"
            " while it is judged, so that nothing in it can be replaced"
        )
    else:
        _check_choice(guardrail, facts.transport)
    _limits(guardrail, facts)


def _check_choice(guardrail: Guardrail, transport: object) -> None:
    """Refuse what would choose among detections by what they don't say: all of them would be ignored, in silence."""
    where, name = f"Guardrail({guardrail.agent_id!r})", type(transport).__name__
    wanted, finds = guardrail.counted, getattr(transport, "finds", None)
    if wanted is not None and finds is not None and wanted.isdisjoint(finds):
        raise ConfigurationError(
            f"{where}: categories={set(wanted)!r:.80}, expected None: {name} says of nothing which category it is of;"
            f" all of it is {', '.join(map(repr, sorted(finds)))}"
        )
    if guardrail.least_severity is not None and not getattr(transport, "says_severity", True):
        raise ConfigurationError(
            f"{where}: min_severity={str(guardrail.least_severity)!r}, expected None: {name} says of nothing how severe"
            " it is"
        )


def judge_of(guardrail: Guardrail, agent: RouteAgent) -> RouteJudge:
    """A guardrail as it judges on a route."""
    return RouteJudge(
        name=guardrail.agent_id,
        on=guardrail.kinds,
        # What a shadow agent says is recorded and not done.
        redacts=agent.guard.config.enforce and guardrail.action == "redact",
        limits=_limits(guardrail, _facts_of(agent.guard)),
        guardrail=guardrail,
        agent=agent,
    )


def _limits(guardrail: Guardrail, facts: _Facts) -> WindowLimits:
    """When its text is judged. Raises :class:`ConfigurationError` for a window that is no more than is held back."""
    agent = facts.agent
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
    try:
        return WindowLimits(
            hold=hold,
            window=window,
            max_hold=guardrail.max_hold,
            in_flight=guardrail.in_flight,
            eager=agent is not None and (settles or facts.never_suspends),
            settled=text.settled if text is not None and settles else None,
        )
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(f"Guardrail({guardrail.agent_id!r}): {exc}") from None
