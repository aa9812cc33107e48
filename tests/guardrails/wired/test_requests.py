"""Text of requests is judged before the app runs."""

import json
from typing import Any, Final

import anyio
import pytest

from asgi_agents import FailureMode
from asgi_agents.guardrails import Call
from tests.guardrails.detectors import EMAIL, detector
from tests.guardrails.wired.exchanging import (
    CHAT,
    ENTITY,
    Finder,
    Sending,
    SlowFinder,
    asking,
    blocking,
    failing,
    one,
)
from tests.support.asgi import Client, settle

pytestmark = pytest.mark.anyio

ESCAPED: Final = "alice.smith\\u0040example.com"
FORM: Final = "application/x-www-form-urlencoded"
_INPUT: Final = {"input"}
BODIES: Final[dict[str, Any]] = {
    CHAT: {"model": "m", "messages": [{"role": "user", "content": f"I am {ENTITY}"}]},
    "/v1/responses": {"model": "m", "input": f"I am {ENTITY}"},
    "/v1/messages": {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": f"I am {ENTITY}"}]},
    "/v1beta/models/g:generateContent": {"contents": [{"role": "user", "parts": [{"text": f"I am {ENTITY}"}]}]},
    "/api/chat": {"model": "m", "messages": [{"role": "user", "content": f"I am {ENTITY}"}]},
    "/anything": {"deep": [{"er": f"I am {ENTITY}"}]},
}


def hello() -> Sending:
    return Sending([b"hello"], "text/plain")


def message_of(path: str, body: bytes) -> str:
    """The reason, where the client libraries of the dialect look for it."""
    value = json.loads(body)
    if path == "/api/chat":
        return str(value["error"])
    if path == "/v1/messages":
        assert value["type"] == "error"
        assert isinstance(value["error"]["type"], str)
    message = value["error"]["message"]
    assert isinstance(message, str)
    return message


# Redaction


@pytest.mark.parametrize("path", BODIES)
async def test_text_is_redacted_before_the_app_sees_it_and_nothing_else_is_changed(path: str) -> None:
    for body in (
        json.dumps(BODIES[path]),
        json.dumps(BODIES[path], indent=3),
        json.dumps(BODIES[path], separators=(",", ":")).replace('"model":', '"temperature":1.50e0,"model":'),
    ):
        app = hello()
        client = await one(app, Finder(), _INPUT).call(asking(path, body.encode()))
        expected = body.replace(ENTITY, "[0]").encode()
        assert app.body == expected
        assert app.header(b"content-length") == b"%d" % len(expected)
        assert client.body == b"hello"


async def test_the_body_may_come_in_pieces_without_a_length() -> None:
    app = hello()
    body = json.dumps(BODIES[CHAT]).encode()
    client = Client("POST", CHAT, headers=[(b"content-type", b"application/json")], body=[body[:40], b"", body[40:]])
    await one(app, Finder(), _INPUT).call(client)
    assert json.loads(app.body)["messages"][0]["content"] == "I am [0]"
    assert app.header(b"content-length") is None or app.header(b"transfer-encoding") is None


async def test_what_nobody_changes_is_the_same_to_the_byte_and_has_its_own_headers() -> None:
    app = hello()
    body = b' {"messages": [{"role":"user" , "content": "caf\\u00e9", "content": "\\/"}]}\n'
    await one(app, Finder(), _INPUT).call(asking(CHAT, body, headers=[(b"digest", b"sha-256=x")]))
    assert app.body == body
    assert app.header(b"digest") == b"sha-256=x"
    assert app.header(b"content-length") == b"%d" % len(body)


async def test_escapes_are_decoded_before_they_are_judged() -> None:
    app = hello()
    body = json.dumps(BODIES[CHAT]).replace(ENTITY, ESCAPED)
    await one(app, Finder(), _INPUT).call(asking(CHAT, body.encode()))
    assert app.body == body.replace(ESCAPED, "[0]").encode()


async def test_every_one_of_duplicate_keys_is_judged() -> None:
    app = hello()
    body = f'{{"messages": [{{"role": "user", "content": "{ENTITY}", "content": "fine", "content": "{ENTITY}"}}]}}'
    await one(app, Finder(), _INPUT).call(asking(CHAT, body.encode()))
    assert ENTITY.encode() not in app.body
    body = f'{{"messages": [{{"role": "user", "content": "{ENTITY}"}}], "messages": []}}'
    await one(app, Finder(), _INPUT).call(asking(CHAT, body.encode()))
    assert ENTITY.encode() not in app.body


@pytest.mark.parametrize("media_type", ["text/plain", "text/html; charset=utf-8", None])
async def test_text_is_redacted(media_type: str | None) -> None:
    app = hello()
    await one(app, Finder(), _INPUT).call(asking("/x", f"é {ENTITY}!".encode(), media_type))
    assert app.body == "é [0]!".encode()
    assert app.header(b"content-length") == b"%d" % len(app.body)


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", None, "nonsense"])
async def test_json_that_is_called_something_else_is_judged_as_json_too(media_type: str | None) -> None:
    # Starlette's `request.json()` does not ask for the type.
    for space in ("", " \r\n\t"):
        app = hello()
        body = space + json.dumps({"a": "x", "b": [ENTITY]}).replace(ENTITY, ESCAPED)
        await one(app, Finder(), _INPUT).call(asking("/x", body.encode(), media_type))
        # What a form looks like is not known to it: it may be written anew.
        assert json.loads(app.body) == {"a": "x", "b": ["[0]"]}


# What can't be read


@pytest.mark.parametrize("mode", FailureMode)
@pytest.mark.parametrize("path", [path for path in BODIES if path != "/anything"])
async def test_a_malformed_body_is_the_clients_400_in_its_dialect(path: str, mode: FailureMode) -> None:
    for body in (b"{", b"{]", b'{"messages": "\xff"}', b"nothing", b'{"a": 1} x', b"[" * 100_000):
        app = hello()
        guarded = one(app, Finder(), _INPUT, failure_mode=mode)
        client = await guarded.call(asking(path, body))
        assert client.status == 400, body[:40]
        assert client.header(b"content-type") == b"application/json"
        assert client.header(b"content-length") == b"%d" % len(client.body)
        assert message_of(path, client.body)
        assert app.calls == 0
        assert client.complete


async def test_a_malformed_body_never_counts_for_a_breaker() -> None:
    for mode in FailureMode:
        app = hello()
        guarded = one(app, Finder(), _INPUT, failure_mode=mode)
        for _ in range(20):
            await guarded.call(asking(CHAT, b"{"))
        client = await guarded.call(asking(CHAT, json.dumps(BODIES[CHAT]).encode()))
        assert client.body == b"hello"
        assert json.loads(app.body)["messages"][0]["content"] == "I am [0]"


async def test_a_body_in_identity_is_judged() -> None:
    app = hello()
    body = json.dumps(BODIES[CHAT]).encode()
    await one(app, Finder(), _INPUT).call(asking(CHAT, body, headers=[(b"content-encoding", b"identity")]))
    assert ENTITY.encode() not in app.body


@pytest.mark.parametrize("mode", FailureMode)
@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "utf-32-be"])
@pytest.mark.parametrize("path", [CHAT, "/x"])
async def test_json_in_other_encodings_is_refused_or_judged(path: str, coding: str, mode: FailureMode) -> None:
    # `json.loads` reads all of them from bytes, so an app would.
    app = hello()
    body = json.dumps({"messages": [{"role": "user", "content": ENTITY}]}).encode(coding)
    client = await one(app, Finder(), _INPUT, failure_mode=mode).call(asking(path, body))
    assert client.status == 400 or ENTITY not in json.dumps(json.loads(app.body))
    assert client.status in (200, 400)


