"""Whether a response was whole is what the rest depends on."""

import asyncio

import pytest

from tests.chaos.http_client import Ending, Got, HttpConnection

HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def ask(*answers: bytes, hang: bool = False, patience: float = 10.0) -> list[Got]:
    """What becomes of so many answers on one connection, after which the server closes it."""

    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        if hang:
            await reader.read()
        writer.close()
        ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        connection = HttpConnection(server.sockets[0].getsockname()[1], patience)
        got = [await connection.request("GET", "/", [("x-request-id", "t")]) for _ in answers]
        connection.close()
        await ended.wait()
    return got


@pytest.mark.parametrize(
    ("answer", "ending", "body"),
    [
        (HEAD + b"content-length: 5\r\n\r\nwhole", Ending.COMPLETE, b"whole"),
        (HEAD + b"content-length: 5\r\n\r\nwhol", Ending.CUT, b"whol"),
        (HEAD + b"content-length: 5\r\n\r\n", Ending.CUT, b""),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n3\r\nwho\r\n2\r\nle\r\n0\r\n\r\n", Ending.COMPLETE, b"whole"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n3\r\nwho\r\n2\r\nle\r\n", Ending.CUT, b"whole"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n3\r\nwho\r\n2\r\nl", Ending.CUT, b"whol"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n3\r\nwho\r\n0\r\n", Ending.CUT, b"who"),
        (HEAD + b"\r\nwhole", Ending.UNFRAMED, b"whole"),
        (HEAD, Ending.NOTHING, b""),
        (b"", Ending.NOTHING, b""),
    ],
)
async def test_a_response_is_complete_only_where_its_framing_says_so(
    answer: bytes, ending: Ending, body: bytes
) -> None:
    [got] = await ask(answer)
    assert (got.ending, got.body) == (ending, body)


async def test_what_never_ends_is_told() -> None:
    [got] = await ask(HEAD + b"content-length: 5\r\n\r\nwhol", hang=True, patience=0.05)
    assert got.ending is Ending.HUNG


async def test_a_connection_is_used_again_after_a_complete_response() -> None:
    answer = HEAD + b"X-Token: t\r\ncontent-length: 2\r\n\r\nok"
    assert [(got.ending, got.headers["x-token"]) for got in await ask(answer, answer)] == 2 * [(Ending.COMPLETE, "t")]
