"""Where the package does something else than the contract of text guardrails. Each test says what should be."""

import gzip
import json
from typing import Any, Final

import pytest

from asgi_agents import FailureMode
from asgi_agents.errors import ResponseAborted
from tests.guardrails.wired.exchanging import CHAT, ENTITY, Finder, Sending, SlowFinder, asking, blocking, one
from tests.guardrails.wired.test_endings import Listening, event, refuses
from tests.guardrails.wired.test_requests import ESCAPED, FORM, hello

pytestmark = pytest.mark.anyio

_INPUT: Final = {"input"}
_OUTPUT: Final = {"output"}


def finding(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, reason=reason)


async def test_what_passes_unread_is_counted_also_where_what_follows_is_stopped() -> None:
    for find in (blocking("bad"), None):
        app = Sending([event("fine, "), b"data: {nonsense\n\n", event("so fine. " * 99), event("bad")])
        agent = Finder() if find is None else Finder(find)
        guarded = one(app, agent, _OUTPUT, failure_mode=FailureMode.OPEN)
        client = await guarded.call(asking(CHAT, b"{}"))
        assert b"nonsense" in client.body
        assert (b'"bad"' in client.body) == (find is None)
        assert guarded.record.guardrails[0].counts["unreadable"] == 1
        assert guarded.record.guardrails[0].counts.get("block", 0) == (find is not None)


# Requests


async def test_fields_of_a_form_are_judged_decoded() -> None:
    app = hello()
    await one(app, Finder(), _INPUT).call(asking("/x", b"a=alice.smith%40example.com&b=1", FORM))
    assert app.body == b"a=%5B0%5D&b=1"
    assert app.header(b"content-length") == b"13"


async def test_fields_of_a_form_that_nobody_changes_stay_as_they_are() -> None:
    app = hello()
    await one(app, Finder(), _INPUT).call(asking("/x", b"a&b=x%20y&c=alice.smith%40example.com&d=%2f~", FORM))
    assert app.body.startswith(b"a&b=x%20y&c=")
    assert app.body.endswith(b"&d=%2f~")


async def test_what_is_json_and_a_form_at_once_is_judged_as_both() -> None:
    app = hello()
    # As a form, its field has an address; as JSON, it has one with an escape.
    body = f'{{"a": "{ESCAPED}", "b": "=alice.smith%40example.com&"}}'.encode()
    await one(app, Finder(), _INPUT).call(asking("/x", body, FORM))
    assert app.calls == 0 or (ESCAPED.encode() not in app.body and b"smith%40" not in app.body)


@pytest.mark.parametrize("coding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-8-sig"])
@pytest.mark.parametrize("media_type", ["text/plain", FORM, None])
async def test_json_in_other_encodings_is_judged_whatever_its_type_is_said_to_be(
    media_type: str | None, coding: str
) -> None:
    # Starlette's `request.json()` asks for no type, and `json.loads` reads all of these from bytes.
    app = hello()
    body = json.dumps({"a": ENTITY}).replace(ENTITY, ESCAPED).encode(coding)
    client = await one(app, Finder(), _INPUT).call(asking("/x", body, media_type))
    assert client.status == 400 or json.loads(app.body)["a"] == "[0]"


async def test_a_form_is_judged_as_one_if_any_content_type_says_so() -> None:
    app = hello()
    client = asking("/x", b"a=alice.smith%40example.com", "text/plain", headers=[(b"content-type", FORM.encode())])
    await one(app, Finder(), _INPUT).call(client)
    assert app.calls == 0 or b"smith%40" not in app.body


_CALLED: Final = {
    "messages": [
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"to": ENTITY})}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": ENTITY},
    ]
}


@pytest.mark.parametrize("kind", ["tool_call", "tool_result"])
async def test_an_encoded_request_is_judged_whatever_kind_is_judged(kind: str) -> None:
    app = hello()
    body = gzip.compress(json.dumps(_CALLED).encode())
    client = asking(CHAT, body, headers=[(b"content-encoding", b"gzip")])
    await one(app, Finder(), {kind}).call(client)
    assert app.body.count(ENTITY.encode()) == 1
    assert app.header(b"content-encoding") is None


@pytest.mark.parametrize("kind", ["tool_call", "tool_result"])
@pytest.mark.parametrize("media_type", ["text/plain", FORM])
async def test_json_that_is_called_text_is_judged_whatever_kind_is_judged(media_type: str, kind: str) -> None:
    app = hello()
    await one(app, Finder(), {kind}).call(asking("/proxy", json.dumps(_CALLED).encode(), media_type))
    assert app.body.count(ENTITY.encode()) == 1


