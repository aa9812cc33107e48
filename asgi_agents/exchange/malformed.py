"""Connections that no agent is asked about, because what they ask for can't be judged: they are answered 400."""

import logging
from collections.abc import Awaitable
from typing import Final

from starlette.types import Receive, Scope, Send

from ..decision import AgentDecision
from ..messages.throttle import Throttle
from ..protocol import Block
from ..protocol.target import NO_PATH
from .http import HttpExchange
from .rendering import Renderers
from .state import ExchangeState
from .websocket import WebSocketExchange

logger: Final = logging.getLogger("asgi_agents")

_REFUSED: Final = AgentDecision(decision=Block(400, f"Bad request: {NO_PATH}"))


def refuse_target(
    state: ExchangeState,
    scope: Scope,
    receive: Receive,
    send: Send,
    renderers: Renderers,
    stop_grace: float,
    complaints: Throttle,
) -> Awaitable[None]:
    """Answer a connection whose target does not lead agents where it leads the app (``has_target``).

    No agent is asked, and the app is not called. It counts as denied, and is logged once a minute.
    """
    if complaints.due(NO_PATH):
        logger.warning(
            "a request for %s, such as 'GET %%2fadmin', was answered 400, and no agent asked (logged once a minute)",
            NO_PATH,
        )
    exchange = HttpExchange if scope["type"] == "http" else WebSocketExchange
    return exchange(state, scope, receive, send, renderers, stop_grace).refuse(_REFUSED)
