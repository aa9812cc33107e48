"""MCP servers behind guardrails and tool policies: what they are called with, and what their clients get."""

import json
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from asgi_agents import AgentConfig, AgentMiddleware, AgentRoute, AuditRecord, FailureMode, protect
from asgi_agents.errors import ConfigurationError
from asgi_agents.guardrails import Decision, Guardrail, TextGuardrail, ToolPolicy, ToolRule, Window
from asgi_agents.guardrails.dialect import Stop, StopReply
from asgi_agents.guardrails.dialects.pointers import Pointers
from asgi_agents.guardrails.json_text import JSON
from tests.guardrails.test_mcp import CALL, answered, asked, event, result, told
from tests.guardrails.wired.exchanging import (
    ENTITY,
    SSE,
    Finder,
    Guarded,
    Sending,
    SlowFinder,
    asking,
    blocking,
    failing,
    one,
)
from tests.support.asgi import Client

pytestmark = pytest.mark.anyio

AS_JSON = "application/json"
BOTH = [(b"accept", b"application/json, text/event-stream")]


def post(message: Any, **options: Any) -> Client:
    return asking("/mcp", json.dumps(message).encode(), headers=BOTH, **options)


def calling(text: str, name: str = "send") -> dict[str, Any]:
    return asked("tools/call", {"name": name, "arguments": {"to": text}})


def events_of(client: Client) -> list[Any]:
    lines = client.body.decode().split("\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ") and line[6:]]


async def test_arguments_and_results_are_judged_by_their_kinds() -> None:
    for on, sent, received in (("tool_call", ENTITY, "[0]"), ("tool_result", "[0]", ENTITY)):
        app = Sending([json.dumps(result(ENTITY)).encode()], AS_JSON)
        client = await one(app, Finder(), {on}).call(post(calling(ENTITY)))
        assert json.loads(client.body) == result(sent)
        assert json.loads(app.body) == calling(received)


async def test_the_same_in_a_stream() -> None:
    pieces = [event(told("notifications/message", {"data": ENTITY})), event(result(ENTITY))]
    for agent in (Finder(), SlowFinder()):
        client = await one(Sending(pieces), agent).call(post(calling("x")))
        assert events_of(client) == [told("notifications/message", {"data": "[0]"}), result("[0]")]


async def test_who_calls_which_tool_is_known() -> None:
    agent = Finder()
    guarded = one(Sending([b"{}"], AS_JSON), agent, when=lambda call: call.dialect == "mcp" and "send" in call.tools)
    await guarded.call(post(calling(ENTITY)))
    assert [window.text for window in agent.windows] == [ENTITY]
    await guarded.call(post(calling(ENTITY, "other")))
    assert len(agent.windows) == 1


class Failing(TextGuardrail):
    async def check(self, window: Window) -> Sequence[Decision]:
        return failing(window)


@pytest.mark.parametrize("status", [200, 503])
@pytest.mark.parametrize("at", ["request", "json", "stream"])
async def test_a_stop_is_an_error_with_the_id_of_the_request(at: str, status: int) -> None:
    agent: TextGuardrail = Finder(blocking("bad", reason="why")) if status == 200 else Failing()
    bad = result("bad", "c-1")
    app = Sending([event(bad)]) if at == "stream" else Sending([json.dumps(bad).encode()], AS_JSON)
    on = {"tool_call"} if at == "request" else {"tool_result"}
    guarded = one(app, agent, on)
    client = await guarded.call(post({**calling("bad"), "id": "c-1"}))
    assert client.status == 200
    assert client.complete
    (answer,) = events_of(client) if at == "stream" else [json.loads(client.body)]
    assert answer["id"] == "c-1"
    assert answer["error"]["message"] == ("why" if status == 200 else "Agent unavailable")
    assert app.calls == (at != "request")
    assert guarded.record.decided_by == "g"


async def test_notifications_are_accepted_whatever_becomes_of_them() -> None:
    app = Sending([])
    client = await one(app, Finder(blocking("bad"))).call(post(told("notifications/x", {"a": "bad"})))
    assert (client.status, client.body, app.calls) == (202, b"", 0)


