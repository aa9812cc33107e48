"""MCP: whose text is where in which message, and how a call that is stopped is answered."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_agents.guardrails import Block, Decision, Redact, Window
from asgi_agents.guardrails.body import Body
from asgi_agents.guardrails.dialect import Binding, Dialect, Stop
from asgi_agents.guardrails.dialects.base import strings_in
from asgi_agents.guardrails.dialects.known import BUILT_IN, of_answer, of_request, of_stream
from asgi_agents.guardrails.dialects.mcp import MCP
from asgi_agents.guardrails.framing import UnreadableError
from asgi_agents.guardrails.judges import Judges
from asgi_agents.guardrails.operations import Passed, Text, Whole
from asgi_agents.guardrails.sse import parse
from asgi_agents.guardrails.stream import Stream
from tests.guardrails.driving import EVERYTHING, LOCAL, Driver, passed
from tests.support.examples import examples

SSE = "text/event-stream"
CALL = {"name": "send", "arguments": {"to": "a", "id": "b", "more": [{"note": "c"}]}}
MESSAGE = {"role": "user", "content": {"type": "text", "text": "said"}}


def asked(method: str, params: Any = None, id_: Any = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id_, "method": method, **({} if params is None else {"params": params})}


def told(method: str, params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "params": params}


def answered(result: Any, id_: Any = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id_, "result": result}


def event(message: Any, id_: str | None = None) -> bytes:
    head = "" if id_ is None else f"id: {id_}\n"
    return f"{head}event: message\ndata: {json.dumps(message)}\n\n".encode()


def texts(operations: Any) -> list[tuple[str, str, str | None, str | None]]:
    return [
        (operation.text, operation.slot.kind, operation.slot.role, operation.slot.tool)
        for operation in operations
        if isinstance(operation, Whole)
    ]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (asked("tools/call", CALL), [(text, "tool_call", None, "send") for text in ("a", "b", "c")]),
        (asked("tools/call", {**CALL, "_meta": {"progressToken": "t-1"}, "arguments": None}), []),
        (asked("prompts/get", {"name": "p", "arguments": {"x": "y"}}), [("y", "tool_call", None, "p")]),
        (
            asked("completion/complete", {"ref": {"type": "ref/prompt", "name": "p"}, "argument": {"value": "v"}}),
            [("p", "input", None, None), ("v", "tool_call", None, "p")],
        ),
        (asked("resources/read", {"uri": "file:///a b"}), [("file:///a b", "input", None, None)]),
        (asked("anything", ["one", {"id": "two words"}]), [(it, "input", None, None) for it in ("one", "two words")]),
        (told("notifications/cancelled", {"requestId": 1, "reason": "why"}), [("why", "input", None, None)]),
        (answered({"role": "assistant", "model": "m", **MESSAGE}), [("said", "input", "user", None)]),
        (answered({"action": "accept", "content": {"id": "me"}}), [("me", "input", None, None)]),
        (
            answered({"roots": [{"uri": "file:///r", "name": "mine"}]}),
            [(it, "input", None, None) for it in ("file:///r", "mine")],
        ),
        ({"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": "no"}}, [("no", "input", None, None)]),
        ([asked("ping"), told("x", {"a": "b"})], [("b", "input", None, None)]),
        # What is no name where one is expected.
        (asked("do this now"), [("do this now", "input", None, None)]),
        (asked("tools/call", {"name": "to whom it may concern"}), [("to whom it may concern", "input", None, None)]),
    ],
)
def test_the_text_of_a_client(message: Any, expected: Any) -> None:
    assert texts(MCP().request(message)) == expected


BLOCKS = [
    {"type": "text", "text": "t"},
    {"type": "image", "data": "QUJD" * 100, "mimeType": "image/png"},
    {"type": "resource_link", "uri": "file:///l", "name": "n"},
]


@pytest.mark.parametrize(
    ("request_", "message", "expected"),
    [
        (
            asked("tools/call", CALL),
            answered({"content": BLOCKS, "structuredContent": {"id": "s"}, "_meta": {"k": "m"}}),
            [(text, "tool_result", None, "send") for text in ("t", "file:///l", "n", "s", "m")],
        ),
        # The same, where it is not known what was asked.
        (None, answered({"content": BLOCKS}), [(text, "tool_result", None, None) for text in ("t", "file:///l", "n")]),
        (
            asked("resources/read", {"uri": "file:///r"}),
            answered({"contents": [{"uri": "file:///r", "text": "t"}]}),
            [(text, "tool_result", None, None) for text in ("file:///r", "t")],
        ),
        (
            asked("prompts/get", {"name": "p"}),
            answered({"description": "d", "messages": [MESSAGE]}),
            [("d", "tool_result", None, "p"), ("said", "tool_result", "user", "p")],
        ),
        (
            asked("tools/list"),
            answered(
                {"tools": [{"name": "send", "description": "d", "inputSchema": {"required": ["to"], "title": "T"}}]}
            ),
            [("d", "output", None, None), ("T", "output", None, None)],
        ),
        (
            asked("initialize"),
            answered({"protocolVersion": "2025-06-18", "instructions": "i"}),
            [("i", "output", None, None)],
        ),
        (
            asked("tools/call", CALL),
            {"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": "no", "data": {"why": "w"}}},
            [("no", "output", None, None), ("w", "output", None, None)],
        ),
        (None, told("notifications/message", {"level": "info", "data": "l"}), [("l", "output", None, None)]),
        (None, told("notifications/progress", {"progressToken": "1", "message": "m"}), [("m", "output", None, None)]),
        (
            None,
            asked(
                "elicitation/create", {"message": "m", "requestedSchema": {"properties": {"a": {"description": "d"}}}}
            ),
            [("m", "output", None, None), ("d", "output", None, None)],
        ),
        (
            None,
            asked(
                "sampling/createMessage",
                {
                    "messages": [
                        MESSAGE,
                        {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"id": "i"}}]},
                        {
                            "role": "user",
                            "content": [{"type": "tool_result", "content": [{"type": "text", "text": "r"}]}],
                        },
                    ],
                    "systemPrompt": "s",
                },
            ),
            [
                ("said", "output", "user", None),
                ("i", "tool_call", "assistant", "f"),
                ("r", "tool_result", "user", None),
                ("s", "output", None, None),
            ],
        ),
    ],
)
def test_the_text_of_a_server(request_: Any, message: Any, expected: Any) -> None:
    dialect = MCP() if request_ is None else MCP().bind(request_)
    assert texts(dialect.answer(message)) == expected
    # In a stream it is the same.
    assert texts(dialect.reader(SSE).read(parse(event(message)), message)) == expected


@pytest.mark.parametrize(
    "message",
    [
        [],
        "x",
        [1],
        [asked("ping"), {"no": "message"}],
        {"jsonrpc": "2.0"},
        {"jsonrpc": "1.0", "method": "ping"},
        {"jsonrpc": "2.0", "method": 1, "id": 1},
        {"jsonrpc": "2.0", "method": "ping", "params": "x", "id": 1},
        {"jsonrpc": "2.0", "method": "ping", "id": {}},
        {"jsonrpc": "2.0", "id": 1},
    ],
)
def test_what_is_no_message_can_not_be_read(message: Any) -> None:
    with pytest.raises(UnreadableError):
        MCP().request(message)
    reply = MCP().bind(message).reply(Stop("can't be read", 400, malformed=True))
    assert reply.status == 400
    assert json.loads(reply.body)["error"]["code"] == -32600


def test_what_is_no_json_is_a_parse_error() -> None:
    reply = MCP().reply(Stop("can't be read", 400, malformed=True))
    assert (reply.status, json.loads(reply.body)["id"], json.loads(reply.body)["error"]["code"]) == (400, None, -32700)


@pytest.mark.parametrize("value", [asked("tools/call", CALL), [told("x", {})], {**asked("x"), "choices": []}])
def test_a_message_is_known_by_its_shape_whatever_else_is_in_it(value: Any) -> None:
    assert of_request("/rpc", value).name == "mcp"
    assert of_answer(of_request("/", {}), answered({})).name == "mcp"


def test_a_call_without_a_version_is_judged_as_one() -> None:
    value: Any = {"method": "tools/call", "id": 1, "params": CALL}
    dialect = of_request("/rpc", value)
    assert [kind for _, kind, _, _ in texts(dialect.request(value))] == ["tool_call"] * 3


def test_a_call_names_its_tools() -> None:
    assert MCP().call([asked("tools/call", CALL), asked("ping")], "/").tools == ("send",)


@pytest.mark.parametrize("request_id", [1, "1", "x y", None])
def test_a_call_that_is_stopped_is_answered_with_its_id(request_id: Any) -> None:
    for status in (400, 503):
        reply = MCP().bind(asked("tools/call", CALL, request_id)).reply(Stop("why", status))
        assert (reply.status, reply.media_type) == (200, "application/json")
        answer = json.loads(reply.body)
        assert answer["id"] == request_id
        assert type(answer["id"]) is type(request_id)
        assert answer["error"]["message"] == "why"
        assert answer["error"]["data"] == {"status": status}


def test_every_request_of_a_batch_is_answered() -> None:
    batch: Any = [asked("a", id_=1), told("b", {}), asked("c", id_="1")]
    answers = json.loads(MCP().bind(batch).reply(Stop("why")).body)
    assert [answer["id"] for answer in answers] == [1, "1"]


def test_notifications_and_answers_are_accepted_and_no_more() -> None:
    values: list[Any] = [told("x", {}), answered({}), [told("x", {})]]
    for value in values:
        reply = MCP().bind(value).reply(Stop("why"))
        assert (reply.status, reply.body) == (202, b"")


def test_a_server_that_waits_for_an_answer_gets_an_error_in_its_place() -> None:
    given = MCP().bind(answered({"role": "assistant"}, "s-1")).in_place_of_request(Stop("why"))
    assert given is not None
    assert json.loads(given)["id"] == "s-1"
    assert json.loads(given)["error"]["message"] == "why"
    values: list[Any] = [told("x", {}), asked("ping"), [asked("ping"), answered({})]]
    for value in values:
        assert MCP().bind(value).in_place_of_request(Stop("why")) is None
    assert MCP().in_place_of_request(Stop("why")) is None
    batch: Any = [told("x", {}), answered({}, 4)]
    given = MCP().bind(batch).in_place_of_request(Stop("why"))
    assert given is not None
    assert [error["id"] for error in json.loads(given)] == [4]


def test_a_stream_takes_the_dialect_that_is_bound_to_its_call() -> None:
    called = MCP().bind(asked("ping"))
    for dialects in (BUILT_IN, (MCP(), *BUILT_IN)):
        first = of_stream(called, SSE, dialects)[0]
        assert first is called
    assert isinstance(called, Binding)


def drive(dialect: Dialect | None = None, *events: bytes, block: str = "bad") -> tuple[Driver, list[Any]]:
    def check(window: Window) -> list[Decision]:
        return [Block("why")] if block in window.text else []

    driver = Driver(Stream([dialect or MCP()], SSE, Judges([LOCAL])), {"local": check})
    for piece in events:
        driver.feed(piece)
    driver.end()
    lines = driver.sent.decode().split("\n")
    return driver, [json.loads(line[6:]) for line in lines if line.startswith("data: ") and line[6:]]


def result(text: str, id_: Any = 1) -> dict[str, Any]:
    return answered({"content": [{"type": "text", "text": text}]}, id_)


def test_a_blocked_answer_is_an_error_with_its_id_and_the_last_event() -> None:
    called = MCP().bind(asked("tools/call", CALL, "c-1"))
    progress = told("notifications/progress", {"progressToken": 1, "progress": 1})
    driver, events = drive(called, event(progress), event(result("bad", "c-1")), event(progress))
    assert events[0] == progress
    assert [(one["id"], one["error"]["message"]) for one in events[1:]] == [("c-1", "why")]
    assert driver.stream.ending is not None


@pytest.mark.parametrize(
    "blocked", [told("notifications/message", {"data": "bad"}), asked("elicitation/create", {"message": "bad"}, "e-1")]
)
def test_whatever_is_blocked_the_requests_of_the_stream_are_answered(blocked: Any) -> None:
    called = MCP().bind([asked("ping", id_=1), asked("tools/call", CALL, 2), asked("ping", id_=3)])
    _, events = drive(called, event(result("fine", 2)), event(blocked))
    assert [one["id"] for one in events] == [2, 1, 3]
    assert "bad" not in json.dumps(events)


def test_a_client_that_has_all_its_answers_hears_no_more() -> None:
    called = MCP().bind(asked("tools/call", CALL))
    _, events = drive(called, event(result("fine", 1)), event(told("notifications/message", {"data": "bad"})))
    assert events == [result("fine", 1)]


def test_a_stream_without_a_request_says_whose_answer_was_blocked() -> None:
    _, events = drive(None, event(told("x", {})), event(result("bad", 9)))
    assert events[1]["id"] == 9
    _, events = drive(None, event(told("x", {"a": "bad"})))
    assert events[0]["id"] is None


def test_a_stream_is_taken_up_again_behind_what_was_blocked() -> None:
    driver, events = drive(None, event(told("x", {}), "e-1"), event(told("x", {"a": "bad"}), "e-2"))
    assert driver.sent.count(b"id: e-2\n") == 1
    assert len(events) == 2
    # Not behind what nobody could judge, nor with what may be text.
    stream = Stream([MCP()], SSE, Judges([LOCAL]))
    stream.feed(event(told("x", {"a": "text"}), "e-2"), 0.0)
    stream.fail(Stop("down", 503))
    assert b"e-2" not in stream.take()
    driver, _ = drive(None, event(told("x", {"a": "bad"}), "alice@example.com"))
    assert b"alice" not in driver.sent


def test_a_bound_stream_ends_in_its_terms_before_any_message_was_read() -> None:
    called = MCP().bind(asked("a", id_=5))
    stream = Stream(of_stream(called, SSE), SSE, Judges([LOCAL]))
    driver = Driver(stream, {"local": lambda window: [Block("why")]})
    driver.feed(b"data: hello\n\n")
    driver.end()
    assert json.loads(driver.sent.split(b"data: ")[1])["id"] == 5


def test_events_without_data_and_pings_pass_as_they_are() -> None:
    primed = b"id: 0_1\nretry: 500\ndata: \n\n"
    ping = b": ping - 2026-01-01 00:00:00+00:00\r\n\r\n"
    stream = primed + ping + event(result("fine"))
    assert passed(MCP(), SSE, [stream], EVERYTHING) == stream
    assert passed(of_stream(MCP().bind(asked("a")), SSE), SSE, [stream], EVERYTHING) == stream


def test_a_request_of_the_server_waits_for_nothing() -> None:
    driver = Driver(Stream([MCP()], SSE, Judges([LOCAL])), {"local": EVERYTHING})
    events = [
        event(told("notifications/progress", {"progressToken": 1, "message": "alice@"})),
        event(asked("sampling/createMessage", {"messages": [MESSAGE]}, "s")),
    ]
    for piece in events:
        driver.feed(piece)
    assert driver.sent == b"".join(events)


def test_parts_of_an_answer_of_another_protocol_are_one_text() -> None:
    # As A2A's: several answers to one request.
    called = MCP().bind(asked("message/stream", {}))
    parts = [
        answered({"kind": "artifact-update", "taskId": "t", "text": text})
        for text in ("mail ali", "ce@exam", "ple.com\n", "")
    ]
    sent = passed([called], SSE, [event(part) for part in parts], EVERYTHING)
    said = "".join(
        json.loads(line[6:])["result"]["text"] for line in sent.decode().split("\n") if line.startswith("data")
    )
    assert said == "mail [0]\n"
    # What the server asks does not wait for their end.
    driver = Driver(Stream([called], SSE, Judges([LOCAL])), {"local": EVERYTHING})
    pieces = [event(parts[0]), event(asked("elicitation/create", {"message": "m"}, "e"))]
    for piece in pieces:
        driver.feed(piece)
    assert driver.sent == b"".join(pieces)


def test_an_app_of_its_own_among_the_messages_is_judged_too() -> None:
    own = b'data: {"note": "a@example.com"}\n\n'
    sent = passed(MCP(), SSE, [event(told("x", {})), own, event(result("a@example.com"))], EVERYTHING)
    assert b"a@example.com" not in sent


def test_text_and_structured_content_leave_the_same() -> None:
    data = json.dumps(
        answered(
            {
                "content": [{"type": "text", "text": "to a@example.com"}],
                "structuredContent": {"result": "to a@example.com"},
            }
        )
    ).encode()
    dialect = MCP().bind(asked("tools/call", CALL))
    body = Body(data, dialect.answer, Judges([LOCAL]))
    while inspections := body.inspections():
        for inspection in inspections:
            assert inspection.slot.kind == "tool_result"
            body.verdict(inspection, EVERYTHING(inspection.window))
    assert body.data is not None
    after = json.loads(body.data)["result"]
    assert after["content"][0]["text"] == after["structuredContent"]["result"] == "to [0]"


_STRINGS = st.sampled_from(["x", "two words", "tools/call", "tool_use", "tool_result", "2.0", "a@example.com", ""])
_KEYS = st.sampled_from(
    [
        *("id", "name", "params", "result", "content", "messages", "tools", "arguments", "input", "type", "role"),
        *("structuredContent", "action", "error", "message", "ref", "argument", "required", "_meta", "other"),
    ]
)
_VALUES: Any = st.recursive(
    _STRINGS | st.integers(0, 3) | st.none(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner)
)
_METHODS = st.sampled_from(["tools/call", "tools/list", "prompts/get", "sampling/createMessage", "other/one", "say it"])


@settings(max_examples=examples(150))
@given(
    st.dictionaries(_KEYS, _VALUES),
    st.none() | _METHODS,
    st.sampled_from([None, "tools/call", "tools/list", "other/one"]),
)
def test_no_string_is_left_out_that_is_no_name(members: Any, method: str | None, asked_for: str | None) -> None:
    message: Any = {**members, "jsonrpc": "2.0", "id": 1}
    if method is not None:
        message["method"] = method
    dialect = MCP() if asked_for is None else MCP().bind(asked(asked_for))
    reader = dialect.reader(SSE)
    for read in (dialect.request, dialect.answer, lambda value: reader.read(parse(event(value)), value)):
        try:
            operations: Any = read(message)
        except UnreadableError:
            continue
        judged = {operation.path for operation in operations if isinstance(operation, Whole | Text)}
        passed_ = {operation.path for operation in operations if isinstance(operation, Passed)}
        found = {path: text for path, text in strings_in(message, (), skip=frozenset()) if text}
        assert found.keys() <= judged | passed_
        for path in passed_ & found.keys():
            assert " " not in found[path]
            assert "@" not in found[path]


def test_names_that_clients_call_by_stay() -> None:
    listed = answered(
        {"tools": [{"name": "send_4111111111111111", "description": "d"}], "nextCursor": "4111111111111111"}
    )

    def everything(window: Window) -> list[Decision]:
        return [Redact(0, len(window.text), "x")]

    body = Body(json.dumps(listed).encode(), MCP().bind(asked("tools/list")).answer, Judges([LOCAL]))
    while inspections := body.inspections():
        for inspection in inspections:
            body.verdict(inspection, everything(inspection.window))
    assert body.data is not None
    assert json.loads(body.data)["result"] == {
        **listed["result"],
        "tools": [{**listed["result"]["tools"][0], "description": "x"}],
    }
