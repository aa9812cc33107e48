"""Answers that the app has encoded although nobody has asked for that: decoded as they come, judged, and sent plain."""

import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import anyio
import brotli
import pytest
from starlette.types import Message, Receive, Scope, Send

from asgi_agents import FailureMode, ResponseAborted
from asgi_agents.exchange import encoded_answer, text_answer
from tests.guardrails.driving import EVERYTHING
from tests.guardrails.samples import SAMPLES, Cut, Sample, events_of
from tests.guardrails.test_dialects import check, some_texts
from tests.guardrails.wired.exchanging import (
    CHAT,
    ENTITY,
    PATHS,
    SSE,
    Finder,
    Sending,
    SettlingFinder,
    SlowFinder,
    asking,
    blocking,
    one,
    seeded,
)
from tests.guardrails.wired.test_answers import ANSWERS
from tests.guardrails.wired.test_encoded_requests import CODINGS, zstd
from tests.guardrails.wired.test_endings import event
from tests.guardrails.wired.test_requests import message_of
from tests.support.asgi import Client, settle

pytestmark = pytest.mark.anyio

_OUTPUT: Final = {"output"}
_GZIP: Final = (b"content-encoding", b"gzip")


class Flushing:
    """Encodes a stream so that each piece can be decoded as soon as it is there."""

    def __init__(self, coding: str) -> None:
        wbits = zlib.MAX_WBITS | 16 if coding == "gzip" else zlib.MAX_WBITS
        compressor: Any = zstd.ZstdCompressor() if coding == "zstd" else zlib.compressobj(wbits=wbits)
        self._stream = compressor
        self._how: Any = self._stream.FLUSH_BLOCK if coding == "zstd" else zlib.Z_SYNC_FLUSH

    def piece(self, data: bytes) -> bytes:
        return bytes(self._stream.compress(data) + self._stream.flush(self._how))

    def end(self) -> bytes:
        return bytes(self._stream.flush())


class FlushingBrotli(Flushing):
    def __init__(self) -> None:
        self._stream = brotli.Compressor()

    def piece(self, data: bytes) -> bytes:
        return bytes(self._stream.process(data) + self._stream.flush())

    def end(self) -> bytes:
        return bytes(self._stream.finish())


FLUSHING: Final[dict[str, Callable[[], Flushing]]] = {
    "gzip": lambda: Flushing("gzip"),
    "deflate": lambda: Flushing("deflate"),
    "br": FlushingBrotli,
    "zstd": lambda: Flushing("zstd"),
}


def flushed(coding: str, pieces: Sequence[bytes]) -> list[bytes]:
    encoder = FLUSHING[coding]()
    return [*map(encoder.piece, pieces), encoder.end()]


def encoding(*pieces: bytes | float, media_type: str = "application/json", **options: Any) -> Sending:
    """An app whose answer has a content-encoding, and what is wrong for a body that was changed."""
    coding = options.pop("coding", b"gzip")
    headers = [(b"Content-Encoding", coding), (b"etag", b'"x"'), (b"vary", b"accept-encoding")]
    return Sending(pieces, media_type, headers=headers, **options)


def plain(client: Client) -> bool:
    """Whether nothing in its head is about what the app has encoded."""
    names = {name.lower() for name, _ in client.headers}
    return b"content-encoding" not in names and b"etag" not in names and b"vary" in names


class Watching:
    """An app that streams, and notes what its client has after each piece."""

    def __init__(self, client: Client, coding: bytes, pieces: Sequence[bytes]) -> None:
        self._client = client
        self._coding = coding
        self._pieces = pieces
        self.seen: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", SSE.encode()), (b"content-encoding", self._coding)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for index, piece in enumerate(self._pieces):
            more = index < len(self._pieces) - 1
            await send({"type": "http.response.body", "body": piece, "more_body": more})
            self.seen.append(self._client.body)


# Answers that are no streams


@pytest.mark.parametrize(
    ("path", "coding"),
    [*((CHAT, coding) for coding in CODINGS), *((path, b"gzip") for path in ANSWERS if path != CHAT)],
)
async def test_text_is_redacted_and_the_client_is_sent_plain_json(path: str, coding: bytes) -> None:
    body = json.dumps(ANSWERS[path]).encode()
    app = encoding(CODINGS[coding](body), coding=coding, length=True)
    client = await one(app, Finder(), _OUTPUT).call(asking(path, b"{}"))
    assert client.status == 200
    assert client.complete
    assert client.body == body.replace(ENTITY.encode(), b"[0]")
    assert client.header(b"content-length") == b"%d" % len(client.body)
    assert plain(client)


