"""Answers that are no streams are judged when they are complete."""

import gzip
import json
from typing import Any, Final

import anyio
import pytest

from asgi_agents import FailureMode
from tests.guardrails.detectors import EMAIL
from tests.guardrails.wired.exchanging import (
    CHAT,
    ENTITY,
    Detecting,
    Finder,
    Sending,
    asking,
    blocking,
    failing,
    one,
)
from tests.guardrails.wired.test_requests import message_of
from tests.support.asgi import Client, start

pytestmark = pytest.mark.anyio

_OUTPUT: Final = {"output"}
_TEXT: Final = f"I am {ENTITY}."
ANSWERS: Final[dict[str, Any]] = {
    CHAT: {
        "id": "c",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": _TEXT}, "finish_reason": "stop"}],
    },
    "/v1/responses": {
        "id": "r",
        "object": "response",
        "output": [
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": _TEXT, "annotations": []}],
            }
        ],
    },
    "/v1/messages": {"id": "m", "type": "message", "role": "assistant", "content": [{"type": "text", "text": _TEXT}]},
    "/v1beta/models/g:generateContent": {
        "candidates": [{"content": {"parts": [{"text": _TEXT}], "role": "model"}, "index": 0}]
    },
    "/api/chat": {"model": "m", "message": {"role": "assistant", "content": _TEXT}, "done": True},
    "/anything": {"deep": [{"er": _TEXT, "id": ENTITY, "n": 1.50}]},
}


def answering(path: str, **options: Any) -> Sending:
    return Sending([json.dumps(ANSWERS[path]).encode()], "application/json", length=True, **options)


@pytest.mark.parametrize("path", ANSWERS)
async def test_text_is_redacted_and_the_length_is_right(path: str) -> None:
    for spelt in (json.dumps(ANSWERS[path]), json.dumps(ANSWERS[path], indent=1).replace("@", "\\u0040")):
        whole = spelt.encode()
        app = Sending(
            [whole[:9], whole[9:]], "application/json", headers=[(b"etag", b'"x"'), (b"x-own", b"1")], length=True
        )
        client = await one(app, Finder(), _OUTPUT).call(asking(path, b"{}"))
        assert client.status == 200
        assert client.body == spelt.replace("\\u0040", "@").replace(ENTITY, "[0]").encode()
        assert client.header(b"content-length") == b"%d" % len(client.body)
        assert client.header(b"etag") is None
        assert client.header(b"x-own") == b"1"


async def test_what_nobody_changes_leaves_with_its_own_headers() -> None:
    body = b' {"a" :"caf\\u00e9","a": 1.50e0}\n'
    app = Sending([body], "application/json; charset=utf-8", headers=[(b"etag", b'"x"')], length=True)
    client = await one(app, Finder(), _OUTPUT).call(asking("/x", b"{}"))
    assert client.body == body
    assert client.headers == app.response_headers


@pytest.mark.parametrize("path", ANSWERS)
async def test_a_block_takes_the_place_of_the_answer(path: str) -> None:
    app = answering(path, headers=[(b"etag", b'"x"'), (b"set-cookie", b"a=b")])
    client = await one(app, Finder(blocking(ENTITY)), _OUTPUT).call(asking(path, b"{}"))
    assert client.status == 400
    assert ENTITY.encode() not in client.body
    assert client.header(b"content-length") == b"%d" % len(client.body)
    assert client.header(b"etag") is None
    if path == "/anything":
        assert client.body == b"the policy says no"
    else:
        assert message_of(path, client.body) == "the policy says no"


@pytest.mark.parametrize("path", ANSWERS)
async def test_a_failure_takes_the_place_of_the_answer_or_is_gone_on_without(path: str) -> None:
    for mode in FailureMode:
        app = answering(path)
        client = await one(app, Finder(failing), _OUTPUT, failure_mode=mode).call(asking(path, b"{}"))
        if mode is FailureMode.OPEN:
            assert client.body == app.pieces[0]
            assert client.status == 200
        else:
            assert client.status == 503
            assert client.body == b"Agent unavailable" or message_of(path, client.body) == "Agent unavailable"


