"""Who is in which room."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import WebSocket, WebSocketDisconnect


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
