"""Bodies that are compressed are not in a recording, because nobody sees a secret in them. Texts are none of them."""

import bz2
import gzip
import json
import lzma
import zlib
from itertools import product
from urllib.parse import urlencode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asgi_agents.recording.cleaning import Cleaner
from asgi_agents.testing import request_body_chunk_event

SECRET = "zq9S3cretZq9"
BODIES = [
    json.dumps({"password": SECRET}).encode(),
    urlencode({"user": "anna", "pin": SECRET}).encode(),
    json.dumps({"lines": [f"line {number} of some" for number in range(500)], "otp": SECRET}).encode(),
    bytes(range(256)) * 20 + SECRET.encode(),
    b"1",
]
# Two characters of a text with which zlib may begin.
PAIRS = [
    f"{chr(first)}{chr(second)}"
    for first, second in product(range(0x20, 0x7F), range(0x80))
    if first & 0x0F == 8 and first >> 4 <= 7 and not (first << 8 | second) % 31
    if second >= 0x20 or chr(second) in "\t\r\n"
]
STRATEGIES = [zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_FIXED]


def left_out(data: bytes) -> bool:
    cleaned = Cleaner(bodies=True).event(request_body_chunk_event(data))
    assert cleaned.value.data == b"" or not cleaned.left_out
    return bool(cleaned.left_out)


@pytest.mark.parametrize("level", range(-1, 10))
@pytest.mark.parametrize("window", range(9, 16))
def test_zlib_is_known_at_each_level_and_window(level: int, window: int) -> None:
    for body, strategy, memory in product(BODIES, STRATEGIES, (1, 8, 9)):
        made = zlib.compressobj(level, zlib.DEFLATED, window, memory, strategy)
        data = made.compress(body) + made.flush()
        assert left_out(data)
        # Where there is little of it, it has no secret in it.
        for cut in (12, 20, 63, 64, 65, 500, 1023, 1024, 1025):
            assert left_out(data[:cut])


@pytest.mark.parametrize("flush", [zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_BLOCK])
def test_zlib_is_known_in_pieces_that_are_flushed(flush: int) -> None:
    for level in range(10):
        made = zlib.compressobj(level)
        assert left_out(made.compress(BODIES[0]) + made.flush(flush))


def test_zlib_with_a_dictionary_is_known() -> None:
    for level, body in product(range(10), BODIES):
        made = zlib.compressobj(level, zdict=b'{"password": "user": "anna"}')
        assert left_out(made.compress(body) + made.flush())


def test_zlib_that_is_broken_is_known() -> None:
    data = zlib.compress(BODIES[2])
    assert left_out(data[:20] + b"\xff" * 100)


@pytest.mark.parametrize(
    "data",
    [
        *(gzip.compress(BODIES[0]), bz2.compress(BODIES[0]), lzma.compress(BODIES[0])),
        b"\x28\xb5\x2f\xfd\x04\x00" + BODIES[0],
        *(
            bytes([first]) + b"\x2a\x4d\x18\x04\0\0\0abcd\x28\xb5\x2f\xfd\x04\x00" + BODIES[0]
            for first in range(0x50, 0x60)
        ),
        *(bytes([first]) + b"\xb5\x2f\xfd\x04\x00" + BODIES[0] for first in (0x1E, *range(0x22, 0x29))),
    ],
)
def test_what_else_is_compressed_is_known(data: bytes) -> None:
    assert left_out(data)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_text_is_not_taken_for_zlib_by_its_first_letters(pair: str) -> None:
    assert PAIRS
    for rest in (
        *(
            "",
            "=1",
            f"=1&password={SECRET}",
            "a",
            "ckbzrs",
            "KcKc",
            " caf\xe9 ",
            ' {"pin":"1"}',
            "\r\n",
            "\u4e2d\u6587",
        ),
        *(f" and {BODIES[2].decode()}", f"=1&{'a=b&' * 300}pin={SECRET}", f"\n{'password: x, y' * 9}"),
    ):
        text = pair + rest
        cleaned = Cleaner(bodies=True).event(request_body_chunk_event(text))
        assert not cleaned.left_out, text
        assert SECRET not in cleaned.value.data.decode()


@given(st.sampled_from([*PAIRS, "x\u069f", "x\u06a1"]), st.text(st.characters(exclude_categories=["Cc", "Cs"])))
@example("x^", "KcKc")
def test_no_short_text_is_taken_for_zlib(pair: str, rest: str) -> None:
    data = (pair + rest).encode()[:63]
    assert not left_out(data)


@given(st.sampled_from(PAIRS), st.text(max_size=2000))
def test_whatever_a_body_begins_with_it_is_looked_at_or_left_out(pair: str, rest: str) -> None:
    left_out((pair + rest).encode())


def test_numbers_of_a_message_are_not_taken_for_zlib() -> None:
    # Protocol Buffers: a first field with a number is written so.
    for number in range(128):
        assert not left_out(bytes([8, number]) + b"\x12\x20" + b"hello, and something more as well")


def test_only_so_much_of_a_body_is_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int]] = []

    class Watched:
        def __init__(self, *args: object, **kwargs: object) -> None:
            pass

        def decompress(self, data: bytes, most: int) -> bytes:
            given.append((len(data), most))
            return b""

    monkeypatch.setattr(zlib, "decompressobj", Watched)
    assert left_out(zlib.compress(bytes(10**8), 2))
    assert given == [(1024, 1024)]
