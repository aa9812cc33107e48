"""A proxy lets everything pass as it is, until it is told otherwise."""

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.chaos.corruption import CHANCES, Speech, Wire
from tests.chaos.proxy import Proxy

FRAMES = [b"\x00\x00\x00\x03\x20{}", b"\x00\x00\x00\x05\x20[12]", b"\x00\x00\x00\x02\x200"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="proxy-") as name:
        yield Path(name)


@asynccontextmanager
async def proxied(place: Path, wire: Wire | None = None) -> AsyncIterator[tuple[Proxy, asyncio.StreamReader]]:
    """A proxy to somebody who says all the frames at once and closes, and what comes through it."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(FRAMES))
        writer.close()

    upstream = await asyncio.start_unix_server(speak, place / "agent")
    proxy = Proxy(str(place / "agent"), Speech.V2, str(place / "proxy"), random.Random(1))  # noqa: S311
    proxy.wire = wire
    assert await proxy.start() == f"unix://{place / 'proxy'}"
    async with upstream:
        reader, writer = await asyncio.open_unix_connection(place / "proxy")
        try:
            yield proxy, reader
        finally:
            writer.close()
            await proxy.stop()


async def test_what_is_said_passes_as_it_is(place: Path) -> None:
    async with proxied(place) as (proxy, reader):
        assert await reader.read(-1) == b"".join(FRAMES)
        assert not proxy.met


async def test_what_trickles_arrives_in_the_end(place: Path) -> None:
    async with proxied(place, Wire.TRICKLE) as (proxy, reader):
        assert await reader.read(-1) == b"".join(FRAMES)
        assert proxy.met == {Wire.TRICKLE: len(FRAMES)}


@pytest.mark.parametrize("wire", [Wire.DUPLICATE, Wire.CUT, Wire.GARBAGE])
async def test_what_is_met_is_counted_and_told_apart_from_what_passes(
    place: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHANCES, wire, 1.0)
    async with proxied(place, wire) as (proxy, reader):
        came = await reader.read(-1)
        assert came != b"".join(FRAMES)
        assert proxy.met[wire] == (1 if wire is Wire.CUT else len(FRAMES))
    if wire is Wire.DUPLICATE:
        assert came == b"".join(2 * frame for frame in FRAMES)
    if wire is Wire.CUT:
        assert len(came) < len(FRAMES[0])


async def test_nobody_behind_it_is_a_connection_that_is_closed(place: Path) -> None:
    proxy = Proxy(str(place / "agent"), Speech.V2, str(place / "proxy"), random.Random(1))  # noqa: S311
    await proxy.start()
    reader, writer = await asyncio.open_unix_connection(place / "proxy")
    assert await reader.read(-1) == b""
    writer.close()
    await proxy.stop()
