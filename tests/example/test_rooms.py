from typing import cast

import pytest
from fastapi import WebSocket, WebSocketDisconnect

from example_app.rooms import Rooms


class Member:
    """As much of a websocket as a room needs."""

    def __init__(self, error: Exception | None = None) -> None:
        self.heard: list[str] = []
        self._error = error

    async def send_text(self, text: str) -> None:
        if self._error is not None:
            raise self._error
        self.heard.append(text)


@pytest.mark.parametrize("error", [WebSocketDisconnect(1006), RuntimeError("the websocket is closed")])
async def test_member_that_has_left_keeps_nobody_from_hearing(error: Exception) -> None:
    rooms, gone, here = Rooms(), Member(error), Member()
    with rooms.joined("lounge", cast(WebSocket, gone)), rooms.joined("lounge", cast(WebSocket, here)):
        await rooms.say("lounge", "hello")
    await rooms.say("lounge", "anyone?")
    assert here.heard == ["hello"]
