"""Which guardrails judge a call, in which failure mode, and what is recorded of it."""

import json
import logging
from collections.abc import Sequence
from typing import Any, Final

import anyio
import msgspec
import pytest

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    AgentRoute,
    ConfigurationError,
    FailureMode,
    RequestHeadersEvent,
)
from asgi_agents.guardrails import Block, Call, Decision, Guardrail, Kind, TextGuardrail, Window
from asgi_agents.guardrails.dialects.pointers import Pointers
from tests.guardrails.detectors import CARD, EMAIL, detector
from tests.guardrails.wired.exchanging import (
    CHAT,
    ENTITY,
    Detecting,
    Finder,
    Guarded,
    Sending,
    SlowFinder,
    asking,
    blocking,
    failing,
    flagging,
    one,
)
from tests.guardrails.wired.test_endings import event
from tests.guardrails.wired.test_timing import Timed
from tests.support.asgi import Client, assert_nothing_left, settle

pytestmark = pytest.mark.anyio

_OUT: Final[set[Kind]] = {"output"}
_REQUEST: Final = {"model": "m", "messages": [{"role": "user", "content": f"I am {ENTITY}"}]}


def answer() -> Sending:
    return Sending([json.dumps({"detail": ENTITY}).encode()], "application/json", length=True)


# Routes


async def test_guardrails_of_a_route_take_the_place_of_those_of_the_middleware() -> None:
    middleware = AgentMiddleware(
        answer(),
        agents=[AgentConfig("emails", Finder()), AgentConfig("block", Finder(blocking(ENTITY)))],
        guardrails=[Guardrail("emails", on=_OUT)],
        routes=[
            AgentRoute("/own", agents=[], guardrails=[Guardrail("block", on=_OUT)]),
            AgentRoute("/none", agents=[], guardrails=[]),
            AgentRoute("/inherited", agents=[]),
        ],
    )
    results = {}
    for path in ("/own", "/none", "/inherited", "/nowhere"):
        client = Client("GET", path)
        await client.call(middleware)
        results[path] = (client.status, client.body)
    assert results["/own"][0] == 400
    assert json.loads(results["/none"][1]) == {"detail": ENTITY}
    assert json.loads(results["/inherited"][1]) == {"detail": "[0]"}
    assert json.loads(results["/nowhere"][1]) == {"detail": "[0]"}


async def test_the_failure_mode_is_the_routes_for_the_agent() -> None:
    middleware = AgentMiddleware(
        answer(),
        agents=[AgentConfig("g", Finder(failing), circuit_breaker=None)],
        guardrails=[Guardrail("g", on=_OUT)],
        routes=[
            AgentRoute("/open", agents=[("g", FailureMode.OPEN)]),
            AgentRoute("/closed", agents=[("g", FailureMode.CLOSED)]),
            AgentRoute("/own", agents=[]),
        ],
    )
    statuses = {}
    for path in ("/open", "/closed", "/own"):
        client = Client("GET", path)
        await client.call(middleware)
        statuses[path] = client.status
    assert statuses == {"/open": 200, "/closed": 503, "/own": 503}


async def test_a_dialect_of_ones_own_is_tried_first() -> None:
    app = answer()
    guarded = one(app, Finder(), {"input"}, dialects=[Pointers(CHAT, request=["/prompt"])])
    await guarded.call(asking(CHAT, json.dumps({"prompt": ENTITY, "messages": [ENTITY]}).encode()))
    assert json.loads(app.body) == {"prompt": "[0]", "messages": [ENTITY]}


# when=


async def test_when_chooses_the_calls_by_their_model_their_user_and_their_tools() -> None:
    app = answer()
    for when, judged in (
        (lambda call: call.model != "internal", False),
        (lambda call: call.model == "internal", True),
        (lambda call: "send" in call.tools, True),
        (lambda call: call.user == "someone else", False),
        (lambda call: call.scope["path"] == CHAT, True),
        (lambda call: call.stream, False),
        (lambda call: call.dialect == "openai.chat", True),
        (lambda call: call.nothing, True),
        (lambda call: [], False),
    ):
        tools = [{"type": "function", "function": {"name": "send"}}]
        body = {**_REQUEST, "model": "internal", "user": "u", "tools": tools}
        client = await one(app, Finder(), when=when).call(asking(CHAT, json.dumps(body).encode()))
        assert (ENTITY.encode() not in app.body) == judged
        assert (ENTITY.encode() not in client.body) == judged
        app.received.clear()


