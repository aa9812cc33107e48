"""The file that a configuration has come from, and what became of it."""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct, field


class ReloadOutcome(StrEnum):
    """What has come of a reload."""

    #: What the file says holds now.
    TAKEN = "taken"
    #: There is a mistake in the file, or an agent does not take its configuration.
    REFUSED = "refused"
    #: Something went wrong that is no fault of the file's.
    FAILED = "failed"


class SourceStatus(Struct, frozen=True, kw_only=True):
    """The configuration file of a manager. Times are seconds since the epoch.

    :ivar path: the file.
    :ivar loaded_at: when what holds now was put in place.
    :ivar refused_at: when the file was refused. None: what holds is what the file said when it was looked at last.
    :ivar refusal: why it was refused.
    :ivar reloads: how often the file was taken anew since the app began, by :class:`ReloadOutcome`.
    """

    path: str
    loaded_at: float
    refused_at: float | None = None
    refusal: str | None = None
    reloads: Mapping[str, int] = field(default_factory=lambda: {outcome.value: 0 for outcome in ReloadOutcome})