async def test_a_server_gets_an_error_in_place_of_a_blocked_answer() -> None:
    app = Sending([], AS_JSON, status=202)
    guarded = one(app, Finder(blocking("bad", reason="why")))
    client = await guarded.call(
        post(answered({"role": "assistant", "content": {"type": "text", "text": "bad"}}, "s-1"))
    )
    assert (client.status, client.body) == (202, b"")
    given = json.loads(app.body)
    assert (given["id"], given["error"]["message"]) == ("s-1", "why")
    assert app.header(b"content-length") == b"%d" % len(app.body)
    assert guarded.record.decision == "block"


@pytest.mark.parametrize(
    ("body", "code"),
    [(b'{"jsonrpc": "2.0", "method": 7, "id": 1}', -32600), (b"[]", None), (b'{"jsonrpc": "2.0", "id"', -32700)],
)
async def test_a_malformed_request_is_the_clients_error(body: bytes, code: int | None) -> None:
    for mode in (FailureMode.OPEN, FailureMode.CLOSED):
        app = Sending([b"{}"], AS_JSON)
        guarded = one(app, Finder(), failure_mode=mode)
        client = await guarded.call(asking("/mcp", body, headers=BOTH))
        if code is None:
            # It asks nothing, and the app says what it makes of it.
            assert app.calls == 1
            continue
        assert client.status == 400
        assert json.loads(client.body)["error"]["code"] == code
        assert app.calls == 0
        assert guarded.middleware.manager.metrics["g"].outcomes == {}


async def test_a_stream_without_a_request_goes_on() -> None:
    pieces = [
        b"id: 0_0\ndata: \n\n",
        event(asked("elicitation/create", {"message": ENTITY}, "e-1"), "0_1"),
        b": ping\n\n",
        event(result(ENTITY, 4), "0_2"),
    ]
    client = Client("GET", "/mcp", headers=[(b"accept", b"text/event-stream"), (b"last-event-id", b"0_0")])
    await one(Sending(pieces), Finder()).call(client)
    assert client.body == b"".join(pieces).replace(ENTITY.encode(), b"[0]")