# Answers


@pytest.mark.parametrize("path", [CHAT, "/proxy"])
@pytest.mark.parametrize("media_type", [None, "text/plain", "text/html", "application/octet-stream"])
async def test_a_stream_of_events_is_judged_as_such_or_stopped_whatever_its_type(
    media_type: str | None, path: str
) -> None:
    # `StreamingResponse(events())` has no content-type, and the clients of the dialect read it all the same.
    app = Sending(
        [event("I am alice.smith@"), event("example.com"), event(", hello."), b"data: [DONE]\n\n"], media_type
    )
    client = asking(path, b'{"messages": [], "stream": true}')
    try:
        await one(app, Finder(), _OUTPUT).call(client)
    except Exception:
        assert not client.complete
    assert b"alice.smith@" not in client.body


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/octet-stream"])
async def test_an_answer_of_json_is_judged_as_such_whatever_its_type(media_type: str | None) -> None:
    body = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": ENTITY}}]})
    for length in (True, False):
        app = Sending([body.replace(ENTITY, ESCAPED).encode()], media_type, length=length)
        client = await one(app, Finder(), _OUTPUT).call(asking(CHAT, b"{}"))
        assert ESCAPED.encode() not in client.body


# Endings


async def test_an_app_that_has_noticed_is_not_cancelled() -> None:
    # On trio the server's own disconnect, which follows the end of the answer, arrives first.
    app = Listening(heeds=True)
    await one(app, SlowFinder(refuses), hold=0).call(asking(CHAT, b"{}"))
    assert app.left_at is not None
    assert not app.cancelled


async def test_an_app_whose_answer_is_broken_off_is_cancelled_after_the_grace_although_it_has_noticed() -> None:
    # See stop_grace of AgentMiddleware.
    app = Listening(heeds=True, media_type="text/plain")
    with pytest.raises(ResponseAborted):
        await one(app, SlowFinder(refuses), hold=0).call(asking("/text", b"{}"))
    assert app.ended is not None
    assert app.left_at is not None
    assert app.ended - app.left_at < 1.1


# What a dialect does not know

_EXTRA: Final[list[dict[str, Any]]] = [
    {"messages": []},
    {"type": "message"},
    {"choices": []},
    {"candidates": []},
    {"object": "response"},
    {"type": "start"},
]


@pytest.mark.parametrize("number", range(len(_EXTRA)))
async def test_no_member_that_a_client_adds_keeps_the_others_from_being_judged(number: int) -> None:
    app = hello()
    body = {"question": f"I am {ENTITY}", **_EXTRA[number]}
    await one(app, Finder(), _INPUT).call(asking("/ask", json.dumps(body).encode()))
    assert ENTITY.encode() not in app.body


@pytest.mark.parametrize(
    "path", ["/api/chat", "/api/generate", "/surveys/7/responses", "/ask/completions", "/ask/v1/messages"]
)
async def test_a_request_that_has_not_the_shape_of_the_dialect_of_its_path_is_json_of_unknown_shape(path: str) -> None:
    app = hello()
    await one(app, Finder(), _INPUT).call(asking(path, json.dumps({"question": f"I am {ENTITY}"}).encode()))
    assert ENTITY.encode() not in app.body


async def test_messages_of_the_ai_sdk_are_judged_where_it_posts_them() -> None:
    app = hello()
    message = {"id": "m", "role": "user", "parts": [{"type": "text", "text": f"I am {ENTITY}"}]}
    body = {"id": "c", "messages": [message], "trigger": "submit-message"}
    await one(app, Finder(), _INPUT).call(asking("/api/chat", json.dumps(body).encode()))
    assert ENTITY.encode() not in app.body


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [], "documents": [{"text": ENTITY}]}),
        (CHAT, {"messages": [{"role": "user", "content": "x", "context": ENTITY}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "other", "other": ENTITY}]}]}),
        (CHAT, {"messages": [], "tools": [{"type": "function", "function": {"name": "f", "description": ENTITY}}]}),
        ("/v1/responses", {"input": [{"type": "other", "other": ENTITY}]}),
        ("/v1/messages", {"messages": [], "tools": [{"name": "f", "description": ENTITY}]}),
    ],
)
async def test_unknown_text_of_a_request_is_judged(path: str, body: Any) -> None:
    app = hello()
    await one(app, Finder(), _INPUT).call(asking(path, json.dumps(body).encode()))
    assert ENTITY.encode() not in app.body