@pytest.mark.parametrize("mode", FailureMode)
async def test_multipart_is_refused_where_input_is_judged(mode: FailureMode) -> None:
    app = hello()
    part = f'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\n{ENTITY}\r\n--x--\r\n'.encode()
    client = await one(app, Finder(), _INPUT, failure_mode=mode).call(
        asking("/x", part, "multipart/form-data; boundary=x")
    )
    assert client.status == 400
    assert app.calls == 0


async def test_multipart_passes_where_only_answers_are_judged() -> None:
    app = Sending([ENTITY.encode()], "text/plain")
    part = f'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\n{ENTITY}\r\n--x--\r\n'.encode()
    client = await one(app, Finder(), {"output"}).call(asking("/x", part, "multipart/form-data; boundary=x"))
    assert app.body == part
    assert client.body == b"[0]"


async def test_a_request_without_a_body_is_none_to_judge() -> None:
    for client in (Client("GET", "/x"), asking(CHAT, b""), asking("/x", b"", None), asking("/x", b"", FORM)):
        app = hello()
        await one(app, Finder(), _INPUT).call(client)
        assert client.body == b"hello"


@pytest.mark.parametrize("path", ["/x", CHAT])
async def test_a_body_that_is_too_large_is_a_413_or_passes_whole(path: str) -> None:
    pieces = [b'{"a": "', *(b"x" * 1024 * 1024 for _ in range(17)), b'"}']
    for mode, status in ((FailureMode.CLOSED, 413), (FailureMode.OPEN, 200)):
        app = hello()
        guarded = one(app, Finder(), _INPUT, failure_mode=mode)
        client = Client("POST", path, headers=[(b"content-type", b"application/json")], body=pieces)
        await guarded.call(client)
        assert client.status == status
        assert app.calls == (mode is FailureMode.OPEN)
        if app.calls:
            assert app.body == b"".join(pieces)
        else:
            # It need not be read to its end.
            assert client.unread > 0
        assert guarded.record.guardrails[0].counts == {"unreadable": 1}


