"""Lists of tools that an MCP server sends over a websocket. Time is virtual."""

import json
from typing import Any, Final

import pytest

from asgi_agents import AgentConfig
from asgi_agents.guardrails import Guardrail, ToolPolicy, ToolRule
from tests.exchange.test_websocket import Server, run
from tests.guardrails.wired.exchanging import Finder, Guarded
from tests.guardrails.wired.test_websockets import Says

pytestmark = pytest.mark.anyio

_TOOLS: Final = [{"name": name, "description": f"of {name}"} for name in ("get_user", "shell", "delete_user", "maybe")]


def listed(tools: Any, **more: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "result": {"tools": tools, **more}}


def spaced(value: Any) -> str:
    return json.dumps(value, separators=(" , ", " : "))


def escaped(value: Any) -> str:
    return json.dumps(value).replace("tools", "\\u0074ools")


_SEEN: Final = [tool for tool in _TOOLS if tool["name"] in ("get_user", "maybe")]
#: What an app sends, and what the client gets.
LISTS: Final[dict[str, tuple[str | bytes, str | bytes]]] = {
    "a list": (json.dumps(listed(_TOOLS)), json.dumps(listed(_SEEN))),
    "of bytes": (json.dumps(listed(_TOOLS)).encode(), json.dumps(listed(_SEEN)).encode()),
    "with blanks": (f" {spaced(listed(_TOOLS))}\n", f" {spaced(listed(_SEEN))}\n"),
    "with escapes": (escaped(listed(_TOOLS)), escaped(listed(_SEEN))),
    "in a batch": (json.dumps([{"a": 1}, listed(_TOOLS)]), json.dumps([{"a": 1}, listed(_SEEN)])),
    "behind a prefix": (f"42{json.dumps([listed(_TOOLS)])}", f"42{json.dumps([listed(_SEEN)])}"),
    "with more beside it": (json.dumps(listed(_TOOLS, nextCursor="c")), json.dumps(listed(_SEEN, nextCursor="c"))),
    "of others": (json.dumps(listed(_SEEN)), json.dumps(listed(_SEEN))),
    # A limit: a message is one message of MCP's, or a batch.
    "a line of several": (f"{json.dumps(listed(_TOOLS))}\n{{}}", f"{json.dumps(listed(_TOOLS))}\n{{}}"),
    "none": (json.dumps({"tools": _TOOLS}), json.dumps({"tools": _TOOLS})),
    "text": ('say "tools" to it', 'say "tools" to it'),
    "bytes that are no text": (b'\xff\x00"tools"', b'\xff\x00"tools"'),
}
_POLICY: Final = ToolPolicy(deny=["shell", "delete_*", ToolRule("maybe", lambda arguments: True)])


def guarding(app: Any, *, judged: bool) -> Guarded:
    agents = [AgentConfig("g", Finder(), failure_mode="open")] if judged else []
    guardrails: list[Any] = [Guardrail("g", on={"output"})] if judged else []
    return Guarded(app, agents, [*guardrails, _POLICY])


@pytest.mark.parametrize("judged", [True, False])
@pytest.mark.parametrize("name", LISTS)
async def test_tools_that_may_not_be_called_are_not_listed(name: str, judged: bool) -> None:
    sent, expected = LISTS[name]
    server = Server()
    guarded = guarding(Says(sent, "and more"), judged=judged)
    await run(guarded.middleware, server)
    assert server.frames == [expected, "and more"]
    hidden = sum(entry.counts.get("hide", 0) for entry in guarded.record.guardrails)
    assert hidden == (0 if sent == expected else 2)


_TWICE: Final = json.dumps(listed(_TOOLS)).replace('"result"', '"result": {}, "result"')
_UNREADABLE: Final[dict[str, tuple[str | bytes, str]]] = {
    "a key twice": (_TWICE, "a list of tools: an object in a list of tools has a key twice"),
    "in UTF-16": (json.dumps(listed(_TOOLS)).encode("utf-16-le"), "a list of tools: expected UTF-8, got utf-16-le"),
    "too deep": (
        json.dumps(listed(_TOOLS))[:-1] + ', "x": ' + "[" * 300 + "]" * 300 + "}",
        "a list of tools: JSON is nested deeper than 200 levels",
    ),
}


@pytest.mark.parametrize("judged", [True, False])
@pytest.mark.parametrize("name", _UNREADABLE)
async def test_a_list_that_others_read_otherwise_closes_the_session(name: str, judged: bool) -> None:
    sent, reason = _UNREADABLE[name]
    server = Server()
    guarded = guarding(Says(sent, 1.0, "more"), judged=judged)
    await run(guarded.middleware, server)
    assert server.frames == []
    assert server.close == (1008, reason)
    assert guarded.record.decided_by == "tool policy"
