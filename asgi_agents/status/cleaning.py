"""What of a failure or denial may be shown: without what looks like a credential, and no longer than can be read."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from msgspec.structs import replace

from ..errors import printable
from ..observability.metrics import Incident
from ..observability.redaction import redact_secrets

_MAX_PATH_LENGTH: Final = 256
_MAX_REASON_LENGTH: Final = 128


class IncidentCleaner:
    """Cleans each incident once, however often it is shown: to look for secrets takes long, and few are new.

    They are cleaned here and not when they happen, so that a denial costs its request nothing.
    """

    def __init__(self) -> None:
        # By the identity of an incident, which is kept with it so that no other gets the same.
        self._known: dict[int, tuple[Incident, Incident]] = {}

    def clean(self, incidents: Sequence[Sequence[Incident]]) -> list[list[Incident]]:
        """Lists of incidents, cleaned. Those that are not among them are forgotten."""
        known = self._known
        self._known = {}
        return [[self._clean(incident, known) for incident in part] for part in incidents]

    def _clean(self, incident: Incident, known: dict[int, tuple[Incident, Incident]]) -> Incident:
        pair = known.get(id(incident)) or (incident, _cleaned(incident))
        self._known[id(incident)] = pair
        return pair[1]


def _cleaned(incident: Incident) -> Incident:
    return replace(
        incident,
        path=None if incident.path is None else _text(incident.path, _MAX_PATH_LENGTH),
        message=_redacted(incident.message),
        rule_ids=_texts(incident.rule_ids),
        tags=_texts(incident.tags),
        reason_codes=_texts(incident.reason_codes),
    )


def _texts(given: Sequence[str]) -> Sequence[str]:
    return tuple([_reason(text) for text in given])


# The same few come again and again, unlike paths.
@lru_cache(maxsize=1000)
def _reason(given: str) -> str:
    return _text(given, _MAX_REASON_LENGTH)


_redacted: Final = lru_cache(maxsize=1000)(redact_secrets)


def _text(given: str, length: int) -> str:
    # Lone surrogates, which can't be written, become question marks.
    text = printable(redact_secrets(given.encode("utf-8", "replace").decode()))
    return text if len(text) <= length else text[:length] + "…"
