"""``--allow``: paths that may be open, of which nothing in the app can say so."""

from collections.abc import Sequence

from ..errors import ConfigurationError
from ..routing.openness import OpenDeclaration, declared_open
from ..routing.patterns import covers
from ..routing.routes import AgentRoute
from ..routing.survey import SurveyedEndpoint
from ..terminal.loading import MistakeError


def checked_patterns(patterns: Sequence[str]) -> Sequence[str]:
    """The patterns of ``--allow``.

    :raises MistakeError: one is no pattern of paths.
    """
    for pattern in patterns:
        try:
            AgentRoute(pattern, agents=[])
        except ConfigurationError as exc:
            raise MistakeError(f"--allow {pattern!r}, expected a pattern as of an AgentRoute: {exc}") from None
    return patterns


def declaration_of(endpoint: SurveyedEndpoint, allowed: Sequence[str]) -> OpenDeclaration | None:
    """Who says that an endpoint is open, if anybody does: the app, or one of these patterns."""
    said = declared_open(endpoint.asked, endpoint.path)
    if said is not None:
        return said
    path = endpoint.only or endpoint.path
    found = next((pattern for pattern in allowed if is_allowed(path, pattern)), None)
    return None if found is None else OpenDeclaration(by="option", pattern=found)


def is_allowed(path: str, pattern: str) -> bool:
    """Whether the pattern of ``--allow`` is for all paths that the pattern of an endpoint matches."""
    return pattern == path or covers(pattern, path)
