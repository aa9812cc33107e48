"""Requests with a content-encoding: what is in them is judged, and the app is given what was judged."""

import gzip
import json
import sys
import zlib
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, Final

import brotli
import pytest

from asgi_agents import FailureMode
from asgi_agents.exchange import text_request
from asgi_agents.guardrails import models
from tests.guardrails.wired.exchanging import CHAT, ENTITY, Finder, Sending, asking, blocking, one, seeded
from tests.guardrails.wired.test_requests import BODIES, FORM, hello, message_of
from tests.support.asgi import Client

pytestmark = pytest.mark.anyio

_INPUT: Final = {"input"}
zstd: Any = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


def bare_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


#: Content-encodings, and how a body is encoded so.
CODINGS: Final[dict[bytes, Callable[[bytes], bytes]]] = {
    b"gzip": gzip.compress,
    b"GZip": gzip.compress,
    b"x-gzip": gzip.compress,
    b"deflate": zlib.compress,
    b"Deflate": bare_deflate,
    b"br": brotli.compress,
    b"zstd": zstd.compress,
    b"identity, gzip": gzip.compress,
    b"gzip, br": lambda data: brotli.compress(gzip.compress(data)),
    b"deflate,gzip ,zstd": lambda data: zstd.compress(gzip.compress(zlib.compress(data))),
}


def encoded(coding: bytes, body: bytes, path: str = CHAT, media_type: str | None = "application/json") -> Client:
    return asking(path, body, media_type, headers=[(b"Content-Encoding", coding), (b"content-digest", b"sha-256=:x=:")])


def judged_as(app: Sending, expected: bytes) -> None:
    """The app has received a plain body, whatever it goes by."""
    assert app.body == expected
    assert app.header(b"content-encoding") is None
    assert app.header(b"content-length") == b"%d" % len(expected)
    assert app.header(b"content-digest") is None


@pytest.mark.parametrize(
    ("path", "coding"), [*((CHAT, coding) for coding in CODINGS), *((path, b"gzip") for path in BODIES if path != CHAT)]
)
async def test_text_is_redacted_and_the_app_is_given_plain_json(path: str, coding: bytes) -> None:
    app = hello()
    body = json.dumps(BODIES[path]).encode()
    client = await one(app, Finder(), _INPUT).call(encoded(coding, CODINGS[coding](body), path))
    assert client.body == b"hello"
    judged_as(app, body.replace(ENTITY.encode(), b"[0]"))


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_body_that_nobody_changes_is_given_to_the_app_as_it_was_judged(coding: bytes) -> None:
    # Decoders differ in what they make of members, frames and what is behind them.
    app = hello()
    body = b'{"messages" :  [{"role": "user", "content": "fine"}]}\n'
    await one(app, Finder(), _INPUT).call(encoded(coding, CODINGS[coding](body)))
    judged_as(app, body)


async def test_all_members_are_judged() -> None:
    app = hello()
    body = json.dumps(BODIES[CHAT]).encode()
    parts = [body[:30], body[30:60], b"", body[60:]]
    await one(app, Finder(), _INPUT).call(encoded(b"gzip", b"".join(map(gzip.compress, parts))))
    judged_as(app, body.replace(ENTITY.encode(), b"[0]"))


