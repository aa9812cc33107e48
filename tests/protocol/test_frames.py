"""A stream of bytes is cut into the same frames however it comes."""

import random
import tracemalloc

import pytest

from asgi_agents import AgentError
from asgi_agents.protocol.stream import FrameReader, Framing

MIB = 1024 * 1024


def frames_of(reader: FrameReader, pieces: list[bytes]) -> list[bytes]:
    return [frame for piece in pieces for frame in reader.feed(piece)]


def spelt(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


@pytest.mark.parametrize("seed", range(100))
def test_cuts_make_no_difference(seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311 - not a secret
    frames = [draw.randbytes(draw.choice((1, 2, 3, 4, 5, 100))) for _ in range(8)]
    data = spelt(*frames)
    data += spelt(b"x" * 50)[: draw.randrange(54)]
    reader, position, found = FrameReader(Framing.V2), 0, []
    while position < len(data):
        size = draw.choice((1, 2, 3, 4, 5, 7, 50, 200))
        found += frames_of(reader, [data[position : position + size]])
        position += size
        consumed = len(spelt(*found))
        assert reader.held == min(position, len(data)) - consumed
        assert reader.pending == (reader.held > 0)
    assert found == frames


def test_each_frame_that_is_divided_is_counted_once() -> None:
    reader = FrameReader(Framing.V2)
    frames_of(reader, [spelt(b"a", b"b")])
    assert reader.divided == 0
    frames_of(reader, [spelt(b"abc")[:2], spelt(b"abc")[2:6], spelt(b"abc")[6:] + spelt(b"d")[:1], spelt(b"d")[1:]])
    assert reader.divided == 2
    assert not reader.pending


@pytest.mark.parametrize("pieces", [1, 5])
def test_the_limit_may_change_between_frames(pieces: int) -> None:
    reader = FrameReader(Framing.V2, 10)
    data = spelt(b"x" * 11)
    with pytest.raises(AgentError, match="a frame of 11 bytes, expected 1 to 10"):
        frames_of(reader, [data[start : start + pieces] for start in range(0, len(data), pieces)])
    reader = FrameReader(Framing.V2, 10)
    frames = reader.feed(spelt(b"x" * 10) + data)
    assert next(frames) == b"x" * 10
    reader.max_bytes = 11
    assert list(frames) == [b"x" * 11]


@pytest.mark.parametrize("framing", Framing)
def test_the_limit_is_that_of_the_framing(framing: Framing) -> None:
    reader = FrameReader(framing)
    with pytest.raises(AgentError, match=f"expected 1 to {framing.max_bytes}"):
        frames_of(reader, [(framing.max_bytes + 1).to_bytes(4, "big")])


def test_a_long_frame_is_never_there_twice() -> None:
    piece = bytes(MIB // 4)
    tracemalloc.start()
    try:
        reader = FrameReader(Framing.V2)
        frames = frames_of(reader, [(8 * MIB).to_bytes(4, "big"), *[piece] * 32])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(frame) for frame in frames] == [8 * MIB]
    assert peak < 10 * MIB
