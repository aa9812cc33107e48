"""The configuration of one guardrail: whose agent judges which text, and what is done about what it finds."""

from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from inspect import iscoroutinefunction
from typing import Final, Literal

from ..errors import ConfigurationError
from ..messages.naming import named
from ..protocol import TOKEN, Severity
from .slots import KINDS, Call, Kind
from .tool_policy import ToolPolicy
from .verdicts import Action

# Nobody waits longer for the next word. Who means milliseconds is told so.
_MAX_HOLD: Final = 60
#: The names of severities, from the least on.
SeverityName = Literal["low", "medium", "high", "critical"]
_ACTIONS: Final = ("redact", "block", "flag")


@dataclass(frozen=True, slots=True, eq=False)
class Guardrail:
    """An agent that judges text: where it stands, and what is done about what it finds.

    ::

        protect(app, agents=[AgentConfig("emails", Emails())], guardrails=[Guardrail("emails", on={"output"})])

    :param agent_id: of an agent that hears ``guardrail_inspect``.
    :param on: the kinds of text that it judges: ``input``, ``output``, ``tool_call``, ``tool_result``, ``reasoning``.
    :param action: what is done about a detection: ``redact`` replaces its span, by its own ``replacement`` or else by
        ``[category]``, ``block`` stops the call, ``flag`` only records it. A detection's own ``action`` comes first. A
        :class:`TextGuardrail` in the process says so itself; it has no action here.
    :param inspection_type: what the agent is asked for.
    :param window: code points; how much text is judged at once. None: the agent's own, else the larger of 400 and four
        times ``hold``.
    :param hold: code points; the longest thing that the agent looks for. So much text is held back behind what may
        leave. None: the agent's own, else 80.
    :param max_hold: seconds after which text is judged although the window is not full.
    :param in_flight: how many windows of one text are judged at a time.
    :param overlap: judge requests beside the app. It starts at once, and nothing of its answer leaves before the
        verdict. A block stops it. What the app has can't be redacted any more: a ``Redact`` is a failure of the agent.
    :param threshold: detections of less confidence are ignored. One that says nothing of it counts as 1.
    :param categories: detections of others are ignored. None: none are.
    :param min_severity: detections of less are ignored: ``low``, ``medium``, ``high`` or ``critical``. None: none are.
    :param when: takes the :class:`Call`, and returns whether the guardrail judges it. Where it raises, it judges.
        :func:`models`, :func:`users` and the like make such functions.
    :raises ConfigurationError: for what can't work.
    """

    agent_id: str
    _: KW_ONLY
    on: Iterable[Kind]
    action: Action = "redact"
    inspection_type: str = "pii_detection"
    window: int | None = None
    hold: int | None = None
    max_hold: float = 0.5
    in_flight: int = 2
    overlap: bool = False
    threshold: float = 0.5
    categories: Iterable[str] | None = None
    min_severity: Severity | SeverityName | None = None
    when: Callable[[Call], bool] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.agent_id, str):
            raise ConfigurationError(f"Guardrail: agent_id={named(self.agent_id)}, expected the id of an agent")
        where = f"Guardrail({self.agent_id!r})"
        object.__setattr__(self, "on", _kinds(where, self.on))
        if self.action not in _ACTIONS:
            raise ConfigurationError(f"{where}: action={self.action!r}, expected one of {', '.join(_ACTIONS)}")
        if not isinstance(self.inspection_type, str) or not TOKEN.match(self.inspection_type):
            raise ConfigurationError(
                f"{where}: inspection_type={self.inspection_type!r}, expected a token such as 'pii_detection'"
            )
        for name, least in (("window", 1), ("hold", 0)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise ConfigurationError(f"{where}: {name}={value!r}, expected at least {least} code points, or None")
        if type(self.in_flight) is not int or self.in_flight < 1:
            raise ConfigurationError(f"{where}: in_flight={self.in_flight!r}, expected at least 1 window")
        if not _is_number(self.max_hold) or not 0 < self.max_hold <= _MAX_HOLD:
            raise ConfigurationError(
                f"{where}: max_hold={self.max_hold!r}, expected seconds, more than 0 and at most {_MAX_HOLD}"
            )
        if not isinstance(self.overlap, bool):
            raise ConfigurationError(f"{where}: overlap={self.overlap!r:.40}, expected True or False")
        if not _is_number(self.threshold) or not 0 <= self.threshold <= 1:
            raise ConfigurationError(f"{where}: threshold={self.threshold!r}, expected a number from 0 to 1")
        object.__setattr__(self, "categories", _categories(where, self.categories))
        object.__setattr__(self, "min_severity", _severity(where, self.min_severity))
        if self.when is not None and (not callable(self.when) or iscoroutinefunction(self.when)):
            raise ConfigurationError(f"{where}: when={named(self.when)}, expected a 'def' that takes a Call, or None")

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of text that it judges."""
        assert isinstance(self.on, frozenset)
        return self.on

    @property
    def counted(self) -> frozenset[str] | None:
        """The categories whose detections count; None: all."""
        assert self.categories is None or isinstance(self.categories, frozenset)
        return self.categories

    @property
    def least_severity(self) -> Severity | None:
        """The severity from which on detections count; None: all do."""
        assert self.min_severity is None or isinstance(self.min_severity, Severity)
        return self.min_severity

    def judges(self, call: Call) -> bool:
        """Whether it judges this call. Raises what ``when`` raises."""
        return self.when is None or bool(self.when(call))


def checked_guardrails(where: str, given: object) -> tuple[Guardrail | ToolPolicy, ...]:
    """``given`` as guardrails; ``where`` begins the message of the :class:`ConfigurationError` if they are none."""
    if isinstance(given, Guardrail | ToolPolicy):
        raise ConfigurationError(f"{where}={given!r:.80}, expected a list: [{type(given).__name__}(...)]")
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError(f"{where}={named(given)}, expected a list of Guardrail(...)")
    guardrails = tuple(given)
    for guardrail in guardrails:
        if not isinstance(guardrail, Guardrail | ToolPolicy):
            right = f": Guardrail({guardrail!r}, on={{'output'}})" if isinstance(guardrail, str) else ""
            if isinstance(guardrail, tuple):
                right = "; failure modes belong to the agents of an AgentRoute, or to an AgentConfig"
            raise ConfigurationError(f"{where} contains {named(guardrail)}, expected objects of Guardrail{right}")
    return guardrails


def _kinds(where: str, given: object) -> frozenset[Kind]:
    right = ", ".join(sorted(KINDS))
    if isinstance(given, str):
        raise ConfigurationError(f"{where}: on={given!r}, expected a set: {{{given!r}}}")
    if not isinstance(given, Iterable):
        raise ConfigurationError(f"{where}: on={named(given)}, expected a set of {right}")
    kinds = frozenset(given)
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigurationError(f"{where}: on contains {kind!r}, expected any of {right}")
    if not kinds:
        raise ConfigurationError(f"{where}: on is empty, expected any of {right}")
    return kinds


def _categories(where: str, given: object) -> frozenset[str] | None:
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError(f"{where}: categories={named(given)}, expected a set of categories, or None for all")
    categories = frozenset(given)
    for category in categories:
        if not isinstance(category, str):
            raise ConfigurationError(f"{where}: categories contains {named(category)}, expected strings")
    if not categories:
        raise ConfigurationError(f"{where}: categories is empty, so that nothing counts; expected None for all")
    return categories


def _severity(where: str, given: object) -> Severity | None:
    if given is None:
        return None
    try:
        return Severity(given)  # type: ignore[arg-type]
    except ValueError:
        right = ", ".join(repr(severity.value) for severity in Severity)
        raise ConfigurationError(
            f"{where}: min_severity={named(given)}, expected one of {right}, or None for all"
        ) from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