async def test_an_answer_that_nobody_changes_is_sent_as_it_was_judged() -> None:
    body = b'{"detail" :  "fine"}\n'
    app = encoding(gzip.compress(body), length=True)
    client = await one(app, Finder(), _OUTPUT).call(Client("GET", "/x"))
    assert client.body == body
    assert client.header(b"content-length") == b"%d" % len(body)
    assert plain(client)


@pytest.mark.parametrize("seed", range(20))
async def test_it_does_not_matter_how_an_answer_is_cut(seed: int) -> None:
    rng = seeded("encoded answer", seed)
    coding = rng.choice(list(CODINGS))
    body = json.dumps(ANSWERS[CHAT]).encode()
    pieces = Cut(rng).bytes(CODINGS[coding](body), longest=rng.choice([1, 9, 50]))
    app = encoding(*pieces, coding=coding, length=rng.random() < 0.5)
    client = await one(app, Finder(), _OUTPUT).call(asking(CHAT, b"{}"))
    assert client.body == body.replace(ENTITY.encode(), b"[0]")
    assert client.complete


async def test_a_block_answers_with_a_status() -> None:
    app = encoding(gzip.compress(json.dumps(ANSWERS[CHAT]).encode()), length=True)
    client = await one(app, Finder(blocking(ENTITY)), _OUTPUT).call(asking(CHAT, b"{}"))
    assert client.status == 400
    assert message_of(CHAT, client.body) == "the policy says no"


@pytest.mark.parametrize("pieces", [[b""], [], [b"", b""], [gzip.compress(b"")]])
@pytest.mark.parametrize("media_type", ["application/json", "text/plain", SSE])
async def test_an_empty_answer_is_empty(media_type: str, pieces: list[bytes]) -> None:
    app = encoding(*pieces, media_type=media_type)
    client = await one(app, Finder(), _OUTPUT).call(Client("GET", "/x"))
    assert (client.status, client.body, client.complete) == (200, b"", True)
    assert plain(client)


async def test_what_has_no_text_passes_as_it_came() -> None:
    body = gzip.compress(b"\x89PNG")
    app = encoding(body, media_type="image/png", length=True)
    client = await one(app, Finder(), _OUTPUT).call(Client("GET", "/x"))
    assert client.body == body
    assert client.headers == app.response_headers


# Streams


@pytest.mark.parametrize("coding", FLUSHING)
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
async def test_a_stream_is_judged_as_it_is_decoded(sample: Sample, coding: str) -> None:
    rng = seeded(sample.name, coding)
    texts = some_texts(sample, rng)
    cut = Cut(rng)
    data = b"".join(flushed(coding, list(sample.stream(texts, cut))))
    app = encoding(*cut.bytes(data, longest=rng.choice([5, 300])), media_type=sample.media_type, coding=coding.encode())
    guarded = one(app, Finder(EVERYTHING))
    client = await guarded.call(asking(PATHS[sample.name], b'{"stream": true}'))
    assert client.complete
    check(sample, texts, client.body, EVERYTHING)
    assert plain(client)


@pytest.mark.parametrize("coding", FLUSHING)
async def test_each_event_leaves_as_soon_as_it_would_if_it_were_not_encoded(coding: str) -> None:
    events = [event("one, "), event("two, "), event(f"{ENTITY}, "), event("three. "), b"data: [DONE]\n\n"]
    sent: dict[bytes, list[bytes]] = {}
    for name, pieces in ((b"identity", [*events, b""]), (coding.encode(), flushed(coding, events))):
        client = asking(CHAT, b'{"stream": true}')
        app = Watching(client, name, pieces)
        await one(app, SettlingFinder(), _OUTPUT).call(client)
        assert client.complete
        sent[name] = app.seen
    assert sent[coding.encode()] == sent[b"identity"]
    assert b"one, " in sent[b"identity"][1]


async def test_the_head_waits_for_the_first_content() -> None:
    encoder = Flushing("gzip")
    data = encoder.piece(event("hello "))
    client = asking(CHAT, b'{"stream": true}')
    seen: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", SSE.encode()), _GZIP]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        with pytest.raises(RuntimeError, match="already been started"):
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in (data[:10], data[10:], encoder.piece(b"data: [DONE]\n\n")):
            seen.append(len(client.messages))
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        seen.append(len(client.starts))
        await send({"type": "http.response.body", "body": encoder.end(), "more_body": False})

    await one(app, Finder(), _OUTPUT).call(client)
    assert seen[:2] == [0, 0]
    assert seen[-1] == 1
    assert client.complete