async def test_a_request_of_the_server_arrives_while_its_answer_is_awaited() -> None:
    """A tool asks the client's model, on the stream of its call, and goes on when the answer was posted."""
    answer = asked_client = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        if b'"result"' in body:
            assert ENTITY.encode() not in body
            await send({"type": "http.response.start", "status": 202, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            answer.set()
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", SSE.encode())]})
        question = asked("sampling/createMessage", {"messages": [], "systemPrompt": "who?"}, "s-1")
        await send({"type": "http.response.body", "body": event(question), "more_body": True})
        asked_client.set()
        await answer.wait()
        await send({"type": "http.response.body", "body": event(result("done")), "more_body": False})

    for agent in (Finder(), SlowFinder()):
        answer, asked_client = anyio.Event(), anyio.Event()
        guarded = one(app, agent)
        client = post(calling("x"))
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(guarded.call, client)
                await asked_client.wait()
                await guarded.call(post(answered({"content": {"type": "text", "text": ENTITY}}, "s-1")))
        assert [message.get("id") for message in events_of(client)] == ["s-1", 1]


async def test_a_question_that_is_stopped_without_a_request_is_not_answered() -> None:
    """A limit: its server waits as for a client that says nothing. A stream carries no answers to the server."""
    received: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        received.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", SSE.encode())]})
        question = event(asked("sampling/createMessage", {"messages": [], "systemPrompt": "bad"}, "s-1"), "0_1")
        await send({"type": "http.response.body", "body": question, "more_body": True})
        received.append(await receive())

    client = Client("GET", "/mcp", headers=[(b"accept", SSE.encode())])
    await one(app, Finder(blocking("bad"))).call(client)
    assert [(message["id"], message["error"]["code"]) for message in events_of(client)] == [(None, -32090)]
    assert b"id: 0_1" in client.body
    # It learns that its client is gone, and nothing else.
    assert received[0]["type"] == "http.request"
    assert received[1:] in ([], [{"type": "http.disconnect"}])


# Tool policies


def policed(app: Any, *policies: ToolPolicy, **options: Any) -> tuple[AgentMiddleware, list[AuditRecord]]:
    records: list[AuditRecord] = []
    return AgentMiddleware(app, guardrails=policies, on_audit=records.append, **options), records


async def sent(middleware: AgentMiddleware, client: Client) -> Client:
    await client.call(middleware)
    return client


DELETING = calling("x", "delete_user")


async def test_a_denied_call_never_reaches_the_app() -> None:
    app = Sending([b"{}"], AS_JSON)
    middleware, records = policed(app, ToolPolicy(deny=["delete_*"]))
    client = await sent(middleware, post(DELETING))
    assert client.status == 200
    answer = json.loads(client.body)
    assert answer["id"] == 1
    assert "delete_user" in answer["error"]["message"]
    assert app.calls == 0
    (record,) = records
    assert (record.decision, record.decided_by) == ("block", "tool policy")
    (entry,) = record.guardrails
    assert (entry.agent, entry.dialect, entry.counts, entry.found) == (
        "tool policy",
        "mcp",
        {"block": 1},
        {"tool_call": 1},
    )
    # The session lives.
    await sent(middleware, post(calling("x", "get_user")))
    assert json.loads(app.body) == calling("x", "get_user")
    assert records[1].guardrails == []


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (json.dumps(DELETING), AS_JSON),
        (json.dumps(DELETING), None),
        (json.dumps(DELETING), "text/plain"),
        (json.dumps(DELETING), "application/octet-stream"),
        (json.dumps(DELETING), "application/x-www-form-urlencoded"),
        (json.dumps(DELETING).replace("delete", "\\u0064elete"), AS_JSON),
        (json.dumps(DELETING).replace("tools/call", "tools\\/call"), AS_JSON),
        (json.dumps(DELETING).replace('"jsonrpc": "2.0", ', ""), AS_JSON),
        (json.dumps({**DELETING, "choices": [{"delta": {}}], "messages": []}), AS_JSON),
        (json.dumps([calling("x", "get"), DELETING]), AS_JSON),
        # What one reader takes for another call than the next one does.
        (json.dumps(DELETING).replace('"name"', '"name": "get", "name"'), AS_JSON),
        (json.dumps(calling("x", "get")).replace('"name"', '"name": "delete_user", "name"'), AS_JSON),
        (json.dumps(asked("ping")).replace('"method"', '"method": "tools/call", "method"'), AS_JSON),
        ("\ufeff" + json.dumps(DELETING), AS_JSON),
        (json.dumps(DELETING).encode("utf-16"), AS_JSON),
        (json.dumps(DELETING).encode("utf-16-le"), "application/octet-stream"),
        ('{"a": ' * 300 + json.dumps(DELETING) + "}" * 300, AS_JSON),
    ],
)
async def test_no_spelling_gets_past_a_policy(body: str | bytes, media_type: str | None) -> None:
    app = Sending([b"{}"], AS_JSON)
    middleware, _ = policed(app, ToolPolicy(deny=["delete_*"]))
    data = body.encode() if isinstance(body, str) else body
    client = await sent(middleware, asking("/mcp", data, media_type))
    assert app.calls == 0
    assert client.status in (200, 400)
    assert b"error" in client.body or b"can't be read" in client.body


async def test_an_encoded_body_is_refused_and_so_is_one_that_is_too_large() -> None:
    app = Sending([b"{}"], AS_JSON)
    middleware, _ = policed(app, ToolPolicy(deny=["delete_*"]))
    client = await sent(middleware, asking("/mcp", b"x", headers=[(b"content-encoding", b"gzip")]))
    assert (client.status, app.calls) == (400, 0)
    large = b" " * (16 * 1024 * 1024) + json.dumps(DELETING).encode()
    client = await sent(middleware, asking("/mcp", large, headers=BOTH))
    assert (client.status, app.calls) == (413, 0)
    # What is no JSON is no call.
    await sent(middleware, asking("/upload", b"\x89PNG" + large, "image/png"))
    assert app.calls == 1