async def test_one_of_several_guardrails_depends_on_the_call() -> None:
    agents = [AgentConfig("emails", Finder()), AgentConfig("cards", Finder(detector(CARD)))]
    guardrails = [Guardrail("emails", on=_OUT), Guardrail("cards", on=_OUT, when=lambda call: call.model == "m")]
    body = json.dumps({"detail": f"{ENTITY}, 4111 1111 1111 1111."}).encode()
    for model, expected in (("m", "[0], [0]."), ("n", "[0], 4111 1111 1111 1111.")):
        guarded = Guarded(Sending([body], "application/json"), agents, guardrails)
        client = await guarded.call(asking(CHAT, json.dumps({**_REQUEST, "model": model}).encode()))
        assert json.loads(client.body)["detail"] == expected


async def test_a_call_without_a_body_is_known_by_its_head() -> None:
    calls: list[Call] = []

    def when(call: Call) -> bool:
        calls.append(call)
        return True

    client = Client("GET", "/x")
    await one(answer(), Finder(), when=when).call(client)
    assert json.loads(client.body) == {"detail": "[0]"}
    assert calls[0].model is None
    assert calls[0].scope["method"] == "GET"


# Agents that are exchanged


async def test_an_agent_that_is_replaced_judges_the_streams_that_it_has_begun() -> None:
    manager = AgentManager([AgentConfig("g", Finder())])
    app = Sending([event(f"{ENTITY}, "), 5.0, event(f"{ENTITY}, "), event("bye " * 40)])
    middleware = AgentMiddleware(app, manager=manager, guardrails=[Guardrail("g", on=_OUT)])
    first, second = Timed(), Timed()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first.call, middleware)
        await anyio.sleep(1)
        await manager.replace_agent(AgentConfig("g", Finder(blocking("bye"))))
        tasks.start_soon(second.call, middleware)
    assert first.text_by(100) == "[0], [0], " + "bye " * 40
    assert first.complete
    assert "content_filter" in second.body.decode()
    assert_nothing_left(manager)


async def test_an_agent_that_is_removed_judges_the_streams_that_it_has_begun(
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = AgentManager([AgentConfig("g", SlowFinder())])
    app = Sending([event(f"{ENTITY}, "), 5.0, event(f"{ENTITY}, "), event("bye " * 40)])
    middleware = AgentMiddleware(app, manager=manager, guardrails=[Guardrail("g", on=_OUT)])
    client = Timed()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware)
        await anyio.sleep(1)
        await manager.remove_agent("g")
    assert client.text_by(100) == "[0], [0], " + "bye " * 40
    assert "agent 'g' is removed: from now on the text" in caplog.text
    assert client.complete


class Far(Finder):
    hold = 1000


class Deaf(Agent):
    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        return None


@pytest.mark.parametrize(("agent", "fault"), [(Far(), "more than hold"), (Deaf(), "does not receive")])
async def test_an_agent_that_can_not_do_what_a_guardrail_asks_of_it_replaces_nothing(agent: Agent, fault: str) -> None:
    manager = AgentManager([AgentConfig("g", Finder())])
    middleware = AgentMiddleware(answer(), manager=manager, guardrails=[Guardrail("g", on=_OUT, window=400)])
    with pytest.raises(ConfigurationError, match=fault):
        await manager.replace_agent(AgentConfig("g", agent))
    client = Client("GET", "/x")
    await client.call(middleware)
    assert json.loads(client.body) == {"detail": "[0]"}
    await manager.remove_agent("g")
    with pytest.raises(ConfigurationError, match=fault):
        await manager.add_agent(AgentConfig("g", agent))
    assert manager.agent_ids == ()


# Shadow agents


@pytest.mark.parametrize("find", [detector(EMAIL), blocking(ENTITY), failing])
async def test_a_shadow_agent_changes_nothing_and_is_recorded(find: Any) -> None:
    for agent in (Finder(find), SlowFinder(find)):
        for path, app in (
            ("/x", answer()),
            (CHAT, Sending([event("I am alice.smith"), event("@example.com, "), event("bye.")])),
        ):
            guarded = one(app, agent, enforce=False, circuit_breaker=None)
            client = await guarded.call(asking(path, json.dumps(_REQUEST).encode()))
            assert client.body == b"".join(piece for piece in app.pieces if isinstance(piece, bytes))
            assert client.complete
            assert json.loads(app.body) == _REQUEST
            assert guarded.record.decision == "allow"
            entry = guarded.record.guardrails[0]
            if find is failing:
                assert entry.counts["failure"] >= 2
            else:
                assert entry.counts == {"flag": 2}
                assert [span[0] for span in map(tuple, entry.spans)] == ["input", "output"]


# Records


