"""Chat rooms over websockets, and the agent that keeps good manners in them."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from asgi_agents import Agent, AgentResponse, AuditMetadata, Opcode, RequestCompleteEvent, WebSocketFrameEvent

from .api_key import User
from .observability import TracedRoute

INSULTS = ("idiot", "moron", "nitwit")

router = APIRouter(route_class=TracedRoute)


class Moderator(Agent):
    """Drops messages with insults in them; a client that doesn't stop is shown the door.

    :param insults: words, in any case.
    :param patience: how many messages are dropped before the next one closes the session with 4003.
    """

    def __init__(self, insults: Iterable[str] = INSULTS, *, patience: int = 2) -> None:
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


class Rooms:
    """The members of all rooms."""

    def __init__(self) -> None:
        self._members: defaultdict[str, list[WebSocket]] = defaultdict(list)

    @contextmanager
    def joined(self, name: str, member: WebSocket) -> Iterator[None]:
        """Within, ``member`` gets what is said in the room."""
        self._members[name].append(member)
        try:
            yield
        finally:
            self._members[name].remove(member)
            if not self._members[name]:
                del self._members[name]

    async def say(self, name: str, text: str) -> None:
        """Send ``text`` to everyone in the room."""
        for member in tuple(self._members.get(name, ())):
            try:
                await member.send_text(text)
            except (WebSocketDisconnect, RuntimeError):
                # That member has left, or was closed by an agent, and is about to notice; the others are still here.
                continue


@router.websocket("/room/{name}")
async def room(websocket: WebSocket, name: str, user: User) -> None:
    rooms: Rooms = websocket.app.state.rooms
    await websocket.accept()
    with rooms.joined(name, websocket):
        async for text in websocket.iter_text():
            await rooms.say(name, _said(user, text))


def _said(user: str, text: str) -> str:
    """What the others receive of a message: an object with the user in it for an object, else a line."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        message = None
    return json.dumps({**message, "from": user}) if isinstance(message, dict) else f"{user}: {text}"