@pytest.mark.parametrize("seed", range(20))
async def test_it_does_not_matter_how_the_body_is_cut(seed: int) -> None:
    rng = seeded("encoded", seed)
    coding = rng.choice(list(CODINGS))
    body = json.dumps({"messages": [{"role": "user", "content": f"{rng.random()} {ENTITY}"}]}).encode()
    data = CODINGS[coding](body)
    places = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(12)))
    pieces = [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
    app = hello()
    client = Client(
        "POST", CHAT, headers=[(b"content-type", b"application/json"), (b"content-encoding", coding)], body=pieces
    )
    await one(app, Finder(), _INPUT).call(client)
    assert app.body == body.replace(ENTITY.encode(), b"[0]")
    assert app.header(b"content-encoding") is None
    assert app.header(b"content-length") is None


@pytest.mark.parametrize(
    ("media_type", "body", "after"),
    [
        ("text/plain", f"I am {ENTITY}".encode(), b"I am [0]"),
        (FORM, b"a=1&b=alice.smith%40example.com", b"a=1&b=%5B0%5D"),
        (None, f"I am {ENTITY}".encode(), b"I am [0]"),
        (None, json.dumps([ENTITY]).encode(), b'["[0]"]'),
    ],
)
async def test_other_forms_are_judged_as_well(media_type: str | None, body: bytes, after: bytes) -> None:
    app = hello()
    await one(app, Finder(), _INPUT).call(encoded(b"gzip", gzip.compress(body), "/x", media_type))
    judged_as(app, after)


@pytest.mark.parametrize("kind", ["tool_call", "tool_result"])
async def test_text_of_other_kinds_is_judged_as_well(kind: str) -> None:
    app = hello()
    body = {"messages": [{"role": "tool", "tool_call_id": "1", "content": ENTITY}]}
    await one(app, Finder(), {kind}).call(encoded(b"gzip", gzip.compress(json.dumps(body).encode())))
    assert (ENTITY.encode() in app.body) == (kind == "tool_call")
    assert app.header(b"content-encoding") is None


async def test_a_block_answers_in_the_clients_terms() -> None:
    app = hello()
    body = gzip.compress(json.dumps(BODIES[CHAT]).encode())
    client = await one(app, Finder(blocking(ENTITY)), _INPUT).call(encoded(b"gzip", body))
    assert client.status == 400
    assert message_of(CHAT, client.body) == "the policy says no"
    assert app.calls == 0


async def test_an_empty_body_is_none_whatever_its_head_says() -> None:
    app = hello()
    client = Client("POST", CHAT, headers=[(b"content-encoding", b"gzip")], body=[b"", b""])
    await one(app, Finder(), _INPUT).call(client)
    assert client.body == b"hello"
    assert app.header(b"content-encoding") == b"gzip"


async def test_content_that_is_empty_is_given_to_the_app_as_such() -> None:
    app = hello()
    client = await one(app, Finder(), _INPUT).call(encoded(b"gzip", gzip.compress(b""), "/x", "text/plain"))
    assert client.body == b"hello"
    judged_as(app, b"")


# What can't be decoded


@cache
def hostile() -> dict[str, tuple[bytes, bytes]]:
    body = json.dumps(BODIES[CHAT]).encode()
    packed = gzip.compress(body)
    spaces = b'{"messages": [' + b" " * 4_000_000 + b"]}"
    return {
        "not encoded": (b"gzip", body),
        "another coding": (b"br", packed),
        "unknown": (b"lzma", packed),
        "unknown with another": (b"gzip, aes128gcm", packed),
        "with a parameter": (b"gzip;q=1", packed),
        "in quotes": (b'"gzip"', packed),
        "a list that is none": (b"gzip deflate", packed),
        "the order is wrong": (b"br, gzip", brotli.compress(packed)),
        "encoded once": (b"gzip, gzip", packed),
        "four times": (b"gzip, gzip, gzip, gzip", gzip.compress(gzip.compress(gzip.compress(packed)))),
        "cut short": (b"gzip", packed[:-1]),
        "no checksum": (b"gzip", packed[:-8]),
        "the head alone": (b"gzip", packed[:10]),
        "one byte": (b"gzip", b"\x1f"),
        "a wrong checksum": (b"gzip", packed[:-8] + b"\0\0\0\0" + packed[-4:]),
        "text behind the end": (b"gzip", packed + b'{"messages": []}'),
        "zeros behind the end": (b"gzip", packed + bytes(8)),
        "text behind the end, deflate": (b"deflate", zlib.compress(body) + b"x"),
        "text behind the end, br": (b"br", brotli.compress(body) + b"x"),
        "text behind the end, zstd": (b"zstd", zstd.compress(body) + b"x"),
        "cut short, br": (b"br", brotli.compress(body)[:-1]),
        "cut short, zstd": (b"zstd", zstd.compress(body)[:-1]),
        "a bomb": (b"gzip", gzip.compress(spaces)),
        "a bomb, br": (b"br", brotli.compress(spaces)),
        "a bomb, zstd": (b"zstd", zstd.compress(spaces)),
        "a bomb of two codings": (b"gzip, gzip", gzip.compress(gzip.compress(spaces * 5))),
        "a bomb of members": (b"gzip", gzip.compress(b"") * 100_000),
        "a bomb of frames": (b"zstd", zstd.compress(b"") * 100_000),
    }


@pytest.mark.parametrize("mode", FailureMode)
@pytest.mark.parametrize("what", hostile())
async def test_what_can_not_be_decoded_is_the_clients_400(what: str, mode: FailureMode) -> None:
    coding, body = hostile()[what]
    app = hello()
    guarded = one(app, Finder(), _INPUT, failure_mode=mode)
    client = await guarded.call(encoded(coding, body))
    assert client.status == 400, what
    assert message_of(CHAT, client.body).startswith("The request body can't be read: ")
    assert ENTITY not in client.body.decode()
    assert app.calls == 0
    (entry,) = guarded.record.guardrails
    assert entry.counts == {"unreadable": 1}
    # It is the client's fault.
    assert guarded.middleware.manager.metrics["g"].calls == 0


@pytest.mark.parametrize("mode", FailureMode)
async def test_content_of_more_than_the_limit_is_as_a_body_of_more(
    mode: FailureMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_request, "MAX_REQUEST_BYTES", 2_000)
    body = json.dumps({"messages": [{"role": "user", "content": f"{ENTITY} {list(range(900))}"}]}).encode()
    packed = gzip.compress(body)
    assert len(packed) < 2_000 < len(body)
    app = hello()
    client = await one(app, Finder(), _INPUT, failure_mode=mode).call(encoded(b"gzip", packed))
    if mode is FailureMode.CLOSED:
        assert client.status == 413
        assert app.calls == 0
    else:
        # As it came: nobody has judged it.
        assert app.body == packed
        assert app.header(b"content-encoding") == b"gzip"
        assert app.header(b"content-length") == b"%d" % len(packed)


async def test_every_beginning_of_a_body_is_refused() -> None:
    body = json.dumps(BODIES[CHAT]).encode()
    for coding in (b"gzip", b"deflate", b"br", b"zstd"):
        data = CODINGS[coding](body)
        for end in range(1, len(data)):
            app = hello()
            client = await one(app, Finder(), _INPUT).call(encoded(coding, data[:end]))
            assert client.status == 400, (coding, end)
            assert app.calls == 0


# Where nobody judges requests


async def test_a_body_that_nobody_needs_passes_as_it_came() -> None:
    for coding, body in ((b"gzip", gzip.compress(b"{}")), (b"gzip", b"broken"), (b"lzma", b"?")):
        app = hello()
        await one(app, Finder(), {"output"}).call(encoded(coding, body))
        assert app.body == body
        assert app.header(b"content-encoding") == coding


async def test_the_model_is_known_although_the_request_is_encoded() -> None:
    body = json.dumps({"model": "gpt-4o", "messages": []}).encode()
    for policy, judged in ((models("gpt-*"), True), (models("claude-*"), False), (~models("gpt-*"), False)):
        app = Sending([json.dumps([ENTITY]).encode()], "application/json")
        client = await one(app, Finder(), {"output"}, when=policy).call(encoded(b"gzip", gzip.compress(body)))
        assert (ENTITY.encode() not in client.body) == judged
        judged_as(app, body)


async def test_where_nobody_judges_requests_the_app_may_make_of_it_what_it_can() -> None:
    app = hello()
    await one(app, Finder(), {"output"}, when=models("gpt-*")).call(encoded(b"gzip", b"broken"))
    assert app.body == b"broken"
    assert app.header(b"content-encoding") == b"gzip"
    assert app.header(b"content-length") == b"6"
