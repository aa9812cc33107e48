"""Good manners in the rooms."""

import re
from collections import Counter
from collections.abc import Iterable

from asgi_agents import Agent, AgentResponse, AuditMetadata, Opcode, RequestCompleteEvent, WebSocketFrameEvent


class Moderator(Agent):
    """Drops messages with insults in them; a client that doesn't stop is shown the door.

    :param insults: words, in any case.
    :param patience: how many messages are dropped before the next one closes the session with 4003.
    """

    def __init__(self, insults: Iterable[str], *, patience: int = 2) -> None:
        words = "|".join(re.escape(word) for word in insults)
        self._insult = re.compile(rf"\b(?:{words})s?\b", re.IGNORECASE)
        self._patience = patience
        self._offences: Counter[str] = Counter()

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        if not event.client_to_server:
            # What the room sends has been a member's message before.
            return None
        if event.opcode is not Opcode.TEXT:
            return AgentResponse.websocket_close(1003, "text only")
        if not self._insult.search(event.data.decode(errors="replace")):
            return None
        self._offences[event.correlation_id] += 1
        audit = AuditMetadata(tags=("moderation",), reason_codes=("insult",))
        if self._offences[event.correlation_id] > self._patience:
            return AgentResponse.websocket_close(4003, "repeated insults", audit=audit)
        return AgentResponse.websocket_drop(audit=audit)

    async def on_request_complete(self, event: RequestCompleteEvent) -> None:
        self._offences.pop(event.correlation_id, None)
