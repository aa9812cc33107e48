"""MCP: names are names where its schema has them. All else is text, numbers and keys of structured content included."""

import json
from collections.abc import Callable
from typing import Any, Final

import pytest

from asgi_agents.guardrails.dialects.base import MAX_TEXTS, strings_in
from asgi_agents.guardrails.dialects.mcp import MCP
from asgi_agents.guardrails.framing import TooComplexError
from asgi_agents.guardrails.operations import Passed
from tests.guardrails.driving import EVERYTHING, passed
from tests.guardrails.test_mcp import SSE, answered, asked, event, told

CARD: Final = "4111111111111111"

#: Keys that name something somewhere in MCP, in JSON-RPC of other protocols, or in another dialect.
KEYS: Final = (
    *("action", "level", "kind", "state", "status", "type", "role", "model", "object", "event", "id", "mode", "format"),
    *("name", "title", "jsonrpc", "method", "progressToken", "cursor", "nextCursor", "protocolVersion", "requestId"),
    *("taskId", "toolUseId", "$schema", "$ref", "contentEncoding", "required", "audience", "stopReason", "resultType"),
    *("requestState", "traceparent", "lastModified", "createdAt", "lastUpdatedAt", "contextId", "messageId"),
    *("artifactId", "timestamp", "mimeType", "signature", "obfuscation", "item_id", "call_id", "created_at"),
    *("result requestState", "result.requestState", "params.cursor", "result", "params"),
)
#: Where somebody may put them: what is around them in a message, and what kind of text they are then.
PLACES: Final[dict[str, Any]] = {
    "of a client, in a request": ("client", lambda inner: asked("resources/read", {"uri": "x", "more": inner})),
    "of a client, in a request, of a list": ("client", lambda inner: asked("anything", {"more": [inner, inner]})),
    "of a client, in arguments": ("client", lambda inner: asked("tools/call", {"name": "f", "arguments": inner})),
    "of a client, in a notification": ("client", lambda inner: told("x", {"_meta": {"mine": inner}})),
    "of a client, in an answer": ("client", lambda inner: answered({"role": "user", "content": [{"more": inner}]})),
    "of a client, filled in": ("client", lambda inner: answered({"action": "accept", "content": inner})),
    "of a client, in a batch": ("client", lambda inner: [told("x", {"more": inner})]),
    "of a client, beside the members": ("client", lambda inner: {**asked("ping"), "more": inner}),
    "of a server, in a log message": ("server", lambda inner: told("notifications/message", {"data": inner})),
    "of a server, in a result": (
        "server",
        lambda inner: answered({"content": [{"type": "text", "text": "t", **inner}]}),
    ),
    "of a server, in a resource": ("server", lambda inner: answered({"contents": [{"uri": "x", "_meta": inner}]})),
    "of a server, structured": ("server", lambda inner: answered({"structuredContent": inner})),
    "of a server, structured, deeper": (
        "server",
        lambda inner: answered({"structuredContent": {"inputSchema": {"result": [inner]}}}),
    ),
    "of a server, in a list of tools": (
        "server",
        lambda inner: answered({"tools": [{"name": "f", "annotations": inner}]}),
    ),
    "of a server, in a schema": ("server", lambda inner: answered({"tools": [{"name": "f", "inputSchema": inner}]})),
    "of a server, in an error": ("server", lambda inner: {**told("x", {}), "error": {"code": 1, "data": inner}}),
}


def operations(side: str, message: Any) -> Any:
    return MCP().request(message) if side == "client" else MCP().answer(message)


@pytest.mark.parametrize("place", PLACES)
def test_what_is_called_like_a_name_is_judged_where_there_is_none(place: str) -> None:
    side, around = PLACES[place]
    for key in KEYS:
        message = around({key: CARD})
        covered = {operation.path for operation in operations(side, message) if isinstance(operation, Passed)}
        hidden = [path for path, text in strings_in(message, (), skip=frozenset()) if text == CARD and path in covered]
        assert hidden == [], (key, place)


@pytest.mark.parametrize("place", [place for place, (side, _) in PLACES.items() if side == "server"])
def test_so_it_is_in_a_stream(place: str) -> None:
    for key in KEYS:
        sent = passed(MCP(), SSE, [event(PLACES[place][1]({key: CARD}))], EVERYTHING)
        assert CARD.encode() not in sent, key


