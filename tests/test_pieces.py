"""Pieces of bytes are kept in little more memory than their content."""

import random
import tracemalloc

import pytest

from asgi_agents.memory.pieces import Pieces

SIZE = 256 * 1024


@pytest.mark.parametrize("seed", range(20))
def test_what_comes_out_is_what_went_in(seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311 - not a secret
    pieces, expected, taken = Pieces(), b"", b""
    for _ in range(1000):
        size = draw.choice((0, 1, 2, 5, 1023, 1024, 1025))
        data = draw.randbytes(size)
        pieces.append(data)
        expected += data
        if pieces and draw.random() < 0.2:
            taken += pieces.popleft()
        assert pieces.size == len(expected) - len(taken)
    assert bool(pieces) == (len(taken) < len(expected))
    assert taken + pieces.take() == expected
    assert (pieces.size, len(pieces), bool(pieces), pieces.take()) == (0, 0, False, b"")


@pytest.mark.parametrize("size", [2, 10, 100, 1000, 5000])
def test_small_pieces_take_little_more_memory_than_what_is_in_them(size: int) -> None:
    pieces = Pieces()
    tracemalloc.start()
    try:
        for number in range(SIZE // size):
            pieces.append(bytes([number % 251]) * size)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert pieces.size >= SIZE - size
    assert held < 1.2 * SIZE + 32 * 1024


def test_one_piece_is_not_copied() -> None:
    pieces, data = Pieces(), bytes(SIZE)
    pieces.append(data)
    assert pieces.take() is data