async def test_the_audit_record_has_spans_and_counts_of_each_guardrail() -> None:
    agents = [AgentConfig("emails", Finder()), AgentConfig("flags", Finder(flagging))]
    guardrails = [Guardrail("emails", on=_OUT), Guardrail("flags", on={"input"})]
    app = Sending([event("I am alice.smith"), event("@example.com, "), event("bye.")])
    guarded = Guarded(app, agents, guardrails)
    await guarded.call(asking(CHAT, json.dumps(_REQUEST).encode()))
    by_agent = {entry.agent: entry for entry in guarded.record.guardrails}
    assert by_agent["emails"].counts == {"redact": 1}
    assert by_agent["emails"].found == {"output": 1}
    assert [tuple(span) for span in by_agent["emails"].spans] == [("output", 5, 28, "")]
    assert by_agent["emails"].dialect == "openai.chat"
    assert by_agent["emails"].held > 0
    assert by_agent["flags"].counts == {"flag": 1}
    assert [tuple(span) for span in by_agent["flags"].spans] == [("input", 5, 28, "email")]


class Talkative(TextGuardrail):
    hold = 90

    async def check(self, window: Window) -> Sequence[Decision]:
        return [*flagging(window), *detector(EMAIL)(window)]


async def test_an_entry_has_at_most_a_kilobyte_and_twenty_spans() -> None:
    text = f"{ENTITY}, " * 500
    app = Sending([event(text[at : at + 7]) for at in range(0, len(text), 7)])
    guarded = one(app, Talkative())
    await guarded.call(asking(CHAT, json.dumps(_REQUEST).encode()))
    (entry,) = guarded.record.guardrails
    assert len(entry.spans) == 20
    assert entry.counts == {"flag": 501, "redact": 501}
    assert len(msgspec.json.encode(entry)) <= 1024


async def test_nothing_of_the_text_is_in_logs_records_or_metrics(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "alice.smith"
    finds: list[Any] = [detector(EMAIL), flagging, failing, lambda window: "none", lambda window: [window.text]]
    for find in finds:
        for mode in FailureMode:
            for app, path in (
                (answer(), "/x"),
                (Sending([event("I am alice.smith"), event("@example.com, "), event("bye.")]), CHAT),
                (Sending([b'{"detail": "' + ENTITY.encode()], "application/json"), "/x"),
                (Sending([b"data: " + ENTITY.encode() + b'{"\n\n'], "text/event-stream"), CHAT),
                (Sending([b"I am \xff" + ENTITY.encode()], "text/plain", length=True), "/x"),
            ):
                for agent in (Finder(find), SlowFinder(find)):
                    guarded = one(app, agent, failure_mode=mode, circuit_breaker=None)
                    for body in (json.dumps(_REQUEST).encode(), b'{"' + ENTITY.encode()):
                        client = await guarded.call(asking(path, body))
                        if mode is FailureMode.CLOSED and find is failing:
                            assert secret.encode() not in client.body
                    for record in guarded.records:
                        assert secret not in str(record)
                        assert secret not in repr(record)
                    assert secret not in repr(guarded.middleware.manager.metrics)
    for entry in caplog.records:
        assert secret not in entry.getMessage()
        assert secret not in str(entry.exc_text or "")
        assert secret not in str(entry.exc_info or "")


async def test_the_reason_of_a_block_is_told_and_the_text_is_not() -> None:
    guarded = one(answer(), Finder(lambda window: [Block("no addresses, please")]), _OUT)
    client = Client("GET", "/x")
    await guarded.call(client)
    assert client.body == b"no addresses, please"
    assert guarded.record.guardrails[0].counts == {"block": 1}
    assert guarded.record.guardrails[0].found == {"output": 1}


# Detections


async def test_detections_below_the_threshold_or_of_other_categories_are_ignored() -> None:
    for options, expected in (
        ({}, "[0]"),
        ({"threshold": 0.95}, "[0]"),
        ({"categories": {"email"}}, "[0]"),
        ({"categories": {"card"}}, ENTITY),
    ):
        client = Client("GET", "/x")
        await one(answer(), Detecting(), _OUT, **options).call(client)
        assert json.loads(client.body) == {"detail": expected}


async def test_remote_agents_are_sent_text_from_fresh_on() -> None:
    agent = Detecting()
    app = Sending([event("one two three four. " * 5) for _ in range(20)])
    client = Timed()
    await one(app, agent, _OUT, window=400, hold=80).call(client)
    assert client.text_by(100) == "one two three four. " * 100
    assert len(agent.events_heard) > 3
    for heard in agent.events_heard:
        assert len(heard.content) <= 400 + 100
        assert heard.inspection_type == "pii_detection"


async def test_windows_of_an_exchange_that_is_over_are_given_up() -> None:
    agent = SlowFinder(seconds=lambda: 100)
    guarded = one(Sending([event("word " * 200), 1000.0]), agent, _OUT, timeout=500.0)
    client = Timed()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guarded.call, client)
        await anyio.sleep(1)
        assert agent.at_once == 2
        tasks.cancel_scope.cancel()
    await settle()
    assert agent.at_once == 0
    assert_nothing_left(guarded.middleware.manager)
