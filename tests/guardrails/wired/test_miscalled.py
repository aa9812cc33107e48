"""Answers that are streams of events, or look like that, and are called text or nothing."""

from typing import Final

import pytest

from asgi_agents import FailureMode
from tests.guardrails.wired.exchanging import Finder, Sending, SlowFinder, asking, one
from tests.guardrails.wired.test_timing import Timed

pytestmark = pytest.mark.anyio

_OUTPUT: Final = {"output"}


_PROSE: Final = [
    b"data: hello\nalice.smith@example.com\n\n",
    b"data: hello\n\nmore: alice.smith@example.com\n\nbye",
    b"id: 5\nname: alice.smith@example.com\n",
    b"id: alice.smith@example.com\n\ndata: x\n\n",
    b"event: alice.smith@example.com\ndata: x\n\n",
    b"\n: alice.smith@example.com\n",
    b": alice.smith@example.com\n\ndata: x\n\n",
    b"data: x\n\nretry: alice.smith@example.com",
    b"\xef\xbb\xbfdata: x\rdatabase alice.smith@example.com\r\r",
    b"data\nalice.smith@example.com\n\n",
]


@pytest.mark.parametrize("media_type", ["text/plain", "text/html", None])
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_text_that_looks_like_events_is_judged_as_text_or_stopped(media_type: str | None, size: int) -> None:
    for body in _PROSE:
        for agent in (Finder(), SlowFinder()):
            pieces = [body[at : at + size] for at in range(0, len(body), size)]
            client = asking("/x", b"{}")
            guarded = one(Sending(pieces, media_type), agent, _OUTPUT)
            await guarded.call(client)
            assert b"alice" not in client.body, body
            counted = guarded.record.guardrails[0].counts
            assert b"[0]" in client.body or counted == {"unreadable": 1}, body
            assert client.complete
            guarded = one(Sending(pieces, media_type), agent, _OUTPUT, failure_mode=FailureMode.OPEN)
            client = await guarded.call(asking("/x", b"{}"))
            # It passes, as whatever can't be read, and is counted.
            assert b"alice" not in client.body or guarded.record.guardrails[0].counts == {"unreadable": 1}


_MISCALLED: Final = [
    (
        b'data: {"a": "\\u0061lice.smith@"}\n\ndata: {"a": "example.com"}\n\n',
        b'data: {"a": "[0]"}\n\ndata: {"a": ""}\n\n',
    ),
    (b'id: 1\nevent: a.b-c/d\ndata: "alice.smith@example.com"\n\n', b'id: 1\nevent: a.b-c/d\ndata: "[0]"\n\n'),
    (b": ping - 2026-01-01 10:00:00.5+00:00\n\nretry: 3000\n\ndata: 1\n\n", None),
    (b"data:\r\n\r\ndata: x\r\n\r\nid\r\n", b"data:\r\n\r\ndata: x\r\n\r\n"),
    (b"\xef\xbb\xbf\ndata: [DONE]\n\n", None),
]


@pytest.mark.parametrize("media_type", ["text/plain", None])
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_events_that_are_called_something_else_are_judged_as_events(media_type: str | None, size: int) -> None:
    for body, expected in _MISCALLED:
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        guarded = one(Sending(pieces, media_type), Finder(), _OUTPUT)
        client = await guarded.call(asking("/x", b"{}"))
        assert client.body.startswith(body if expected is None else expected)
        assert client.complete


async def test_text_leaves_as_soon_as_it_can_not_be_events() -> None:
    for body in (b"Hello ", b"day ", b"data", b"idea ", b"retry? ", b"events ", b": it's "):
        client = Timed("/x")
        await one(Sending([body, b"and, ", 5.0, b"bye."], "text/plain"), Finder(), _OUTPUT, hold=0).call(client)
        assert b"".join(piece for at, piece in client.times if at < 1) == body + b"and, "
        assert client.body == body + b"and, bye."