async def test_a_block_in_a_stream_ends_it_in_the_clients_terms() -> None:
    pieces = flushed("gzip", [event("fine " * 30), event("not this "), event("nor this"), b"data: [DONE]\n\n"])
    app = encoding(*pieces, media_type=SSE)
    client = await one(app, Finder(blocking("not this")), _OUTPUT).call(asking(CHAT, b'{"stream": true}'))
    assert client.complete
    assert b"not this" not in client.body
    assert list(events_of(client.body))[-1]["choices"][0]["finish_reason"] == "content_filter"


# What can't be decoded


def broken() -> dict[str, tuple[bytes, bytes]]:
    packed = gzip.compress(json.dumps(ANSWERS[CHAT]).encode())
    return {
        "not encoded": (b"gzip", json.dumps(ANSWERS[CHAT]).encode()),
        "unknown": (b"lzma", packed),
        "another": (b"br", packed),
        "encoded once": (b"gzip, gzip", packed),
        "cut short": (b"gzip", packed[:-1]),
        "text behind the end": (b"gzip", packed + b"x"),
        "a bomb": (b"gzip", gzip.compress(b'"' + b" " * 3_000_000 + b'"')),
    }


@pytest.mark.parametrize("what", broken())
@pytest.mark.parametrize("mode", FailureMode)
@pytest.mark.parametrize("length", [True, False])
async def test_an_answer_that_can_not_be_decoded_is_stopped_or_passed_as_it_came(
    length: bool, mode: FailureMode, what: str
) -> None:
    coding, body = broken()[what]
    pieces = [body[: len(body) // 2], body[len(body) // 2 :]]
    app = encoding(*pieces, coding=coding, length=length)
    guarded = one(app, Finder(), _OUTPUT, failure_mode=mode)
    client = await guarded.call(asking(CHAT, b"{}"))
    assert client.complete
    if mode is FailureMode.OPEN:
        assert client.body == body
        assert client.headers == app.response_headers
    else:
        assert client.status == 500
        assert message_of(CHAT, client.body)
        assert ENTITY.encode() not in client.body
    assert guarded.record.guardrails[0].counts == {"unreadable": 1}
    assert guarded.middleware.manager.metrics["g"].in_flight == 0


@pytest.mark.parametrize("mode", FailureMode)
@pytest.mark.parametrize("length", [True, False])
async def test_a_stream_that_is_not_encoded_at_all_is_stopped_or_passed_as_it_came(
    length: bool, mode: FailureMode
) -> None:
    pieces = [event("hello "), event(ENTITY), b"data: [DONE]\n\n"]
    app = encoding(*pieces, media_type=SSE, length=length)
    guarded = one(app, Finder(), _OUTPUT, failure_mode=mode)
    client = await guarded.call(asking(CHAT, b'{"stream": true}'))
    assert client.complete
    if mode is FailureMode.OPEN:
        assert client.body == b"".join(pieces)
        assert client.headers == app.response_headers
    else:
        assert client.status == 500
        assert ENTITY.encode() not in client.body
    assert guarded.record.guardrails[0].counts == {"unreadable": 1}


@pytest.mark.parametrize("mode", FailureMode)
async def test_a_stream_that_can_not_be_decoded_any_more_is_ended_whatever_the_mode(mode: FailureMode) -> None:
    # The client has been told that it is plain, and so the rest can't follow as it is.
    pieces = flushed("gzip", [b"".join([event("hello " * 30)] * 9), event(f"{ENTITY} "), event("bye")])
    app = encoding(*pieces[:2], b"\xff" * 9, pieces[2], media_type=SSE)
    guarded = one(app, Finder(), _OUTPUT, failure_mode=mode)
    client = await guarded.call(asking(CHAT, b'{"stream": true}'))
    assert client.complete
    assert b"hello" in client.body
    assert b"error" in client.body
    assert ENTITY.encode() not in client.body
    assert b"bye" not in client.body
    assert guarded.record.guardrails[0].counts.get("unreadable") == 1


@pytest.mark.parametrize("mode", FailureMode)
async def test_text_that_can_not_be_decoded_any_more_is_cut_off(mode: FailureMode) -> None:
    pieces = flushed("gzip", [b"hello " * 400, b"bye"])
    app = encoding(pieces[0], b"broken", media_type="text/plain")
    client = Client("GET", "/x")
    with pytest.raises(ResponseAborted):
        await one(app, Finder(), _OUTPUT, failure_mode=mode).call(client)
    assert not client.complete
    assert b"bye" not in client.body


async def test_every_beginning_of_a_stream_is_stopped() -> None:
    data = b"".join(flushed("gzip", [event("hello "), event(f"{ENTITY} "), b"data: [DONE]\n\n"]))
    for end in range(1, len(data)):
        app = encoding(data[:end], media_type=SSE)
        guarded = one(app, Finder(), _OUTPUT)
        client = await guarded.call(asking(CHAT, b'{"stream": true}'))
        assert client.complete
        assert client.status == 500 or b'"error"' in client.body, end
        assert ENTITY.encode() not in client.body
        assert guarded.record.guardrails[0].counts.get("unreadable") == 1


@pytest.mark.parametrize("mode", FailureMode)
async def test_an_answer_whose_content_is_too_large(mode: FailureMode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_answer, "MAX_ANSWER_BYTES", 100_000)
    body = gzip.compress(json.dumps([list(range(20_000))]).encode())
    app = encoding(body[:900], body[900:5_000], body[5_000:])
    guarded = one(app, Finder(), _OUTPUT, failure_mode=mode)
    client = await guarded.call(Client("GET", "/x"))
    assert client.complete
    if mode is FailureMode.OPEN:
        assert client.body == body
        assert client.headers == app.response_headers
    else:
        assert client.status == 500
        assert client.body == b"Response too large for security inspection"
    assert guarded.record.guardrails[0].counts == {"unreadable": 1}


@pytest.mark.parametrize("mode", FailureMode)
async def test_many_encoded_bytes_of_little_content(mode: FailureMode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded_answer, "MAX_ORIGINAL_BYTES", 1_000)
    # Blocks of no length, which are flushed again and again.
    encoder = Flushing("gzip")
    pieces = [
        encoder.piece(b'"'),
        *(encoder.piece(b"") + b"\0\0\0\xff\xff" * 100 for _ in range(5)),
        encoder.piece(b'"'),
    ]
    app = encoding(*pieces, encoder.end())
    client = await one(app, Finder(), _OUTPUT, failure_mode=mode).call(Client("GET", "/x"))
    assert client.complete
    assert (client.status == 200) == (mode is FailureMode.OPEN)
    if mode is FailureMode.OPEN:
        assert client.body == b"".join(piece for piece in app.pieces if isinstance(piece, bytes))


# The app's side


async def test_content_that_unpacks_to_much_waits_for_verdicts() -> None:
    compressed = gzip.compress(b"".join(b"%d words of text. " % number for number in range(10_000)))
    app = encoding(compressed, media_type="text/plain")
    guarded = one(app, SlowFinder(seconds=lambda: 0), _OUTPUT, window=5_000)
    client = await guarded.call(Client("GET", "/x"))
    assert client.body == gzip.decompress(compressed)
    assert guarded.record.guardrails[0].held < 200_000


async def test_a_send_that_is_given_up_breaks_the_answer_off() -> None:
    # What was decoded of it is lost.
    pieces = flushed("gzip", [b"hello " * 2_000, b"bye " * 2_000])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain"), _GZIP]})
        with anyio.move_on_after(0.01):
            await send({"type": "http.response.body", "body": pieces[0], "more_body": True})
        await send({"type": "http.response.body", "body": pieces[1] + pieces[2], "more_body": False})

    client = Client("GET", "/x")
    client.take_nothing()
    with pytest.raises(Exception, match=r"broken off|let nothing more"):
        await one(app, Finder(), _OUTPUT).call(client)
    assert not client.complete
    assert b"bye" not in client.body


async def test_what_two_tasks_send_at_a_time_is_not_mixed_up() -> None:
    parts = [b"".join(b"%d. " % number for number in range(start, start + 9_000)) for start in (0, 10_000, 20_000)]
    pieces = flushed("gzip", parts)
    client = Client("GET", "/x")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def aside(message: Message) -> None:
            await send(message)

        headers = [(b"content-type", b"text/plain"), _GZIP]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        client.take_nothing()
        async with anyio.create_task_group() as tasks:
            for piece in pieces:
                message: Message = {"type": "http.response.body", "body": piece, "more_body": True}
                tasks.start_soon(aside, message)
                await settle()
            client.take_everything()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    await one(app, SlowFinder(seconds=lambda: 0), _OUTPUT, window=5_000).call(client)
    assert client.complete
    assert client.body == b"".join(parts)


@pytest.mark.parametrize(("media_type", "kept"), [("application/json", False), (SSE, False), ("image/png", True)])
async def test_the_head_says_to_head_what_it_says_to_get(media_type: str, kept: bool) -> None:
    app = encoding(b"", media_type=media_type)
    client = Client("HEAD", "/x")
    await one(app, Finder(), _OUTPUT).call(client)
    assert (client.header(b"content-encoding") is not None) == kept
