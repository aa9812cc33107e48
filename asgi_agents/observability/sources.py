"""The file that a configuration has come from, and what became of it."""

from msgspec import Struct


class SourceStatus(Struct, frozen=True, kw_only=True):
    """The configuration file of a manager. Times are seconds since the epoch.

    :ivar path: the file.
    :ivar loaded_at: when what holds now was put in place.
    :ivar refused_at: when the file was refused. None: what holds is what the file said when it was looked at last.
    :ivar refusal: why it was refused.
    """

    path: str
    loaded_at: float
    refused_at: float | None = None
    refusal: str | None = None