async def test_a_batch_with_a_denied_call_is_refused_with_an_answer_to_each_request() -> None:
    app = Sending([b"{}"], AS_JSON)
    middleware, _ = policed(app, ToolPolicy(deny=["delete_*"]))
    batch = [{**calling("x", "get"), "id": 1}, told("notifications/x", {}), {**DELETING, "id": "2"}]
    client = await sent(middleware, post(batch))
    answers = json.loads(client.body)
    assert [answer["id"] for answer in answers] == [1, "2"]
    assert all("delete_user" in answer["error"]["message"] for answer in answers)
    assert app.calls == 0


async def test_a_denied_notification_is_dropped() -> None:
    app = Sending([])
    middleware, _ = policed(app, ToolPolicy(deny=["*"]))
    client = await sent(middleware, post(told("tools/call", CALL)))
    assert (client.status, client.body, app.calls) == (202, b"", 0)


async def test_arguments_are_checked_as_the_app_will_read_them(caplog: pytest.LogCaptureFixture) -> None:
    app = Sending([b"{}"], AS_JSON)
    seen: list[Any] = []

    def when(arguments: Any) -> bool:
        seen.append(arguments["to"])
        return bool(arguments["to"] == "[0]")

    records: list[AuditRecord] = []
    middleware = AgentMiddleware(
        app,
        agents=[AgentConfig("g", Finder())],
        guardrails=[Guardrail("g", on={"tool_call"}), ToolPolicy(deny=[("send", when)])],
        on_audit=records.append,
    )
    # It is a guardrail that makes of it what is denied.
    client = await sent(middleware, post(calling(ENTITY)))
    assert seen == [ENTITY, "[0]"]
    assert app.calls == 0
    assert json.loads(client.body)["error"]["data"] == {"status": 403}
    assert [entry.agent for entry in records[0].guardrails] == ["g", "tool policy"]
    # A function that raises denies, and the log says so.
    middleware, _ = policed(
        app, ToolPolicy(deny=[ToolRule("send", lambda arguments: arguments["secret"], reason="no")])
    )
    client = await sent(middleware, post(calling("x")))
    assert json.loads(client.body)["error"]["message"] == "no"
    assert "KeyError" in caplog.text
    assert app.calls == 0


LIST = answered(
    {"tools": [{"name": "delete_user", "description": ENTITY}, {"name": "get_user", "description": ENTITY}]}
)
LEFT = answered({"tools": [{"name": "get_user", "description": ENTITY}]})


@pytest.mark.parametrize("form", ["json", "no type", "events", "resumed"])
async def test_denied_tools_are_left_out_of_lists(form: str) -> None:
    if form in ("json", "no type"):
        app = Sending(
            [json.dumps(LIST).encode()[:40], json.dumps(LIST).encode()[40:]],
            AS_JSON if form == "json" else None,
            length=True,
        )
    else:
        data = event(told("notifications/x", {})) + event(LIST)
        app = Sending([data[:70], data[70:130], data[130:]])
    client = (
        Client("GET", "/mcp", headers=[(b"accept", b"text/event-stream")])
        if form == "resumed"
        else post(asked("tools/list"))
    )
    middleware, records = policed(app, ToolPolicy(deny=["delete_*"]))
    await sent(middleware, client)
    assert client.complete
    if form in ("json", "no type"):
        assert json.loads(client.body) == LEFT
    else:
        assert events_of(client) == [told("notifications/x", {}), LEFT]
    assert records[0].guardrails[0].counts == {"hide": 1}


async def test_what_is_hidden_is_not_judged_and_the_rest_is() -> None:
    agent = Finder()
    guarded = Guarded(
        Sending([json.dumps(LIST).encode()], AS_JSON),
        [AgentConfig("g", agent)],
        [Guardrail("g", on={"output"}), ToolPolicy(deny=["delete_*"])],
    )
    client = await guarded.call(post(asked("tools/list")))
    assert json.loads(client.body) == answered({"tools": [{"name": "get_user", "description": "[0]"}]})
    assert len(agent.windows) == 1


