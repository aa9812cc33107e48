"""The head of a request and its body leave together, unless the agent has sent what nobody asked for."""

import ssl
from types import SimpleNamespace
from typing import Any

import httpcore
import pytest

from asgi_agents.transports.coalescing_backend import CoalescingStream

HEAD = b"POST / HTTP/1.1\r\nhost: agent\r\ncontent-length: 4\r\n\r\n"


class FakeStream(httpcore.AsyncNetworkStream):
    """Remembers what is done to it."""

    def __init__(self, **info: Any) -> None:
        self.done: list[Any] = []
        self.info = info
        #: What anyio has read from the system, on asyncio.
        self.queue: list[bytes] = []
        self._stream = SimpleNamespace(_protocol=SimpleNamespace(read_queue=self.queue))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.done.append(buffer)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self.done.append("read")
        return b"answer"

    async def aclose(self) -> None:
        self.done.append("closed")

    def get_extra_info(self, info: str) -> Any:
        return self.info.get(info)


async def ask(stream: CoalescingStream) -> None:
    await stream.write(HEAD)
    await stream.write(b"body")
    await stream.read(100)


async def test_head_and_body_are_one_write() -> None:
    inner = FakeStream()
    stream = CoalescingStream(inner)
    await stream.write(HEAD)
    await stream.write(b"body")
    await stream.write(b"")
    assert await stream.read(100) == b"answer"
    assert inner.done == [HEAD + b"body", "read"]


@pytest.mark.parametrize("body", [b"", b"more\r\n\r\n"])
async def test_nothing_is_kept_back_while_an_answer_is_waited_for(body: bytes) -> None:
    inner = FakeStream()
    stream = CoalescingStream(inner)
    await stream.write(HEAD)
    await stream.write(body)
    await stream.read(100)
    await stream.read(100)
    assert inner.done == [HEAD + body, "read", "read"]


async def test_a_second_request_is_written_like_the_first() -> None:
    inner = FakeStream()
    stream = CoalescingStream(inner)
    for _ in range(2):
        await ask(stream)
    assert inner.done == [HEAD + b"body", "read"] * 2


class Records:
    """A TLS connection on which something may have come that was not read."""

    def __init__(self, outcome: Exception | bytes) -> None:
        self.outcome = outcome

    def read(self, _: int) -> bytes:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize(
    ("info", "refused"),
    [
        ({"is_readable": True}, True),
        ({"ssl_object": Records(b"x")}, True),
        ({"ssl_object": Records(b"")}, True),
        ({"ssl_object": Records(ssl.SSLZeroReturnError())}, True),
        ({"ssl_object": Records(ssl.SSLError("bad record"))}, True),
        ({"ssl_object": Records(ssl.SSLWantReadError())}, False),
        ({}, False),
    ],
    ids=["in the socket", "a record", "the end", "a closing record", "a bad record", "TLS", "nothing"],
)
async def test_no_other_request_is_sent_where_something_has_come_meanwhile(info: dict[str, Any], refused: bool) -> None:
    inner = FakeStream()
    stream = CoalescingStream(inner)
    await ask(stream)
    inner.info.update(info)
    if not refused:
        await ask(stream)
        return
    with pytest.raises(httpcore.ConnectionNotAvailable):
        await stream.write(HEAD)
    assert inner.done == [HEAD + b"body", "read"]


async def test_no_other_request_is_sent_where_anyio_holds_something_that_was_not_read(anyio_backend_name: str) -> None:
    inner = FakeStream()
    stream = CoalescingStream(inner)
    await ask(stream)
    inner.queue.append(b"x")
    if anyio_backend_name == "trio":
        # There it holds nothing.
        await ask(stream)
    else:
        with pytest.raises(httpcore.ConnectionNotAvailable):
            await stream.write(HEAD)


async def test_no_other_request_is_sent_where_what_anyio_holds_cannot_be_seen(anyio_backend_name: str) -> None:
    inner = FakeStream()
    inner._stream = SimpleNamespace()
    stream = CoalescingStream(inner)
    await ask(stream)
    if anyio_backend_name == "trio":
        await ask(stream)
    else:
        with pytest.raises(httpcore.ConnectionNotAvailable):
            await stream.write(HEAD)


async def test_the_first_request_is_sent_whatever_has_come() -> None:
    """TLS session tickets, for one."""
    await ask(CoalescingStream(FakeStream(is_readable=True)))


async def test_what_was_not_sent_when_it_is_closed_is_not_sent_any_more() -> None:
    inner = FakeStream(socket="socket")
    stream = CoalescingStream(inner)
    await stream.write(HEAD)
    await stream.aclose()
    assert inner.done == ["closed"]
    assert stream.get_extra_info("socket") == "socket"