@pytest.mark.parametrize("status", [400, 404, 422, 500, 503])
async def test_error_bodies_of_the_app_are_output(status: int) -> None:
    for path, body in (
        (CHAT, {"error": {"message": _TEXT, "type": "x"}}),
        ("/v1/messages", {"type": "error", "error": {"type": "x", "message": _TEXT}}),
        ("/v1/responses", {"error": {"message": _TEXT}}),
        ("/api/chat", {"error": _TEXT}),
        ("/v1beta/models/g:generateContent", {"error": {"code": status, "message": _TEXT}}),
        ("/anything", {"detail": _TEXT}),
    ):
        app = Sending([json.dumps(body).encode()], "application/json", status=status, length=True)
        client = await one(app, Finder(), _OUTPUT).call(asking(path, b"{}"))
        assert client.body == json.dumps(body).replace(ENTITY, "[0]").encode()
        assert client.status == status
    app = Sending([_TEXT.encode()], "text/plain", status=status, length=True)
    client = await one(app, Finder(), _OUTPUT).call(asking(CHAT, b"{}"))
    assert client.body == b"I am [0]."
    assert client.header(b"content-length") == b"9"


async def test_answers_without_a_body_pass() -> None:
    for status in (204, 304):
        app = Sending([], "application/json", status=status, headers=[(b"etag", b'"x"')])
        client = await one(app, Finder(blocking("")), _OUTPUT).call(asking("/x", b"{}"))
        assert client.status == status
        assert client.header(b"etag") == b'"x"'
        assert client.body == b""
    finder = Finder()
    app = answering(CHAT)
    app.pieces.clear()
    client = await one(app, finder, _OUTPUT).call(Client("HEAD", CHAT))
    assert client.status == 200
    assert client.complete
    assert finder.windows == []


@pytest.mark.parametrize("media_type", ["image/png", "audio/mpeg", "video/mp4", "font/woff2"])
async def test_what_is_no_text_passes(media_type: str) -> None:
    app = Sending([b"\x89PNG ", ENTITY.encode()], media_type, headers=[(b"etag", b'"x"')], length=True)
    client = await one(app, Finder(), _OUTPUT).call(Client("GET", "/picture"))
    assert client.body == b"\x89PNG " + ENTITY.encode()
    assert client.headers == app.response_headers
    app = Sending([f"<svg>{ENTITY}</svg>".encode()], "image/svg+xml")
    client = await one(app, Finder(), _OUTPUT).call(Client("GET", "/picture"))
    assert client.body == b"<svg>[0]</svg>"


@pytest.mark.parametrize(
    "media_type", [None, "nonsense", "application/x-what", "application/octet-stream", "text/html"]
)
async def test_text_of_an_unknown_type_is_judged(media_type: str | None) -> None:
    app = Sending([_TEXT.encode()[:12], _TEXT.encode()[12:]], media_type)
    client = await one(app, Finder(), _OUTPUT).call(Client("GET", "/x"))
    assert client.body == b"I am [0]."


@pytest.mark.parametrize("media_type", ["application/octet-stream", "application/json", "text/plain", None])
async def test_what_is_no_text_of_an_unknown_type_is_stopped_or_passed_and_counted(media_type: str | None) -> None:
    for mode in FailureMode:
        app = Sending([b"\xff\xfe\x00binary"], media_type, length=True)
        guarded = one(app, Finder(), _OUTPUT, failure_mode=mode)
        client = await guarded.call(Client("GET", "/x"))
        assert client.complete
        if mode is FailureMode.OPEN:
            assert client.body == b"\xff\xfe\x00binary"
            assert client.status == 200
        else:
            assert (client.status or 0) >= 500
            assert b"binary" not in client.body
        assert guarded.record.guardrails[0].counts == {"unreadable": 1}