async def test_a_list_that_nobody_changes_leaves_as_it_came() -> None:
    data = json.dumps(LIST, indent=3).encode()
    middleware, _ = policed(Sending([data], AS_JSON, length=True), ToolPolicy(deny=["other"]))
    client = await sent(middleware, post(asked("tools/list")))
    assert client.body == data
    pieces = [b": ping\r\n\r\n", event(LIST), b"data: no json\n\n", b"data: half"]
    middleware, _ = policed(Sending(pieces), ToolPolicy(deny=["other"]))
    client = await sent(middleware, post(asked("tools/list")))
    assert client.body == b"".join(pieces)


@pytest.mark.parametrize("fault", ["encoded", "twice", "twice in events"])
async def test_a_list_that_can_not_be_read_is_an_error(fault: str) -> None:
    twice = json.dumps(LIST).replace('"tools"', '"tools": [], "tools"').encode()
    app = {
        "encoded": Sending([b"x"], AS_JSON, headers=[(b"content-encoding", b"gzip")]),
        "twice": Sending([twice], AS_JSON),
        "twice in events": Sending([b"data: " + twice + b"\n\n", event(LIST)]),
    }[fault]
    middleware, _ = policed(app, ToolPolicy(deny=["delete_*"]))
    client = await sent(middleware, post(asked("tools/list")))
    assert client.status == 200
    assert client.complete
    (answer,) = events_of(client) if "events" in fault else [json.loads(client.body)]
    assert answer["id"] == 1
    assert answer["error"]["data"] == {"status": 503}


async def test_other_answers_are_not_held() -> None:
    big = b'{"tools": [' + b" " * 100
    app = Sending([big], AS_JSON)
    middleware, _ = policed(app, ToolPolicy(deny=["delete_*"]))
    client = await sent(middleware, Client("GET", "/other", headers=[(b"accept", b"*/*")]))
    assert client.body == big


async def test_a_policy_is_a_routes_own() -> None:
    app = Sending([b"{}"], AS_JSON)
    routes = [AgentRoute("/mcp", agents=[], guardrails=[ToolPolicy(deny=["delete_*"])])]
    middleware = AgentMiddleware(app, routes=routes)
    await sent(middleware, post(DELETING))
    assert app.calls == 0
    await sent(middleware, asking("/other", json.dumps(DELETING).encode()))
    assert app.calls == 1


async def test_a_policy_needs_no_agents_and_guardrails_do() -> None:
    from starlette.applications import Starlette

    protect(Starlette(), guardrails=[ToolPolicy(deny=["delete_*"])])
    with pytest.raises(ConfigurationError, match="no agents"):
        protect(Starlette(), guardrails=[])
    with pytest.raises(ConfigurationError, match=r"expected a list: \[ToolPolicy"):
        AgentMiddleware(Starlette(), guardrails=ToolPolicy(deny=["x"]))  # type: ignore[arg-type]


class Numbered(Pointers):
    """A user's own dialect, which answers with the number of the request."""

    def __init__(self, number: JSON = None) -> None:
        super().__init__("/numbered", name="numbered")
        self.number = number

    @property
    def is_bound(self) -> bool:
        return self.number is not None

    def bind(self, value: JSON) -> "Numbered":
        return Numbered(value.get("number") if isinstance(value, dict) else None)

    def knows_headers(self, headers: Any) -> bool:
        return False

    def in_place_of_request(self, stop: Stop) -> bytes | None:
        return None

    def reply(self, stop: Stop) -> StopReply:
        return StopReply(stop.status, AS_JSON, json.dumps({"number": self.number, "error": stop.message}).encode())


async def test_a_dialect_of_ones_own_may_be_bound_to_its_request() -> None:
    for on, calls in (("input", 0), ("output", 1)):
        app = Sending([b'{"text": "bad"}'], AS_JSON)
        guarded = one(app, Finder(blocking("bad", reason="why")), {on}, dialects=[Numbered()])
        client = await guarded.call(asking("/numbered", b'{"number": 7, "text": "bad"}'))
        assert (client.status, json.loads(client.body)) == (400, {"number": 7, "error": "why"})
        assert app.calls == calls
