"""Endpoints that are open because somebody said so, told apart from those that somebody has forgotten to guard."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal

from msgspec import Struct

from ..evaluation.resolved_route import ResolvedRoute
from .patterns import covers

_EVERY_PATH: Final = "/{path:path}"


class OpenDeclaration(Struct, frozen=True, kw_only=True):
    """Who says that an endpoint is open: ``endpoint``, which is ``@unguarded``; ``route``, one of ours with
    ``agents=[]``; or ``option``, which is ``--allow``. ``pattern`` is that of the route or the option.
    """

    by: Literal["endpoint", "route", "option"]
    pattern: str | None

    def __str__(self) -> str:
        """As it is written."""
        if self.by == "endpoint":
            return "@unguarded"
        return f"AgentRoute({self.pattern!r})" if self.by == "route" else f"--allow {self.pattern!r}"


_BY_ENDPOINT: Final = OpenDeclaration(by="endpoint", pattern=None)


def declared_open(asked: Sequence[ResolvedRoute], path: str) -> OpenDeclaration | None:
    """Who says that an endpoint is open, if anybody does.

    The innermost middleware has the last word: one around it may leave the agents to that. A route for all paths is for
    what no other route names, and says nothing about an endpoint, unless that is for all paths as well.

    :param asked: what each middleware on the way has found, outermost first.
    :param path: the pattern of the endpoint.
    """
    if not asked or asked[-1].guarded:
        return None
    innermost = asked[-1]
    if innermost.policy is not None:
        return _BY_ENDPOINT
    route = innermost.route
    if route is None or (_is_for_all(route) and not _is_for_all(path)):
        return None
    return OpenDeclaration(by="route", pattern=route)


@lru_cache(maxsize=4096)
def _is_for_all(pattern: str) -> bool:
    return covers(pattern, _EVERY_PATH)
