"""What a user decides about agents: failure modes, body modes, breaker settings. Imports nothing that acts on it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Final, Literal, TypeVar, cast

from .errors import ConfigurationError
from .messages.naming import named

#: The longest time that a setting can have, in seconds: a year.
MAX_SECONDS: Final = 366 * 24 * 3600
#: The shortest window of a failure rate, in seconds: a tenth of it is still more than a clock's resolution.
MIN_WINDOW: Final = 0.001

E = TypeVar("E", bound=StrEnum)


def wrong(where: str, name: str, value: object, expected: str) -> ConfigurationError:
    """The error for an argument that can't work."""
    return ConfigurationError(f"{where}: {name}={value!r}, expected {expected}")


def as_member(where: str, name: str, value: object, kind: type[E]) -> E:
    """The member of an enumeration, given as such or by its value; raises :class:`ConfigurationError`."""
    try:
        return kind(cast(str, value))
    except ValueError:
        raise wrong(where, name, value, " or ".join(repr(str(member)) for member in kind)) from None


def require_seconds(where: str, name: str, value: object) -> None:
    """Raise :class:`ConfigurationError` unless ``value`` is a number of seconds above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_SECONDS:
        raise ConfigurationError(f"{where}: {name}={value!r}, expected a number of seconds above 0")


def require_int(where: str, name: str, value: object, *, at_least: int) -> None:
    """Raise :class:`ConfigurationError` unless ``value`` is a whole number of at least ``at_least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigurationError(f"{where}: {name}={value!r}, expected a whole number of at least {at_least}")


def _require_rate(where: str, name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1):
        raise ConfigurationError(
            f"{where}: {name}={value!r}, expected a share above 0 and up to 1, such as 0.5, or None to open on "
            "failures in a row alone"
        )


def _require_window(where: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not MIN_WINDOW <= value <= MAX_SECONDS:
        raise ConfigurationError(
            f"{where}: {name}={value!r}, expected a number of seconds from {MIN_WINDOW} to {MAX_SECONDS}"
        )


def require_member(where: str, name: str, value: object, kind: type) -> None:
    """Raise :class:`ConfigurationError` unless ``value`` is of the class ``kind``."""
    if not isinstance(value, kind):
        raise ConfigurationError(f"{where}: {name}={value!r}, expected a {kind.__name__}")


class FailureMode(StrEnum):
    """What a failed call means for the connection: CLOSED stops it, OPEN lets it go on without the agent.

    Wherever one is expected, its name does as well: ``"closed"`` or ``"open"``.
    """

    CLOSED = "closed"
    OPEN = "open"


FailureModeName = Literal["closed", "open"]
BodyModeName = Literal["buffer", "stream", "hybrid"]


def as_failure_mode(prefix: str, given: object) -> FailureMode:
    """The failure mode, given as such or by its name.

    ``prefix`` begins the message of the :class:`ConfigurationError` for anything else: what was given, and where.
    """
    try:
        return FailureMode(given)  # type: ignore[arg-type]
    except ValueError:
        raise ConfigurationError(f"{prefix}, expected the failure mode 'closed' or 'open'") from None


@dataclass(frozen=True, slots=True)
class BodyMode:
    """How an agent receives a body.

    ``BUFFER``: all of it at once, before anything of it is passed on. ``STREAM``: piece by piece as it comes.
    ``BodyMode.hybrid(threshold)``: buffered up to ``threshold`` bytes, the rest piece by piece.

    ``AgentConfig`` takes the names as well: ``"buffer"``, ``"stream"``, and ``"hybrid"`` for the default threshold.
    """

    name: BodyModeName
    threshold: int = 0

    BUFFER: ClassVar["BodyMode"]
    STREAM: ClassVar["BodyMode"]

    def __post_init__(self) -> None:
        if self.name not in ("buffer", "stream", "hybrid"):
            raise ConfigurationError(f"BodyMode: name={self.name!r}, expected 'buffer', 'stream' or 'hybrid'")
        if self.name == "hybrid":
            require_int("BodyMode.hybrid", "threshold", self.threshold, at_least=1)
        elif self.threshold != 0:
            raise ConfigurationError(f"BodyMode: threshold={self.threshold!r}, expected one in hybrid mode only")

    @classmethod
    def hybrid(cls, threshold: int = 65536) -> "BodyMode":
        """Buffer ``threshold`` bytes, then stream."""
        return cls("hybrid", threshold)


BodyMode.BUFFER = BodyMode("buffer")
BodyMode.STREAM = BodyMode("stream")


def as_body_mode(where: str, name: str, given: object) -> BodyMode:
    """The body mode, given as such or by its name."""
    match given:
        case BodyMode():
            return given
        case "hybrid":
            return BodyMode.hybrid()
        case "buffer" | "stream":
            return BodyMode(given)
    raise ConfigurationError(
        f"{where}: {name}={named(given)}, expected 'buffer', 'stream', 'hybrid' or BodyMode.hybrid(threshold=...)"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreakerConfig:
    """When to stop calling an agent that keeps failing, and how to find out that it is back.

    ``failure_threshold`` failures in a row open the breaker. Failures of calls that overlap in time count once in a
    row, and the failure of a call that began before the latest success doesn't count in it.

    A failure rate opens it besides, which finds outages in which overlapping calls fail: of the calls that ended within
    the last ``window`` seconds, ``minimum_calls`` or more in number, at least the share ``failure_rate`` has failed.
    There each failure counts. ``failure_rate=None`` switches it off.

    ``reset_timeout`` seconds after it has opened, at most ``half_open_max_calls`` calls at a time are let through on
    trial; ``success_threshold`` successes close it, one failure opens it again.

    :param failure_rate: above 0, up to 1; or None.
    :param window: seconds, at least 0.001. Counted in tenths: a call leaves the window when it is between nine tenths
        of it and the whole of it old.
    """

    failure_threshold: int = 5
    success_threshold: int = 2
    reset_timeout: float = 30.0
    half_open_max_calls: int = 1
    failure_rate: float | None = 0.5
    minimum_calls: int = 20
    window: float = 10.0

    def __post_init__(self) -> None:
        where = "CircuitBreakerConfig"
        require_int(where, "failure_threshold", self.failure_threshold, at_least=1)
        require_int(where, "success_threshold", self.success_threshold, at_least=1)
        require_seconds(where, "reset_timeout", self.reset_timeout)
        require_int(where, "half_open_max_calls", self.half_open_max_calls, at_least=1)
        _require_rate(where, "failure_rate", self.failure_rate)
        require_int(where, "minimum_calls", self.minimum_calls, at_least=1)
        _require_window(where, "window", self.window)
