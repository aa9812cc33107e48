"""What a connection gets whose endpoint may not run, because not all that its policy asks for was done."""

import logging
from typing import Final

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from ..messages.throttle import Throttle

logger: Final = logging.getLogger("asgi_agents")

#: What clients are told.
REASON: Final = "Service unavailable"


def consequence(kind: str) -> str:
    """What happens to connections of a kind, for the log: of scopes, or of endpoints, of which some are for several."""
    match kind:
        case "http":
            return "it answers 503"
        case "websocket":
            return "it closes with 1011"
        case _:
            return "it answers 503, or closes with 1011"


def log_refusal(throttle: Throttle, why: str) -> None:
    """Log an error, once a minute for each reason."""
    if throttle.due(why):
        logger.error("%s", why)


class Refusing:
    """An app that answers 503, or closes a websocket with 1011, and says in the log why."""

    def __init__(self, throttle: Throttle, why: str) -> None:
        self._throttle = throttle
        self._why = why

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        log_refusal(self._throttle, self._why)
        answer: ASGIApp = PlainTextResponse(REASON, 503)
        if scope["type"] == "websocket":
            answer = WebSocketClose(1011, REASON)
        await answer(scope, receive, send)
