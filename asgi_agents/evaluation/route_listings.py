"""All routes that name the agents of one manager, as its status page shows them."""

from collections.abc import Iterable, Iterator
from threading import Lock

from .resolved_route import RouteListing


class RouteListings:
    """Which agents receive the events of which paths: the routes of each middleware that shares the manager.

    It may be used from several threads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._by_owner: dict[object, tuple[RouteListing, ...]] = {}

    def __iter__(self) -> Iterator[RouteListing]:
        """Each once."""
        with self._lock:
            of_all = list(self._by_owner.values())
        return iter(dict.fromkeys(listing for listings in of_all for listing in listings))

    def put(self, owner: object, listings: Iterable[RouteListing]) -> None:
        """Have these routes shown in place of those that ``owner`` had before. Any object will do, and is kept."""
        listed = tuple(listings)
        with self._lock:
            self._by_owner[owner] = listed