async def test_an_answer_without_an_end_in_its_json_is_stopped_or_passed_and_counted() -> None:
    for body in (b'{"a": ', b'{"a": "b"} x', b"[" * 100_000):
        for mode in FailureMode:
            app = Sending([body], "application/json", length=True)
            guarded = one(app, Finder(), _OUTPUT, failure_mode=mode)
            client = await guarded.call(asking(CHAT, b"{}"))
            assert (client.body == body) == (mode is FailureMode.OPEN)
            assert guarded.record.guardrails[0].counts == {"unreadable": 1}


async def test_the_app_is_not_asked_for_an_encoding_a_range_or_a_path() -> None:
    app = answering(CHAT)
    headers = [
        (b"accept-encoding", b"gzip"),
        (b"Range", b"bytes=0-9"),
        (b"if-range", b'"x"'),
        (b"accept", b"*/*"),
    ]
    extensions: dict[str, Any] = {
        "http.response.pathsend": {},
        "http.response.zerocopysend": {},
        "http.response.trailers": {},
    }
    client = asking(CHAT, b"{}", headers=headers, extensions=extensions)
    await one(app, Finder(), _OUTPUT).call(client)
    names = {name.lower() for name, _ in app.scope["headers"]}
    assert b"accept" in names
    assert b"range" not in names
    assert b"if-range" not in names
    assert app.header(b"accept-encoding") in (None, b"identity")
    assert set(app.scope["extensions"]) == {"http.response.trailers"}
    # What the server offers is as it was.
    assert set(client.scope["extensions"]) == set(extensions)
    assert (b"Range", b"bytes=0-9") in client.scope["headers"]


async def test_where_nobody_judges_answers_the_app_is_asked_for_what_the_client_asks() -> None:
    app = Sending([gzip.compress(b"x")], "text/plain", headers=[(b"content-encoding", b"gzip")])
    client = asking(CHAT, b"{}", headers=[(b"accept-encoding", b"gzip")], extensions={"http.response.pathsend": {}})
    await one(app, Finder(), {"input"}).call(client)
    assert app.header(b"accept-encoding") == b"gzip"
    assert "http.response.pathsend" in app.scope["extensions"]
    assert gzip.decompress(client.body) == b"x"


@pytest.mark.parametrize("media_type", ["application/json", "text/event-stream", "text/plain"])
async def test_an_answer_in_an_unknown_coding_is_stopped_or_passed_and_counted(media_type: str) -> None:
    body = json.dumps(ANSWERS[CHAT]).encode()
    for mode in FailureMode:
        for length in (True, False):
            app = Sending([body[:9], body[9:]], media_type, headers=[(b"content-encoding", b"lzma")], length=length)
            guarded = one(app, Finder(), _OUTPUT, failure_mode=mode)
            client = await guarded.call(asking(CHAT, b"{}"))
            assert client.complete
            if mode is FailureMode.OPEN:
                assert client.body == body
                assert client.headers == app.response_headers
            else:
                assert (client.status or 0) >= 500
                assert message_of(CHAT, client.body)
            assert guarded.record.guardrails[0].counts == {"unreadable": 1}
            assert guarded.middleware.manager.metrics["g"].in_flight == 0


async def test_an_answer_that_is_too_large_is_stopped_or_passed_and_counted() -> None:
    pieces: list[bytes | float] = [b'"', *(b"x" * 1024 * 1024 for _ in range(17)), b'"']
    for mode in FailureMode:
        app = Sending(pieces, "application/json")
        guarded = one(app, Finder(), _OUTPUT, failure_mode=mode)
        client = await guarded.call(Client("GET", "/x"))
        assert client.complete
        assert (client.status == 200) == (mode is FailureMode.OPEN)
        assert (client.body == b"".join(piece for piece in pieces if isinstance(piece, bytes))) == (
            mode is FailureMode.OPEN
        )
        assert guarded.record.guardrails[0].counts == {"unreadable": 1}


