"""The resolved routes of the paths that were asked for lately."""

from typing import Final

from ..evaluation.resolved_route import ResolvedRoute

#: How many paths are remembered, of at most so many characters: clients may ask for any path.
MAX_KNOWN: Final = 2048
MAX_KNOWN_LENGTH: Final = 256

#: What decides which route holds: a path, or a path with other fields of the scope.
PathKey = str | tuple[str, ...]


class PathCache(dict[PathKey, ResolvedRoute]):
    """Remembers the resolved route of a path.

    A dictionary, which is read as such: ``cache.get(key)`` costs no call of Python. Whoever reads it has to pass over
    a route that is ``retired``, since its agents have changed, and remember the one that holds now in its place.

    :param basis: what the routes in here depend on besides their keys. When that changes, it takes a new cache.
    """

    __slots__ = ("basis",)

    def __init__(self, basis: object = None) -> None:
        super().__init__()
        self.basis = basis

    def remember(self, key: PathKey, resolved_route: ResolvedRoute) -> None:
        """Keep a resolved route. A key that is too long is not kept; where there are too many, all are forgotten."""
        if (len(key) if isinstance(key, str) else sum(map(len, key))) > MAX_KNOWN_LENGTH:
            return
        if len(self) >= MAX_KNOWN:
            self.clear()
        self[key] = resolved_route