async def test_the_app_does_not_run_for_a_client_that_leaves_while_it_is_read() -> None:
    app = hello()
    guarded = one(app, Finder(), _INPUT)
    client = Client("POST", CHAT, headers=[(b"content-type", b"application/json")], body=[b'{"a'], unfinished=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guarded.call, client)
        await settle()
        client.leave()
    assert app.calls == 0
    assert client.messages == []


async def test_a_client_that_leaves_while_its_text_is_judged_has_its_request_ended() -> None:
    app = hello()
    guarded = one(app, SlowFinder(seconds=lambda: 0.5), _INPUT)
    client = asking(CHAT, json.dumps(BODIES[CHAT]).encode(), spec_version="2.3")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guarded.call, client)
        await anyio.sleep(0.1)
        client.leave()
    assert app.body == b"" or ENTITY.encode() not in app.body


# Blocks and failures


@pytest.mark.parametrize("path", BODIES)
async def test_a_block_is_a_400_with_the_reason_in_the_dialect_and_the_app_never_runs(path: str) -> None:
    app = hello()
    guarded = one(app, Finder(blocking(ENTITY)), _INPUT)
    client = await guarded.call(asking(path, json.dumps(BODIES[path]).encode()))
    assert client.status == 400
    assert app.calls == 0
    assert client.complete
    assert client.header(b"content-length") == b"%d" % len(client.body)
    if path == "/anything":
        assert b"the policy says no" in client.body
        assert client.header(b"content-type") == b"text/plain; charset=utf-8"
        return
    assert message_of(path, client.body) == "the policy says no"
    if path in (CHAT, "/v1/responses"):
        error = json.loads(client.body)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["param"] is None
        assert error["code"] == "content_filter"
    assert guarded.record.decision == "block"
    assert guarded.record.decided_by == "g"


