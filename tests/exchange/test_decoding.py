"""Content codings, undone in pieces and within bounds."""

import gzip
import random
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from itertools import pairwise

import brotli
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_agents.exchange.decoding import Decoder, UnreadableBody, known_codings
from asgi_agents.exchange.headers import acceptable, codings_of

zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


def bare_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "two members": ("gzip", lambda data: gzip.compress(data[:10]) + gzip.compress(data[10:])),
    "deflate": ("deflate", zlib.compress),
    "bare deflate": ("deflate", bare_deflate),
    "br": ("br", brotli.compress),
    "zstd": ("zstd", zstd.compress),
    "two frames": ("zstd", lambda data: zstd.compress(data[:10]) + zstd.compress(data[10:])),
}
each_encoder = pytest.mark.parametrize(("coding", "encode"), ENCODERS.values(), ids=ENCODERS)


def _noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311 - not a secret


def decode(codings: list[str], *pieces: bytes) -> bytes:
    decoder = Decoder(codings)
    last = len(pieces) - 1
    return b"".join(b"".join(decoder.feed(piece, index == last)) for index, piece in enumerate(pieces))


@each_encoder
@given(cuts=st.lists(st.integers(0, 40_300), max_size=8), seed=st.integers(0, 2**32))
@settings(max_examples=10, deadline=None, derandomize=True, database=None)
def test_whatever_the_cuts_the_content_comes_out(
    coding: str, encode: Callable[[bytes], bytes], cuts: list[int], seed: int
) -> None:
    content = _noise(seed, 40_000) + b"abc" * 10_000
    encoded = encode(content)
    places = sorted({0, len(encoded), *(cut for cut in cuts if cut < len(encoded))})
    pieces = [encoded[start:end] for start, end in pairwise(places)]
    assert decode([coding], *pieces) == content


@each_encoder
def test_what_is_cut_short_or_goes_on_is_unreadable(coding: str, encode: Callable[[bytes], bytes]) -> None:
    encoded = encode(b"some content, not very long")
    for end in range(1, len(encoded)):
        if coding == "gzip" and encoded[end : end + 2] == b"\x1f\x8b":
            continue  # the end of a member
        if coding == "zstd" and encoded[end : end + 4] == b"\x28\xb5\x2f\xfd":
            continue
        with pytest.raises(UnreadableBody):
            decode([coding], encoded[:end])
    for surplus in (b"\x00", b"x", b"surplus"):
        for pieces in ([encoded + surplus], [encoded, surplus]):
            with pytest.raises(UnreadableBody):
                decode([coding], *pieces)


@each_encoder
def test_what_grows_too_much_is_unreadable_long_before_its_end(coding: str, encode: Callable[[bytes], bytes]) -> None:
    bomb = encode(bytes(8 * 1024 * 1024))
    given_out = 0

    def take_all() -> None:
        nonlocal given_out
        for piece in Decoder([coding]).feed(bomb, True):
            given_out += len(piece)

    with pytest.raises(UnreadableBody, match="100 times"):
        take_all()
    assert given_out <= max(100 * len(bomb), 64 * 1024)


def _padded(unit: bytes, times: int, ratio: int) -> bytes:
    """``unit`` so many times, compressed, with noise in the names of empty members: not smaller than by ``ratio``."""
    noise = _noise(1, times * (len(unit) // ratio))
    step = len(noise) // times
    empty = gzip.compress(b"", mtime=0)
    pieces = [
        # RFC 1952, section 2.3.1.1: an extra field.
        empty[:3] + b"\x04" + empty[4:10] + step.to_bytes(2, "little") + noise[place : place + step] + empty[10:]
        for place in range(0, len(noise), step)
    ]
    return gzip.compress(b"".join(unit + piece for piece in pieces), 9)


def test_what_grows_with_every_coding_is_bounded_by_what_came_on_the_wire() -> None:
    zeros = gzip.compress(bytes(64 * 1024), 9)
    # Each coding alone stays below the bound.
    content = _padded(gzip.compress(bytes(4096), 0) + zeros * 60, 10, 50)
    pieces: list[bytes] = []
    with pytest.raises(UnreadableBody, match="grows to more than 100 times"):
        pieces.extend(Decoder(["gzip", "gzip"]).feed(content, True))
    assert not pieces or sum(map(len, pieces)) <= 100 * len(content)


@pytest.mark.parametrize("codings", [1, 2, 3])
def test_empty_members_are_not_for_nothing(codings: int) -> None:
    # Each takes as long as thousands of bytes, and there is room for millions of them in what a few bytes can become.
    data = gzip.compress(b"", mtime=0) * 1000
    for _ in range(codings - 1):
        data = _padded(data, 30, 85)
    decoder = Decoder(["gzip"] * codings)
    begun = time.process_time()
    with suppress(UnreadableBody):
        assert sum(map(len, decoder.feed(data, True))) == 0
    assert sum(layer._layer.members for layer in decoder._layers) <= codings * max(1000, len(data) * 100 // 1024)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("size", [100, 1000])
def test_many_small_members_are_a_body_like_any_other(size: int) -> None:
    content = _noise(1, 200_000).hex().encode()
    encoded = b"".join(gzip.compress(content[start : start + size]) for start in range(0, len(content), size))
    assert b"".join(Decoder(["gzip"]).feed(encoded, True)) == content


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_nonsense_is_unreadable(coding: str) -> None:
    for seed in range(50):
        with pytest.raises(UnreadableBody):
            decode([coding], b"\xff" + _noise(seed, 50))


def test_codings_are_undone_from_the_last_to_the_first() -> None:
    encoded = brotli.compress(gzip.compress(b"content"))
    headers = [(b"Content-Encoding", b"X-GZIP"), (b"content-encoding", b" identity , br")]
    assert decode(list(codings_of(headers)), encoded) == b"content"


@pytest.mark.parametrize("codings", [["compress"], ["gzip", "aws-chunked"], ["gzip"] * 4])
def test_unknown_and_too_many_codings_are_unreadable(codings: list[str]) -> None:
    with pytest.raises(UnreadableBody):
        Decoder(codings)


def test_an_empty_body_is_not_encoded() -> None:
    assert decode(["gzip"], b"") == b""


@pytest.mark.parametrize(
    ("given_value", "left"),
    [
        (b"gzip, deflate, br, zstd", b"gzip, deflate, br, zstd"),
        (b"compress;q=1, gzip;q=0.5, foo", b"gzip;q=0.5"),
        (b"*", b"identity"),
        (b"dcb, identity;q=0", b"identity;q=0"),
        (b"", b"identity"),
    ],
)
def test_only_codings_that_can_be_decoded_are_accepted(given_value: bytes, left: bytes) -> None:
    assert acceptable([(b"Accept-Encoding", given_value), (b"x", b"y")]) == [(b"Accept-Encoding", left), (b"x", b"y")]


def test_gzip_and_deflate_are_always_known() -> None:
    assert {"gzip", "deflate"} <= set(known_codings())
