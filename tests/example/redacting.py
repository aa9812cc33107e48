"""What the tests of the redactors share: secrets, cuts, and how a client reads what comes out."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from example_app.redaction import Redactor

steady = settings(deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])

SECRETS = (
    *("alice.smith+shop@mail.example.co.uk", "bob@example.org", "hello@yahoo.com", "a@b.cc"),
    *("4111 1111 1111 1111", "4111-1111-1111-1111", "4111111111111111", "3782 822463 10005", "378282246310005"),
    *("+1 202 555 0143", "+49 (0)30 1234567", "(202) 555-0143", "202-555-0143", "+12025550143"),
)


def fed(redactor: Redactor, chunks: Sequence[bytes]) -> bytes:
    return b"".join(redactor.feed(chunk, index == len(chunks) - 1) for index, chunk in enumerate(chunks))


def bytewise(body: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in body] or [b""]


@st.composite
def cut(draw: st.DrawFn, body: bytes) -> list[bytes]:
    """``body`` in pieces, some of them empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=12)))
    return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


class Pairs(list[tuple[str, Any]]):
    """An object's members, with all that have the same name."""


def read(document: str | bytes) -> Any:
    """A document with everything that is in it: numbers as they are spelt, members as they stand."""
    return json.loads(document, object_pairs_hook=Pairs, parse_int=Number, parse_float=Number)


class Number(str):
    """As it is spelt."""

    __slots__ = ()


def scalars(value: Any) -> Iterator[str]:
    """All keys, strings and numbers."""
    match value:
        case Pairs():
            for key, item in value:
                yield key
                yield from scalars(item)
        case list():
            for item in value:
                yield from scalars(item)
        case str():
            yield value


def spelt(draw: st.DrawFn, text: str) -> str:
    """``text`` as a string of JSON, in any of its spellings."""
    out = []
    for char in text:
        escaped = "".join(f"\\u{unit:04x}" for unit in _units(char))
        choices = [escaped, escaped.replace("a", "A").replace("b", "B"), json.dumps(char)[1:-1]]
        if not "\ud800" <= char <= "\udfff":
            choices.append(json.dumps(char, ensure_ascii=False)[1:-1])
        out.append(draw(st.sampled_from(choices)) if draw(st.booleans()) else choices[-1])
    return f'"{"".join(out)}"'


def _units(char: str) -> list[int]:
    data = char.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]