@pytest.mark.slow
@pytest.mark.parametrize("media_type", ["text/plain", "text/event-stream", "application/x-ndjson"])
async def test_a_length_that_was_declared_is_right_or_left_out(media_type: str) -> None:
    text = f"I am {ENTITY}. " + "some words " * 100
    line = {"text/plain": text, "text/event-stream": f"data: {text}\n\n", "application/x-ndjson": f'"{text}"\n'}
    for count in (1, 1000):
        pieces: list[bytes | float] = [line[media_type].encode() * min(count, 100)] * max(1, count // 100)
        app = Sending(pieces, media_type, headers=[(b"etag", b'"x"')], length=True)
        client = await one(app, Finder(), _OUTPUT).call(Client("GET", "/x"))
        assert client.body == line[media_type].replace(ENTITY, "[0]").encode() * count
        assert client.header(b"content-length") in (None, b"%d" % len(client.body))
        assert client.header(b"etag") is None


async def test_trailers_and_early_hints_pass() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.early_hint", "links": [b"x"]})
        await send({**start(200, (b"content-type", b"application/json")), "trailers": True})
        await send({"type": "http.response.body", "body": json.dumps(_TEXT).encode()})
        await send({"type": "http.response.trailers", "headers": [(b"a", b"b")]})

    client = Client(
        "GET", "/x", extensions={"http.response.trailers": {}, "http.response.early_hint": {}}, lenient=True
    )
    await one(app, Finder(), _OUTPUT).call(client)
    assert [message["type"] for message in client.messages] == [
        "http.response.early_hint",
        "http.response.start",
        "http.response.body",
        "http.response.trailers",
    ]
    assert client.body == b'"I am [0]."'
    assert client.starts[0]["trailers"] is True


@pytest.mark.parametrize("action", ["redact", "block", "flag"])
async def test_what_is_done_about_detections_is_the_action(action: Any) -> None:
    app = answering(CHAT)
    guarded = one(app, Detecting(EMAIL, None), _OUTPUT, action=action)
    client = await guarded.call(asking(CHAT, b"{}"))
    match action:
        case "redact":
            assert client.body == app.pieces[0].replace(ENTITY.encode(), b"[email]")  # type: ignore[union-attr]
        case "block":
            assert client.status == 400
            assert message_of(CHAT, client.body) == "email"
        case "flag":
            assert client.body == app.pieces[0]
    assert guarded.record.guardrails[0].counts == {action: 1}


@pytest.mark.parametrize("blank", [[b"  "], [b"\n", b" \t", b"\r\n"], [b" "] * 300])
@pytest.mark.parametrize("length", [True, False])
async def test_white_space_before_json_that_is_not_called_json_is_a_part_of_it(
    blank: list[bytes], length: bool
) -> None:
    for said, expected in (("fine", "fine"), ("\\u0061lice.smith@example.com", "[0]")):
        app = Sending([*blank, f'{{"a": "{said}"}}'.encode()], None, length=length)
        client = asking("/x", b"{}")
        with anyio.fail_after(10):
            await one(app, Finder(), _OUTPUT).call(client)
        assert client.body == b"".join(blank) + f'{{"a": "{expected}"}}'.encode()
        assert client.header(b"content-length") in (None, b"%d" % len(client.body))


async def test_white_space_alone_leaves_as_it_came() -> None:
    for length in (True, False):
        for pieces in ([b" "], [b" "] * 5, [b" " * 1000] * 40):
            client = await one(Sending([*pieces], None, length=length), Finder(), _OUTPUT).call(asking("/x"))
            assert client.body == b"".join(pieces)
            assert client.header(b"content-length") in (None, b"%d" % len(client.body))
