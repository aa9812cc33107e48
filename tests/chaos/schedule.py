"""What is done to whom, and when, as a seed has it. No I/O."""

import random
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from .corruption import POSSIBLE, Speech, Wire


class Blow(StrEnum):
    """What can happen to a process."""

    KILL = "kill"
    RESTART = "restart"
    DRAIN = "drain"
    FREEZE = "freeze"
    SLOW = "slow"


Kind = Blow | Wire
KINDS: Final[tuple[Kind, ...]] = (*Blow, *Wire)
# Seconds between two injections, and how long one lasts.
_PAUSES = (0.2, 0.9)
_DURATIONS = (0.3, 2.0)


class Injection(NamedTuple):
    """At ``at`` seconds from the beginning, ``kind`` is done to ``instance``, for ``duration`` seconds."""

    at: float
    kind: Kind
    instance: str
    duration: float


def schedule(seed: int, seconds: float, instances: Mapping[str, Speech | None]) -> Sequence[Injection]:
    """Injections for so many seconds.

    ``instances`` says what a proxy speaks to each, None where there is no proxy. Kinds come in rounds, each of which
    has all of them, so that no kind is left out of a run that is long enough for one round.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    found: list[Injection] = []
    at, rounds = 0.0, list[Kind]()
    while (at := at + chance.uniform(*_PAUSES)) < seconds:
        if not rounds:
            rounds = chance.sample(KINDS, len(KINDS))
        kind = rounds.pop()
        able = [name for name, speech in instances.items() if can(kind, speech)]
        found.append(Injection(at, kind, chance.choice(able), chance.uniform(*_DURATIONS)))
    return found


def can(kind: Kind, speech: Speech | None) -> bool:
    """Whether that can be done to an instance whose proxy, if there is one, speaks so."""
    return isinstance(kind, Blow) or (speech is not None and kind in POSSIBLE[speech])
