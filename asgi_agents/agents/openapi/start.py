"""Where to begin to look for what a request is for: at the app that is described, or at one that it is mounted in."""

import logging
from typing import Any, Final, NamedTuple

from ...exchange.state import ExchangeState
from ...routing.app_chain import attribute
from ...routing.matching import router_of
from .mounts import described_app, is_within

logger: Final = logging.getLogger("asgi_agents")

_STRANGER: Final = (
    "OpenApiValidation: the app that was given is neither the one that the agents guard, nor seen to be mounted in it."
    " Its paths are looked for as they are, and all else is undocumented: expected OpenApiValidation(app) with the app"
    " that is guarded, or root_path='/api' for one that is mounted out of sight"
)


class Start(NamedTuple):
    """Where to begin.

    :ivar elsewhere: whether something that is not found from there may run all the same.
    """

    app: Any
    root_path: str
    elsewhere: bool


class Beginning:
    """Knows where to begin for each connection.

    :param app: the one that is described.
    :param root_path: of the server, or of what the app is mounted in. None: the app's own, or that of the connection.
    """

    def __init__(self, app: Any, root_path: str | None) -> None:
        self._app = app
        self._root_path = None if root_path is None else root_path.rstrip("/")
        # The last one that the app was seen in: mounts are rarely changed.
        self._outer: object = None
        self._told = False

    def of(self, connection: ExchangeState | None) -> Start:
        """Where to begin for a connection; None: one of which only events are seen."""
        if connection is None:
            return self._at(self._app, "", elsewhere=False)
        router = router_of(self._app)[0]
        found = router_of(connection.app)[0]
        if found is None:
            # What is guarded hides what it wraps. The server's app is known where the middleware is within it.
            return self._at(self._app, connection.root_path, elsewhere=router_of(connection.scope_app)[0] is not router)
        if found is router:
            return self._at(self._app, connection.root_path, elsewhere=False)
        if self._root_path is None:
            if self._is_in(connection.app):
                names = (described_app(connection.app), connection.scope_app)
                outer = next((one for one in names if router_of(one)[0] is found), connection.app)
                return self._at(outer, connection.root_path, elsewhere=False)
            if not self._told:
                self._told = True
                logger.warning("%s", _STRANGER)
        return self._at(self._app, connection.root_path, elsewhere=True)

    def _at(self, app: Any, given: str, *, elsewhere: bool) -> Start:
        root_path = self._root_path
        if root_path is None:
            # FastAPI puts its own in the place of the server's.
            root_path = str(attribute(app, "root_path") or "") or given
        return Start(app, root_path, elsewhere)

    def _is_in(self, outer: object) -> bool:
        if self._outer is not outer and is_within(self._app, outer):
            self._outer = outer
        return self._outer is outer