_UUID: Final = "41111111-1111-4111-8111-111111111111"
_SCHEMA: Final = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"at": {"type": "string", "format": "date-time"}, "to": {"$ref": "#/$defs/To"}},
    "required": ["at", "to"],
}
_TASK: Final = {"taskId": _UUID, "status": "working", "createdAt": "2025-11-25T10:30:00Z", "ttl": 60000}
_TOOL_USE: Final = {"type": "tool_use", "id": "call_4111111111111111", "name": "f", "input": {}}
_TOOL_RESULT: Final = {"type": "tool_result", "toolUseId": "call_4111111111111111", "content": []}
#: What has nothing but names in it.
NAMED: Final[dict[str, tuple[str, Any]]] = {
    "a call": ("client", asked("tools/call", {"name": "f", "_meta": {"progressToken": CARD}}, _UUID)),
    "a trace": ("client", asked("ping", {"_meta": {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}})),
    "a list": ("client", asked("tools/list", {"cursor": "eyJwYWdlIjo0MTExMTExMTExMTExMTExfQ=="})),
    "an end": ("client", told("notifications/cancelled", {"requestId": CARD})),
    "a task": ("client", asked("tasks/get", {"taskId": _UUID})),
    "a beginning": ("client", asked("initialize", {"protocolVersion": "2025-06-18", "capabilities": {}})),
    "a level": ("client", asked("logging/setLevel", {"level": "warning"})),
    "a refusal": ("client", answered({"action": "decline"}, CARD)),
    "what a model says": (
        "client",
        answered({"role": "assistant", "model": "m-4.1", "stopReason": "toolUse", "content": [_TOOL_USE]}),
    ),
    "tools": (
        "server",
        answered({"nextCursor": CARD, "tools": [{"name": "f", "inputSchema": _SCHEMA, "outputSchema": _SCHEMA}]}),
    ),
    "a question": ("server", asked("elicitation/create", {"mode": "form", "requestedSchema": _SCHEMA})),
    "tasks": ("server", answered({"tasks": [_TASK]})),
    "a task that has begun": ("server", answered({"task": _TASK})),
    "a conversation": (
        "server",
        asked(
            "sampling/createMessage",
            {
                "messages": [{"role": "assistant", "content": [_TOOL_USE]}, {"role": "user", "content": _TOOL_RESULT}],
                "includeContext": "thisServer",
                "toolChoice": {"mode": "auto"},
            },
        ),
    ),
    "pictures": (
        "server",
        answered(
            {
                "content": [
                    {"type": "image", "data": "QUJD" * 100, "mimeType": "image/svg+xml"},
                    {"type": "audio", "data": "QUJD" * 100, "mimeType": "audio/x-wav"},
                ],
                "annotations": {"audience": ["user"], "lastModified": "2025-01-12T15:00:58.123Z"},
            }
        ),
    ),
    "a progress": ("server", told("notifications/progress", {"progressToken": CARD, "progress": 1})),
    "a message of A2A's": (
        "client",
        asked("message/send", {"message": {"kind": "message", "role": "user", "messageId": _UUID, "contextId": _UUID}}),
    ),
    "a task of A2A's": (
        "server",
        answered(
            {
                "kind": "task",
                "id": _UUID,
                "contextId": _UUID,
                "status": {"state": "input-required", "timestamp": "2025-01-12T15:00:58Z"},
                "artifacts": [{"artifactId": _UUID, "parts": [{"kind": "text", "text": ""}]}],
            }
        ),
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_names_pass_where_they_are(name: str) -> None:
    side, message = NAMED[name]
    assert [type(operation) for operation in operations(side, message) if not isinstance(operation, Passed)] == []
    if side == "server":
        data = event(message)
        assert passed(MCP(), SSE, [data], EVERYTHING) == data


@pytest.mark.parametrize(
    ("message", "path"),
    [
        (asked("x", {"cursor": "to whom it may concern"}), ("params", "cursor")),
        (asked("x", {"protocolVersion": CARD}), ("params", "protocolVersion")),
        (answered({"model": CARD}), ("result", "model")),
        (answered({"status": CARD}), ("result", "status")),
        (answered({"mimeType": f"text/{CARD}"}), ("result", "mimeType")),
        (answered({"mimeType": f"x{CARD}"}), ("result", "mimeType")),
        (answered({"createdAt": f"2025-01-12T15:00:58.{CARD}Z"}), ("result", "createdAt")),
        (
            answered({"tools": [{"inputSchema": {"required": [CARD]}}]}),
            ("result", "tools", 0, "inputSchema", "required", 0),
        ),
    ],
)
def test_what_does_not_look_like_a_name_is_none_in_its_place_either(message: Any, path: Any) -> None:
    assert path not in {operation.path for operation in MCP().request(message) if isinstance(operation, Passed)}


#: Structured content, and what it leaves as.
STRUCTURED: Final[dict[str, tuple[Any, Any]]] = {
    "a number": ({"card": int(CARD)}, {"card": "[1]"}),
    "a number with a fraction": ({"card": float(CARD)}, {"card": "[1].0"}),
    "a negative number": ({"card": -int(CARD)}, {"card": "-[1]"}),
    "numbers in a list": ({"cards": [1, [int(CARD), 2]]}, {"cards": [1, ["[1]", 2]]}),
    "a key": ({"alice@example.com": {"age": 1}}, {"[0]": {"age": 1}}),
    "a key of digits": ({CARD: None}, {"[1]": None}),
    "keys that lead to others": (
        {"bob@b.co": {"x": "carol@c.co", "dave@d.co": int(CARD)}},
        {"[0]": {"x": "[0]", "[0]": "[1]"}},
    ),
    "keys in a list": ([{"bob@b.co": 1}, {"bob@b.co": "bob@b.co"}], [{"[0]": 1}, {"[0]": "[0]"}]),
    "two keys": ({"a": {"bob@b.co": 1}, "bob@b.co": 2}, {"a": {"[0]": 1}, "[0]": 2}),
    "small numbers, truths and names": ({"n": 12345, "t": True, "camelCase_1": None}, None),
    "numbers and keys without a find": ({"n": 1234567, "two words": 1.25e-7}, None),
    "a list alone": ([int(CARD)], ["[1]"]),
    "a number alone": (int(CARD), "[1]"),
}


@pytest.mark.parametrize("name", STRUCTURED)
def test_numbers_and_keys_of_structured_content_are_judged(name: str) -> None:
    before, after = STRUCTURED[name]
    after = before if after is None else after
    block = {"type": "tool_result", "toolUseId": "t", "content": [], "structuredContent": before}
    arounds: list[Callable[[Any], Any]] = [
        lambda inner: answered({"structuredContent": inner, "content": []}),
        lambda inner: asked(
            "sampling/createMessage",
            {"messages": [{"role": "user", "content": [{**block, "structuredContent": inner}]}]},
        ),
    ]
    for around in arounds:
        data = event(around(before))
        sent = passed(MCP().bind(asked("tools/call", {"name": "f"})), SSE, [data], EVERYTHING)
        assert json.loads(sent.split(b"data: ")[1]) == around(after)
        if before == after:
            assert sent == data


def test_a_key_that_is_there_twice_is_changed_in_both_places() -> None:
    data = event(answered({"structuredContent": 0})).replace(b": 0", b': {"a\\u0040b.co": 1, "a@b.co": {"a@b.co": 1}}')
    sent = passed(MCP(), SSE, [data], EVERYTHING)
    assert b'{"[0]": 1, "[0]": {"[0]": 1}}' in sent


@pytest.mark.parametrize("value", [[123456] * (MAX_TEXTS + 1), {f"{number} x": 1 for number in range(MAX_TEXTS + 1)}])
def test_there_are_no_more_texts_than_that(value: Any) -> None:
    with pytest.raises(TooComplexError):
        MCP().answer(answered({"structuredContent": value}))


def test_numbers_elsewhere_are_no_text() -> None:
    """A limit: what is no structured content of a tool has strings for what is told to a model."""
    for message in (asked("tools/call", {"name": "f", "arguments": {"card": int(CARD)}}), told("x", {"n": int(CARD)})):
        assert [operation for operation in operations("client", message) if not isinstance(operation, Passed)] == []