@pytest.mark.parametrize("path", BODIES)
async def test_a_failure_is_a_503_in_the_dialect_or_is_gone_on_without(path: str) -> None:
    body = json.dumps(BODIES[path]).encode()
    for mode in FailureMode:
        app = hello()
        guarded = one(app, Finder(failing), _INPUT, failure_mode=mode)
        client = await guarded.call(asking(path, body))
        if mode is FailureMode.OPEN:
            assert client.body == b"hello"
            assert app.body == body
            assert guarded.record.passed_open == ["g"]
        else:
            assert client.status == 503
            assert app.calls == 0
            if path != "/anything":
                assert message_of(path, client.body) == "Agent unavailable"


async def test_a_judge_that_takes_too_long_is_a_504() -> None:
    for mode, status in ((FailureMode.CLOSED, 504), (FailureMode.OPEN, 200)):
        app = hello()
        guarded = one(app, SlowFinder(seconds=lambda: 60), _INPUT, failure_mode=mode, timeout=2.0)
        before = anyio.current_time()
        client = await guarded.call(asking(CHAT, json.dumps(BODIES[CHAT]).encode()))
        assert client.status == status
        assert anyio.current_time() - before == pytest.approx(2.0, abs=0.1)


async def test_an_open_breaker_says_when_to_come_again() -> None:
    guarded = one(hello(), Finder(failing), _INPUT)
    for _ in range(6):
        client = await guarded.call(asking(CHAT, json.dumps(BODIES[CHAT]).encode()))
    assert client.status == 503
    assert int(client.header(b"retry-after") or 0) > 0
    assert message_of(CHAT, client.body) == "Service unavailable"


# Who judges what


async def test_only_the_kinds_that_were_asked_for_are_judged() -> None:
    finder = Finder(detector(EMAIL))
    app = hello()
    messages = [
        {"role": "system", "content": ENTITY},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"to": ENTITY})}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": ENTITY},
    ]
    for kind in ("tool_call", "tool_result", "input"):
        await one(app, finder, {kind}).call(asking(CHAT, json.dumps({"messages": messages}).encode()))
        seen = json.loads(app.body)["messages"]
        app.received.clear()
        assert (seen[0]["content"] == "[0]") == (kind == "input")
        assert (json.loads(seen[1]["tool_calls"][0]["function"]["arguments"]) == {"to": "[0]"}) == (kind == "tool_call")
        assert (seen[2]["content"] == "[0]") == (kind == "tool_result")


async def test_every_member_of_tool_arguments_is_judged_whatever_its_name() -> None:
    app = hello()
    names = ("id", "type", "model", "role", "status", "event", "object", "mime_type", "name", "url")
    arguments = json.dumps(dict.fromkeys(names, ENTITY))
    messages = [
        {
            "role": "assistant",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}],
        }
    ]
    await one(app, Finder()).call(asking(CHAT, json.dumps({"messages": messages}).encode()))
    seen = json.loads(app.body)["messages"][0]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(seen) == dict.fromkeys(names, "[0]")


async def test_when_is_given_the_call() -> None:
    calls: list[Call] = []

    def when(call: Call) -> bool:
        calls.append(call)
        return False

    app = hello()
    tools = [{"type": "function", "function": {"name": "send"}}, {"type": "function", "function": {"name": "read"}}]
    body = {**BODIES[CHAT], "user": "u1", "stream": True, "tools": tools}
    await one(app, Finder(), when=when).call(asking(CHAT, json.dumps(body).encode()))
    assert ENTITY.encode() in app.body
    call = calls[0]
    assert (call.dialect, call.model, call.user, call.stream) == ("openai.chat", "m", "u1", True)
    assert call.tools == ("send", "read")
    assert call.scope["path"] == CHAT
    assert all(one_call == call for one_call in calls)


async def test_where_when_raises_the_guardrail_judges() -> None:
    def when(call: Call) -> bool:
        raise RuntimeError(call.model)

    app = hello()
    await one(app, Finder(), when=when).call(asking(CHAT, json.dumps(BODIES[CHAT]).encode()))
    assert ENTITY.encode() not in app.body
