"""The head of a request and its body leave together."""

from typing import Any

import httpcore
import pytest

from asgi_agents.transports.one_write import OneWriteStream

HEAD = b"POST / HTTP/1.1\r\nhost: agent\r\ncontent-length: 4\r\n\r\n"


class Line(httpcore.AsyncNetworkStream):
    """Remembers what is done to it."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.done.append(buffer)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self.done.append("read")
        return b"answer"

    async def aclose(self) -> None:
        self.done.append("closed")

    def get_extra_info(self, info: str) -> Any:
        return info


async def test_head_and_body_are_one_write() -> None:
    line = Line()
    stream = OneWriteStream(line)
    await stream.write(HEAD)
    await stream.write(b"body")
    await stream.write(b"")
    assert await stream.read(100) == b"answer"
    assert line.done == [HEAD + b"body", "read"]


@pytest.mark.parametrize("body", [b"", b"more\r\n\r\n"])
async def test_nothing_is_kept_back_while_an_answer_is_waited_for(body: bytes) -> None:
    line = Line()
    stream = OneWriteStream(line)
    await stream.write(HEAD)
    await stream.write(body)
    await stream.read(100)
    await stream.read(100)
    assert line.done == [HEAD + body, "read", "read"]


async def test_a_second_request_is_written_like_the_first() -> None:
    line = Line()
    stream = OneWriteStream(line)
    for _ in range(2):
        await stream.write(HEAD)
        await stream.write(b"body")
        await stream.read(100)
    assert line.done == [HEAD + b"body", "read"] * 2


async def test_what_was_not_sent_when_it_is_closed_is_not_sent_any_more() -> None:
    line = Line()
    stream = OneWriteStream(line)
    await stream.write(HEAD)
    await stream.aclose()
    assert line.done == ["closed"]
    assert stream.get_extra_info("socket") == "socket"
